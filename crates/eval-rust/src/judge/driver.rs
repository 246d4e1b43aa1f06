//! The program that calls a candidate's functions, the questions it is asked and what its answers are.

use std::collections::BTreeMap;

use super::task::{Function, Task};
use super::values::{Random, Type};

/// How values are written, in the driver's crate.
pub(crate) const WIRE: &str = include_str!("harness/wire.rs");
/// Name of the driver's program.
pub(crate) const DRIVER: &str = "driver";

/// The driver's source.
pub(crate) fn source(task: &Task) -> String {
    let calls = task.file.functions.iter().zip(&task.types).enumerate();
    let arms: String = calls.map(|(i, (function, types))| arm(i, &task.crate_name, function, types)).collect();
    format!(
        r#"//! Calls functions with what standard input says.
#![allow(unused_mut, clippy::all)]
mod wire;
use std::io::{{Read, Write}};
use std::panic::{{AssertUnwindSafe, catch_unwind}};
use wire::{{Put, Take}};
fn main() {{
    let mut asked = String::new();
    std::io::stdin().read_to_string(&mut asked).expect("the judge's questions");
    let mut lines = asked.lines();
    let nonce = lines.next().expect("a nonce");
    for line in lines {{
        let mut words = line.split_whitespace();
        let (index, function) = (usize::take(&mut words), usize::take(&mut words));
        let answer = match function {{
{arms}            _ => unreachable!(),
        }};
        let answer = answer.unwrap_or_else(|_| String::from(" panic"));
        let mut out = std::io::stdout().lock();
        writeln!(out, "\n{{nonce}} {{index}}{{answer}}").expect("standard output");
    }}
}}
"#
    )
}

fn arm(i: usize, crate_name: &str, function: &Function, (args, returns): &(Vec<Type>, Type)) -> String {
    let mut take = String::new();
    let (mut pass, mut put) = (Vec::new(), String::new());
    for (n, arg) in args.iter().enumerate() {
        let owned = arg.owned();
        take += &format!("                let mut a{n} = <{owned} as Take>::take(&mut words);\n");
        pass.push(format!("{}a{n}", arg.passed()));
        if matches!(arg, Type::MutVec(_)) {
            put += &format!("Put::put(&a{n}, &mut out); ");
        }
    }
    let (path, returns, pass) = (&function.path, returns.owned(), pass.join(", "));
    format!(
        "            {i} => {{\n{take}                catch_unwind(AssertUnwindSafe(move || {{\n                    \
         let r: {returns} = {crate_name}::{path}({pass});\n                    let mut out = String::new();\n                    \
         Put::put(&r, &mut out); {put}\n                    out\n                }}))\n            }}\n"
    )
}

/// Questions: the number of the function and its arguments. The seed decides them alone.
pub(crate) fn questions(task: &Task, seed: u64) -> Vec<String> {
    let mut random = Random(seed);
    let mut asked = Vec::new();
    for (i, (function, (args, _))) in task.file.functions.iter().zip(&task.types).enumerate() {
        asked.extend(function.edges.iter().map(|edge| format!("{i} {edge}")));
        for case in 0..function.cases {
            let len = 1 + u64::from(case) * u64::from(function.max_len) / u64::from(function.cases);
            let mut words = vec![i.to_string()];
            args.iter().for_each(|arg| arg.random(&mut random, function, len, &mut words));
            asked.push(words.join(" "));
        }
    }
    asked
}

/// What the driver reads: the nonce and the questions in an order of `random`'s.
pub(crate) fn input(nonce: &str, questions: &[String], random: &mut Random) -> Vec<u8> {
    let mut order: Vec<usize> = (0..questions.len()).collect();
    for i in (1..order.len()).rev() {
        order.swap(i, random.below(i as u64 + 1) as usize);
    }
    let lines: String = order.iter().map(|&i| format!("{i} {}\n", questions[i])).collect();
    format!("{nonce}\n{lines}").into_bytes()
}

/// The answers by the number of their question, from the lines with the nonce; a question answered twice has none.
pub(crate) fn answers(stdout: &[u8], nonce: &str) -> BTreeMap<usize, String> {
    let mut found: BTreeMap<usize, Option<String>> = BTreeMap::new();
    let text = String::from_utf8_lossy(stdout);
    for line in text.lines().filter_map(|line| line.strip_prefix(nonce)?.strip_prefix(' ')) {
        let (index, answer) = line.split_once(' ').unwrap_or((line, ""));
        if let Ok(index) = index.parse() {
            found.entry(index).and_modify(|answer| *answer = None).or_insert_with(|| Some(answer.to_owned()));
        }
    }
    found.into_iter().filter_map(|(index, answer)| Some((index, answer?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_with_the_nonce_are_answers_and_only_the_first_time() {
        let out = b"0 9\nn 0 9\nnonce 0 1\nnonce 1 2\nnonce 1 2\nnonce 2\nx nonce 3 4\n\xff\nnonce 5 a b\n";
        let want = [(0, "1".to_owned()), (2, String::new()), (5, "a b".to_owned())];
        assert_eq!(answers(out, "nonce"), BTreeMap::from(want));
    }

    #[test]
    fn every_question_is_asked_once_in_another_order() {
        let questions: Vec<String> = (0..9).map(|i| format!("0 {i}")).collect();
        let input = |seed| String::from_utf8(input("n", &questions, &mut Random(seed))).unwrap();
        let (a, b) = (input(1), input(2));
        assert_ne!(a, b);
        let sorted = |text: &str| text.lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>();
        assert_eq!(sorted(&a), sorted(&b));
        assert_eq!(sorted(&a).len(), 10);
    }
}
