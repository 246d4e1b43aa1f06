//! Ranking candidates of one task: hard gates by the judge, then the smaller and plainer change; pairs of answers out of it.

use std::collections::BTreeMap;

use eval_rust::judge::{Judgement, Status};
use model_core::harmony::{Channel, Conversation, ExampleOptions, Harmony, Message, MessageJson, Role};
use serde::Serialize;

use super::{Ending, Episode, Files};

/// Longest line that is no offence.
const MAX_LINE: usize = 120;

/// What a candidate must pass, in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Gates {
    /// Every call was a proper call, and the answer changes something that the judge accepts.
    pub applies: bool,
    /// It compiles, alone and with the tests.
    pub check: bool,
    /// Every test passes.
    pub test: bool,
    /// Clippy has nothing to say.
    pub clippy: bool,
    /// rustfmt would change nothing.
    pub fmt: bool,
}

impl Gates {
    /// The gates of a judged candidate; a gate behind one that is closed is closed.
    pub fn of(episode: &Episode, judgement: Option<&Judgement>) -> Self {
        let Some(judgement) = judgement.filter(|judgement| judgement.status == Status::Judged) else {
            return Self::default();
        };
        let applies = episode.ending == Ending::Answered && judgement.files_changed > 0;
        let check = applies && judgement.compiled && !judgement.unsound;
        let test = check && judgement.passed;
        let clippy = test && judgement.clippy_clean;
        Self { applies, check, test, clippy, fmt: clippy && judgement.formatted }
    }

    /// How many are open.
    pub fn n_open(&self) -> usize {
        [self.applies, self.check, self.test, self.clippy, self.fmt].iter().filter(|open| **open).count()
    }

    /// Whether all are open.
    pub fn all_open(&self) -> bool {
        self.fmt
    }
}

/// What is smaller in a better candidate, the first thing first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Soft {
    /// Lines added and removed.
    pub diff_lines: u64,
    /// Files that differ.
    pub files_changed: u64,
    /// Offences against the idiom rules.
    pub offences: u64,
}

/// Offences in the lines that a candidate adds: unwrapping, cloning, casts, counting loops, printing, long lines.
pub fn offences(start: &Files, candidate: &Files) -> u64 {
    let rules: [fn(&str) -> bool; 6] = [
        |line| line.contains(".unwrap()") || line.contains(".expect("),
        |line| line.contains(".clone()"),
        |line| line.contains(" as ") && !line.trim_start().starts_with("use "),
        |line| line.contains("for ") && line.contains(" in 0.."),
        |line| line.contains("println!(") || line.contains("dbg!("),
        |line| line.chars().count() > MAX_LINE,
    ];
    let mut n = 0;
    for (path, bytes) in candidate.iter().filter(|(path, _)| path.ends_with(".rs")) {
        let (old, new) = (start.get(path).map(|old| String::from_utf8_lossy(old)), String::from_utf8_lossy(bytes));
        let mut before: BTreeMap<&str, usize> = BTreeMap::new();
        old.iter().flat_map(|old| old.lines()).for_each(|line| *before.entry(line).or_default() += 1);
        for line in new.lines() {
            match before.get_mut(line).filter(|left| **left > 0) {
                Some(left) => *left -= 1,
                None if line.trim_start().starts_with("//") => {}
                None => n += rules.iter().filter(|offends| offends(line)).count() as u64,
            }
        }
    }
    n
}

/// A candidate with its place.
#[derive(Clone, Debug)]
pub struct Ranked<'e> {
    /// What the model said.
    pub episode: &'e Episode,
    /// Gates.
    pub gates: Gates,
    /// Among those with the same gates.
    pub soft: Soft,
}

/// The ranked candidates, best first; of equals the one with the smaller number.
pub fn rank(mut candidates: Vec<Ranked<'_>>) -> Vec<Ranked<'_>> {
    candidates.sort_by_key(|it| (std::cmp::Reverse(it.gates.n_open()), it.soft, it.episode.sample));
    candidates
}

/// A preference record as the preference stages read it.
#[derive(Debug, Serialize)]
pub struct PairRecord {
    id: String,
    task: String,
    prompt: Vec<MessageJson>,
    chosen: Vec<MessageJson>,
    rejected: Vec<MessageJson>,
}

/// What a model said up to its last answer or call, after which nothing of its own is open; without the message that was malformed.
fn said(episode: &Episode) -> &[Message] {
    let n = episode.messages.len()
        - usize::from(matches!(episode.ending, Ending::Malformed(_))).min(episode.messages.len());
    let closes = |it: &Message| it.role == Role::Assistant && (it.channel == Some(Channel::Final) || it.is_call());
    let end = episode.messages[..n].iter().rposition(closes).map_or(0, |at| at + 1);
    &episode.messages[..end]
}

/// The best candidate with all gates open before those that are worse than it, the worst first and at most `most`, as answers
/// to the prompt that can be rendered. What the best one begins with is not held against another.
pub fn pairs(
    harmony: &Harmony<'_>,
    task: &str,
    prompt: &Conversation,
    ranked: &[Ranked<'_>],
    most: usize,
) -> Vec<PairRecord> {
    let renders = |it: &&Ranked<'_>| {
        let answer = Conversation { messages: said(it.episode).to_vec() };
        harmony.answer(prompt, &answer, ExampleOptions::default()).is_ok()
    };
    let Some(chosen) = ranked.iter().filter(|it| it.gates.all_open()).find(renders) else { return Vec::new() };
    let key = |it: &Ranked<'_>| (std::cmp::Reverse(it.gates.n_open()), it.soft);
    let is_worse = |it: &&Ranked<'_>| key(it) > key(chosen) && !said(chosen.episode).starts_with(said(it.episode));
    let mut rejected: Vec<&Ranked<'_>> = Vec::new();
    for it in ranked.iter().rev().filter(is_worse).filter(renders) {
        let is_new = rejected.iter().all(|other| said(other.episode) != said(it.episode));
        if is_new && rejected.len() < most {
            rejected.push(it);
        }
    }
    let json = |messages: &[Message]| messages.iter().map(MessageJson::from).collect();
    let record = |rejected: &Ranked<'_>| PairRecord {
        id: format!("{task}-{}-{}", chosen.episode.sample, rejected.episode.sample),
        task: task.to_owned(),
        prompt: json(&prompt.messages),
        chosen: json(said(chosen.episode)),
        rejected: json(said(rejected.episode)),
    };
    rejected.into_iter().map(record).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::tests::{answered, tokenizer};

    fn files(text: &str) -> Files {
        Files::from([("src/lib.rs".to_owned(), text.as_bytes().to_vec())])
    }

    #[test]
    fn only_added_lines_offend() {
        let start = files("let a = b.unwrap();\nlet c = d.clone();\n");
        assert_eq!(offences(&start, &start), 0);
        let worse =
            "let a = b.unwrap();\nlet a = b.unwrap();\nfor i in 0..n { x[i as usize] = y.clone(); }\n// .clone()\n";
        assert_eq!(offences(&start, &files(worse)), 1 + 3);
        assert_eq!(
            offences(&start, &files(&format!("//! {}\nlet x = \"{}\";\n", "a".repeat(200), "b".repeat(200)))),
            1
        );
        assert_eq!(offences(&Files::new(), &files("use a as b;\nprintln!(\"\");\n")), 1);
    }

    #[test]
    fn pairs_are_the_best_before_the_worst_that_can_be_rendered() {
        let tokenizer = tokenizer();
        let harmony = Harmony::new(&tokenizer).unwrap();
        let prompt = Conversation { messages: vec![Message::new(Role::User, "Repair it.")] };
        let open = Gates { applies: true, check: true, test: true, clippy: true, fmt: true };
        let episodes: Vec<Episode> =
            ["long", "short", "fails", "cut"].iter().zip(0..).map(|(text, sample)| answered(text, sample)).collect();
        let mut cut = episodes[3].clone();
        cut.messages = vec![Message::assistant(Channel::Analysis, "hm")];
        let candidates = |cut| {
            let of =
                |episode, gates, diff_lines| Ranked { episode, gates, soft: Soft { diff_lines, ..Soft::default() } };
            rank(vec![
                of(&episodes[0], open, 9),
                of(&episodes[1], open, 2),
                of(&episodes[2], Gates { clippy: false, fmt: false, ..open }, 2),
                of(cut, Gates::default(), 0),
            ])
        };
        let ranked = candidates(&cut);
        assert_eq!(ranked.iter().map(|it| it.episode.sample).collect::<Vec<_>>(), [1, 0, 2, 3]);
        // What does not end with an answer cannot be rendered, so the next worst is rejected.
        let made = |ranked: &[Ranked<'_>], most| pairs(&harmony, "t", &prompt, ranked, most);
        let ids = |ranked: &[Ranked<'_>], most| made(ranked, most).into_iter().map(|it| it.id).collect::<Vec<_>>();
        let line = serde_json::to_value(&made(&ranked, 1)[0]).unwrap();
        assert_eq!(line["id"], "t-1-2");
        assert_eq!(line["chosen"][0]["content"][0]["text"], "short");
        // Without a candidate that passes everything, and with one alone, there is no pair.
        assert!(made(&ranked[2..], 1).is_empty() && made(&ranked[..1], 1).is_empty());
        // Two that pass differ by size alone.
        assert_eq!(ids(&ranked[..2], 1), ["t-1-0"]);
        // Several, each other answer once.
        let mut again = ranked.clone();
        again.push(Ranked { episode: &episodes[2], ..ranked[2].clone() });
        assert_eq!(ids(&again, 9), ["t-1-2", "t-1-0"]);
        // Whoever ran out of turns is rejected up to its last call, a malformed message is not shown.
        let call = |text: &str| Message {
            recipient: Some("functions.run_tests".to_owned()),
            ..Message::assistant(Channel::Commentary, text)
        };
        let mut open_end = episodes[3].clone();
        open_end.messages = vec![call("{}"), Message::assistant(Channel::Analysis, "hm")];
        open_end.ending = Ending::Turns;
        let record = serde_json::to_value(&made(&candidates(&open_end), 1)[0]).unwrap();
        assert_eq!((&record["id"], record["rejected"].as_array().unwrap().len()), (&"t-1-3".into(), 1));
        let messages = vec![call("{}"), call("{]")];
        let malformed = Episode { messages, ending: Ending::Malformed("x".to_owned()), ..episodes[3].clone() };
        let record = serde_json::to_value(&made(&candidates(&malformed), 1)[0]).unwrap();
        assert_eq!(record["rejected"][0]["content"][0]["text"], "{}");
        let equal = vec![ranked[0].clone(), Ranked { episode: &episodes[0], ..ranked[0].clone() }];
        assert!(made(&equal, 1).is_empty());
    }
}
