//! Mutants as `cargo-mutants` lists them, rebuilt from place and replacement, so that no marker of the program is left.

use serde::{Deserialize, Serialize};

use super::error::{MutateError, Result};

/// The genre of mutants that replace a whole body, which look least like real faults.
pub(crate) const FN_VALUE: &str = "FnValue";

/// A change of one place of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Mutant {
    pub(crate) file: String,
    /// What is changed, in words.
    pub(crate) name: String,
    pub(crate) genre: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) function: Option<String>,
    /// Bytes of the file that are replaced.
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) replacement: String,
    /// Codes of the compiler of which one must come; empty for a mutant that must compile.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) codes: Vec<String>,
}

impl Mutant {
    /// The file with the change; `None` when the place is not in it.
    pub(crate) fn apply(&self, text: &str) -> Option<String> {
        let (head, tail) = (text.get(..self.from)?, text.get(self.to..)?);
        Some(format!("{head}{}{tail}", self.replacement))
    }
}

#[derive(Deserialize)]
struct Listed {
    name: String,
    file: String,
    function: Option<Function>,
    span: Span,
    replacement: String,
    genre: String,
}

#[derive(Deserialize)]
struct Function {
    function_name: String,
}

/// Counted from 1, columns in characters, the end not included.
#[derive(Deserialize)]
struct Span {
    start: Place,
    end: Place,
}

#[derive(Deserialize)]
struct Place {
    line: usize,
    column: usize,
}

/// Reads what `cargo-mutants` lists for files whose texts `text` finds; mutants of other files are left out.
pub(crate) fn read<'t>(json: &[u8], text: impl Fn(&str) -> Option<&'t str>) -> Result<Vec<Mutant>> {
    let bad = |what: String| MutateError::Tool { tool: "cargo-mutants", what };
    let listed: Vec<Listed> = serde_json::from_slice(json).map_err(|error| bad(format!("its list: {error}")))?;
    let mut found = Vec::new();
    for one in listed {
        let Some(text) = text(&one.file) else { continue };
        let (from, to) = match (offset(text, &one.span.start), offset(text, &one.span.end)) {
            (Some(from), Some(to)) if from <= to => (from, to),
            _ => return Err(bad(format!("`{}` is at no place of its file", one.name))),
        };
        found.push(Mutant {
            file: one.file,
            name: one.name,
            genre: one.genre,
            function: one.function.map(|function| function.function_name),
            from,
            to,
            replacement: one.replacement,
            codes: Vec::new(),
        });
    }
    Ok(found)
}

fn offset(text: &str, place: &Place) -> Option<usize> {
    let mut start = 0;
    for _ in 1..place.line {
        start += text[start..].find('\n')? + 1;
    }
    let line = &text[start..];
    let column = place.column.checked_sub(1)?;
    let at = line.char_indices().map(|(at, _)| at).chain([line.len()]).nth(column)?;
    Some(start + at)
}

/// Takes at most `most` in an order that `seed` decides, of which at most `fn_share` replace whole bodies; a genre that has
/// few is not crowded out by one that has many.
pub(crate) fn select(mutants: Vec<Mutant>, seed: u64, most: usize, fn_share: f64) -> Vec<Mutant> {
    let key =
        |mutant: &Mutant| gates::artifact::hash_bytes(format!("{seed} {} {}", mutant.name, mutant.from).as_bytes());
    let mut by_genre: std::collections::BTreeMap<String, Vec<Mutant>> = std::collections::BTreeMap::new();
    for mutant in mutants {
        by_genre.entry(mutant.genre.clone()).or_default().push(mutant);
    }
    let fn_most = (most as f64 * fn_share) as usize;
    let mut queues: Vec<Vec<Mutant>> = by_genre
        .into_iter()
        .map(|(genre, mut list)| {
            list.sort_by_cached_key(|mutant| std::cmp::Reverse(key(mutant)));
            if genre == FN_VALUE {
                let from = list.len().saturating_sub(fn_most);
                list.drain(..from);
            }
            list
        })
        .collect();
    let mut taken = Vec::new();
    while taken.len() < most && queues.iter().any(|queue| !queue.is_empty()) {
        for queue in &mut queues {
            taken.extend(queue.pop());
        }
    }
    taken.truncate(most);
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "// é\nfn f(a: u8) -> u8 {\n    /* ß */ a + 1\n}\n";

    fn listed(line: usize, columns: [usize; 2], replacement: &str) -> Vec<u8> {
        let span = serde_json::json!({"start": {"line": line, "column": columns[0]}, "end": {"line": line, "column": columns[1]}});
        serde_json::to_vec(&serde_json::json!([{
            "name": "src/lib.rs:3:15: replace + with -", "package": "a", "file": "src/lib.rs", "genre": "BinaryOperator",
            "function": {"function_name": "f", "return_type": "-> u8", "span": span}, "span": span,
            "replacement": replacement, "diff": "+ /* ~ changed by cargo-mutants ~ */",
        }]))
        .unwrap()
    }

    #[test]
    fn a_mutant_is_rebuilt_without_the_marker() {
        let got = read(&listed(3, [15, 16], "-"), |name| (name == "src/lib.rs").then_some(TEXT)).unwrap();
        let buggy = got[0].apply(TEXT).unwrap();
        assert_eq!(buggy, TEXT.replace("a + 1", "a - 1"));
        assert!(!buggy.contains("cargo-mutants"));
        let got = read(&listed(3, [13, 18], ""), |_| Some(TEXT)).unwrap();
        assert_eq!(got[0].apply(TEXT).unwrap(), TEXT.replace("a + 1", ""));
        assert!(read(&listed(9, [1, 2], ""), |_| Some(TEXT)).is_err());
        assert!(read(&listed(3, [1, 2], ""), |_| None).unwrap().is_empty());
        assert!(read(b"{}", |_| Some(TEXT)).is_err());
    }

    #[test]
    fn whole_bodies_are_capped_and_rare_genres_are_kept() {
        let one = |genre: &str, i: usize| Mutant {
            file: "src/lib.rs".into(),
            name: format!("{genre} {i}"),
            genre: genre.into(),
            function: None,
            from: i,
            to: i,
            replacement: String::new(),
            codes: Vec::new(),
        };
        let all: Vec<Mutant> = (0..50)
            .map(|i| one(FN_VALUE, i))
            .chain((0..50).map(|i| one("BinaryOperator", i)))
            .chain((0..2).map(|i| one("MatchArm", i)))
            .collect();
        let got = select(all.clone(), 1, 20, 0.2);
        let count = |genre: &str| got.iter().filter(|mutant| mutant.genre == genre).count();
        assert_eq!((got.len(), count(FN_VALUE), count("MatchArm"), count("BinaryOperator")), (20, 4, 2, 14));
        assert_eq!(
            got,
            select(all.iter().rev().cloned().collect(), 1, 20, 0.2),
            "the order of the list does not count"
        );
        assert_ne!(got, select(all, 2, 20, 0.2));
    }
}
