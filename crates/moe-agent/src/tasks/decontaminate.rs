//! Whether the function of a task is in the training pairs: as it is, with other names, or in pieces of 13 tokens.

use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use serde::{Deserialize, Serialize};

use crate::rust_text::{Kind, Tokens};

/// Tokens of a piece.
const PIECE: usize = 13;

/// How a task was found in the training pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overlap {
    /// The same tokens.
    Exact,
    /// The same tokens but for names and literals.
    Renamed,
    /// Too many of its pieces.
    Pieces,
}

/// What training has seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    exact: HashSet<u64>,
    renamed: HashSet<u64>,
    pieces: HashSet<u64>,
}

impl Seen {
    /// Adds a file.
    pub(crate) fn add(&mut self, text: &str) {
        let tokens = Tokens::new(text);
        for (_, range) in tokens.functions() {
            let words = words(&text[range]);
            self.exact.insert(hash(&words));
            self.renamed.insert(hash(&renamed(&words)));
        }
        self.pieces.extend(pieces(&words(text)));
    }

    /// Whether a function was seen; at most `most` of its pieces, as a share, may have been.
    pub(crate) fn overlap(&self, function: &str, most: f64) -> Option<Overlap> {
        let words = words(function);
        if self.exact.contains(&hash(&words)) {
            return Some(Overlap::Exact);
        }
        if self.renamed.contains(&hash(&renamed(&words))) {
            return Some(Overlap::Renamed);
        }
        let all: Vec<u64> = pieces(&words).collect();
        let seen = all.iter().filter(|piece| self.pieces.contains(piece)).count();
        (seen as f64 > most * all.len() as f64).then_some(Overlap::Pieces)
    }
}

fn words(text: &str) -> Vec<(Kind, &str)> {
    let tokens = Tokens::new(text);
    (0..tokens.len()).map(|i| (tokens.token(i).kind, &text[tokens.token(i).at.clone()])).collect()
}

/// Names by the order in which they come, literals by their kind.
fn renamed(words: &[(Kind, &str)]) -> Vec<String> {
    let mut names: BTreeMap<&str, usize> = BTreeMap::new();
    let one = |(kind, word): &(Kind, &'_ str)| (*kind, (*word).to_owned());
    let mut out = Vec::with_capacity(words.len());
    for word in words {
        out.push(match word.0 {
            Kind::Word | Kind::Lifetime => {
                let next = names.len();
                format!("n{}", names.entry(word.1).or_insert(next))
            }
            Kind::Number | Kind::Literal => format!("{:?}", word.0),
            Kind::Punct => one(word).1,
        });
    }
    out
}

fn pieces<'w>(words: &'w [(Kind, &'w str)]) -> impl Iterator<Item = u64> + 'w {
    words.windows(PIECE).map(hash)
}

fn hash<T: Hash + ?Sized>(value: &T) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

impl Hash for Kind {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (*self as u8).hash(state);
    }
}

/// The function around the first place where two versions of a file differ; all of it outside of any.
pub(crate) fn changed_function<'t>(fixed: &'t str, buggy: &str) -> &'t str {
    let at = fixed.bytes().zip(buggy.bytes()).take_while(|(a, b)| a == b).count();
    let inside = Tokens::new(fixed).functions().into_iter().map(|(_, range)| range);
    let smallest = inside.filter(|range| range.contains(&at)).min_by_key(std::ops::Range::len);
    smallest.map_or(fixed, |range| &fixed[range])
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEEN: &str =
        "/// Doc.\nfn add(a: u8, b: u8) -> u8 {\n    let sum = a.wrapping_add(b); // x\n    sum + 1\n}\n";

    #[test]
    fn copies_renamed_copies_and_pieces_are_found() {
        let mut seen = Seen::default();
        seen.add(SEEN);
        let find = |text: &str| seen.overlap(text, 0.2);
        assert_eq!(find("fn add(a: u8,b: u8) -> u8 { let sum = a.wrapping_add(b);\n sum + 1 }"), Some(Overlap::Exact));
        assert_eq!(find("fn sum(x: u8, y: u8) -> u8 { let z = x.wrapping_add(y); z + 2 }"), Some(Overlap::Renamed));
        let longer = "fn add(a: u8, b: u8) -> u8 { let sum = a.wrapping_add(b); sum - 1 }";
        assert_eq!(find(longer), Some(Overlap::Pieces));
        assert_eq!(seen.overlap(longer, 1.0), None);
        assert_eq!(find("fn other(list: &[i32]) -> i32 { list.iter().sum() }"), None);
    }

    #[test]
    fn the_changed_function_is_the_smallest_around_the_change() {
        let fixed = "fn f() {\n    1;\n}\nfn g() {\n    2;\n}\nconst C: u8 = 3;\n";
        assert_eq!(changed_function(fixed, &fixed.replace('2', "9")), "fn g() {\n    2;\n}");
        assert_eq!(changed_function(fixed, &fixed.replace("= 3", "= 4")), fixed);
    }
}
