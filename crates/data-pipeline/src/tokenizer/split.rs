//! Cuts text into the pieces that BPE works on, by the patterns of known tokenizers, in time linear in the text.
//!
//! The patterns are regular expressions with a look-ahead. Here each is a small hand-written matcher, so that no input
//! can make it slow; tests compare it with the expression itself, run by the tokenizers library.

use std::sync::OnceLock;

use regex_syntax::hir::{Class, HirKind};

/// A known pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SplitPattern {
    /// GPT-2.
    Gpt2,
    /// Llama 3 and Qwen 2: numbers are cut into runs of at most `digits`.
    Llama3 {
        /// Digits per piece.
        digits: usize,
    },
}

/// GPT-2's expression.
pub(crate) const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Llama 3's expression.
pub(crate) const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 2's expression.
pub(crate) const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

impl SplitPattern {
    /// The matcher of an expression, if it is a known one.
    pub(crate) fn from_regex(regex: &str) -> Option<Self> {
        match regex {
            GPT2 => Some(Self::Gpt2),
            LLAMA3 => Some(Self::Llama3 { digits: 3 }),
            QWEN2 => Some(Self::Llama3 { digits: 1 }),
            _ => None,
        }
    }

    /// The pieces of a text, in order; together they are the text.
    pub(crate) fn pieces(self, text: &str) -> Pieces<'_> {
        Pieces { text, at: 0, pattern: self, classes: classes() }
    }
}

/// Iterator over the pieces of a text.
pub(crate) struct Pieces<'a> {
    text: &'a str,
    at: usize,
    pattern: SplitPattern,
    classes: &'static [u8],
}

impl<'a> Iterator for Pieces<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let first = self.char_at(self.at)?;
        let end = match self.pattern {
            SplitPattern::Gpt2 => self.gpt2(first),
            SplitPattern::Llama3 { digits } => self.llama3(first, digits),
        };
        let piece = &self.text[self.at..end];
        self.at = end;
        Some(piece)
    }
}

impl Pieces<'_> {
    fn gpt2(&self, first: char) -> usize {
        if let Some(end) = self.contraction(first, false) {
            return end;
        }
        let after = self.at + first.len_utf8();
        let (start, class) = if first == ' ' { (after, self.class_at(after)) } else { (self.at, self.class(first)) };
        match class {
            LETTER | NUMBER | OTHER => self.run(start, class),
            _ => self.spaces(),
        }
    }

    fn llama3(&self, first: char, digits: usize) -> usize {
        if let Some(end) = self.contraction(first, true) {
            return end;
        }
        let (class, after) = (self.class(first), self.at + first.len_utf8());
        let next = self.class_at(after);
        match class {
            LETTER => self.run(self.at, LETTER),
            NUMBER => self.run_of(self.at, NUMBER, digits),
            _ if next == LETTER && !matches!(first, '\r' | '\n') => self.run(after, LETTER),
            OTHER => self.line_ends(self.run(self.at, OTHER)),
            _ if first == ' ' && next == OTHER => self.line_ends(self.run(after, OTHER)),
            _ => self.spaces_to_last_line_end().unwrap_or_else(|| self.spaces()),
        }
    }

    /// The end of `'s`, `'t`, `'re`, `'ve`, `'m`, `'ll` or `'d`.
    fn contraction(&self, first: char, any_case: bool) -> Option<usize> {
        if first != '\'' {
            return None;
        }
        // With case ignored, the long s is an s.
        let fold = |c: char| match c {
            'ſ' if any_case => 's',
            c if any_case => c.to_ascii_lowercase(),
            c => c,
        };
        let mut chars = self.text[self.at + 1..].chars();
        let one = chars.next()?;
        let two = chars.next().map(fold);
        let end = self.at + 1 + one.len_utf8();
        match (fold(one), two) {
            ('s' | 't' | 'm' | 'd', _) => Some(end),
            ('r' | 'v', Some('e')) | ('l', Some('l')) => Some(end + 1),
            _ => None,
        }
    }

    /// White space, less its last character when a word follows and something is left.
    fn spaces(&self) -> usize {
        let end = self.run(self.at, SPACE);
        if end == self.text.len() {
            return end;
        }
        let last = self.text[self.at..end].chars().next_back().map_or(0, char::len_utf8);
        if end - last > self.at { end - last } else { end }
    }

    /// White space up to its last line end, if it has one.
    fn spaces_to_last_line_end(&self) -> Option<usize> {
        let end = self.run(self.at, SPACE);
        self.text.as_bytes()[self.at..end].iter().rposition(|b| matches!(b, b'\r' | b'\n')).map(|i| self.at + i + 1)
    }

    fn line_ends(&self, at: usize) -> usize {
        let bytes = &self.text.as_bytes()[at..];
        at + bytes.iter().take_while(|b| matches!(b, b'\r' | b'\n')).count()
    }

    fn run(&self, from: usize, class: u8) -> usize {
        self.run_of(from, class, usize::MAX)
    }

    /// The end of at most `limit` characters of one class.
    fn run_of(&self, from: usize, class: u8, limit: usize) -> usize {
        let (bytes, mut at, mut left) = (self.text.as_bytes(), from, limit);
        while left > 0 && at < bytes.len() {
            let byte = bytes[at];
            let (found, len) = if byte < 0x80 {
                (self.classes[usize::from(byte)], 1)
            } else {
                match self.char_at(at) {
                    Some(c) => (self.class(c), c.len_utf8()),
                    None => break,
                }
            };
            if found != class {
                break;
            }
            at += len;
            left -= 1;
        }
        at
    }

    fn char_at(&self, at: usize) -> Option<char> {
        self.text[at..].chars().next()
    }

    fn class(&self, c: char) -> u8 {
        self.classes[c as usize]
    }

    /// The class of the character at a byte offset; the end of the text counts as space.
    fn class_at(&self, at: usize) -> u8 {
        self.char_at(at).map_or(SPACE, |c| self.class(c))
    }
}

const OTHER: u8 = 0;
const LETTER: u8 = 1;
const NUMBER: u8 = 2;
const SPACE: u8 = 3;

/// The class of every character, from the tables that the regular expression engine itself uses.
fn classes() -> &'static [u8] {
    static CLASSES: OnceLock<Box<[u8]>> = OnceLock::new();
    CLASSES.get_or_init(|| {
        let mut table = vec![OTHER; char::MAX as usize + 1].into_boxed_slice();
        for (pattern, class) in [(r"\p{L}", LETTER), (r"\p{N}", NUMBER), (r"\s", SPACE)] {
            let hir = regex_syntax::parse(pattern).expect("a constant class parses");
            let HirKind::Class(Class::Unicode(ranges)) = hir.kind() else {
                unreachable!("{pattern} is a class of characters")
            };
            for range in ranges.ranges() {
                table[range.start() as usize..=range.end() as usize].fill(class);
            }
        }
        table
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokenizers::pre_tokenizers::split::{Split, SplitPattern as LibraryPattern};
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, SplitDelimiterBehavior};

    use super::*;

    /// The pieces that the tokenizers library finds with the expression itself.
    fn library(regex: &str, text: &str) -> Vec<String> {
        let pattern = LibraryPattern::Regex(regex.to_owned());
        let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).unwrap();
        let mut pieces = PreTokenizedString::from(text);
        split.pre_tokenize(&mut pieces).unwrap();
        let pieces = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
        pieces.into_iter().map(|(piece, _, _)| piece.to_owned()).collect()
    }

    fn check(text: &str) {
        for regex in [GPT2, LLAMA3, QWEN2] {
            let pieces: Vec<&str> = SplitPattern::from_regex(regex).unwrap().pieces(text).collect();
            assert_eq!(pieces, library(regex, text), "{text:?} by {regex}");
        }
    }

    #[test]
    fn pieces_equal_those_of_the_expression() {
        let texts = [
            "",
            "Hello world",
            " Hello,  world!!  \n\n  Next\tline\r\n\r\n",
            "it's we'll I'D they'RE o'clock 'sam ''s 'ſ 'LL 'lx '",
            "12345 and 1,234.50 x2y ½ Ⅻ",
            "naïve café ÄÖÜ 漢字かな مرحبا नमस्ते e\u{301}",
            "a\u{a0}b\u{3000}\u{3000}c\u{85}d \u{2003} e",
            "  \n \t x",
            "\n\n\nx",
            "x   ",
            "!\n\n?\r\rz",
            "\u{200b}\u{200d}👩‍👩‍👧 <|endoftext|>",
            "\t\tindent(); // x",
        ];
        texts.into_iter().for_each(check);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

        #[test]
        fn pieces_equal_those_of_the_expression_on_random_text(text in "[ a'sSlLtvre1²\n\r\t.,!é漢\u{a0}\u{3000}ſ]{0,24}|\\PC{0,24}") {
            check(&text);
        }
    }
}
