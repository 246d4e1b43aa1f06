//! Rust text as tokens with their places, so that edits and comparisons see no comment and no string.

use std::ops::Range;

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A name or a keyword.
    Word,
    /// A number.
    Number,
    /// A string, a byte string or a character.
    Literal,
    /// A lifetime or a label.
    Lifetime,
    /// One character of punctuation.
    Punct,
}

/// A token and the bytes it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) kind: Kind,
    pub(crate) at: Range<usize>,
}

/// A text and its tokens.
#[derive(Debug)]
pub(crate) struct Tokens<'t> {
    text: &'t str,
    list: Vec<Token>,
}

impl<'t> Tokens<'t> {
    /// Reads a text; what is no Rust becomes some tokens or other.
    pub(crate) fn new(text: &'t str) -> Self {
        let bytes = text.as_bytes();
        let mut list = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let (kind, end) = next(text, at);
            if let Some(kind) = kind {
                list.push(Token { kind, at: at..end });
            }
            at = end;
        }
        Self { text, list }
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    pub(crate) fn token(&self, i: usize) -> &Token {
        &self.list[i]
    }

    /// The text of a token; empty past the end.
    pub(crate) fn word(&self, i: usize) -> &'t str {
        self.list.get(i).map_or("", |token| &self.text[token.at.clone()])
    }

    pub(crate) fn is(&self, i: usize, text: &str) -> bool {
        self.list.get(i).is_some_and(|token| token.kind != Kind::Literal) && self.word(i) == text
    }

    pub(crate) fn is_word(&self, i: usize) -> bool {
        self.list.get(i).is_some_and(|token| token.kind == Kind::Word)
    }

    /// Whether the tokens from `i` on are these.
    pub(crate) fn run(&self, i: usize, texts: &[&str]) -> bool {
        texts.iter().enumerate().all(|(n, text)| self.is(i + n, text))
    }

    /// The place of the bracket that closes the one at `open`.
    pub(crate) fn close(&self, open: usize) -> Option<usize> {
        let mut depth = 0_i32;
        for i in open..self.len() {
            match self.word(i) {
                "(" | "[" | "{" if self.list[i].kind == Kind::Punct => depth += 1,
                ")" | "]" | "}" if self.list[i].kind == Kind::Punct => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return Some(i);
            }
        }
        None
    }

    /// The bytes of items that only tests use: `#[cfg(test)]` or `#[test]` with the item behind it.
    pub(crate) fn test_items(&self) -> Vec<Range<usize>> {
        let mut found = Vec::new();
        let mut i = 0;
        while i < self.len() {
            let marks: [&[&str]; 2] = [&["#", "[", "cfg", "(", "test", ")", "]"], &["#", "[", "test", "]"]];
            let Some(mark) = marks.iter().find(|mark| self.run(i, mark)) else {
                i += 1;
                continue;
            };
            let Some(end) = self.item_end(i + mark.len()) else { break };
            found.push(self.list[i].at.start..self.list[end].at.end);
            i = end + 1;
        }
        found
    }

    /// The last token of the item that begins at `i`: its block or its semicolon.
    fn item_end(&self, mut i: usize) -> Option<usize> {
        while i < self.len() {
            match self.word(i) {
                ";" => return Some(i),
                "{" => return self.close(i),
                "(" | "[" => i = self.close(i)?,
                _ => {}
            }
            i += 1;
        }
        None
    }

    /// Functions with a body: name, and the bytes from `fn` to the closing brace.
    pub(crate) fn functions(&self) -> Vec<(&'t str, Range<usize>)> {
        let mut found = Vec::new();
        for i in (0..self.len()).filter(|&i| self.is(i, "fn") && self.is_word(i + 1)) {
            if let Some(end) = self.item_end(i + 2).filter(|&end| self.is(end, "}")) {
                found.push((self.word(i + 1), self.list[i].at.start..self.list[end].at.end));
            }
        }
        found
    }
}

/// What stands at `at`, if it is a token, and where it ends.
fn next(text: &str, at: usize) -> (Option<Kind>, usize) {
    let bytes = text.as_bytes();
    let rest = &bytes[at..];
    let word = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_' || *b >= 0x80;
    match rest {
        [b'/', b'/', ..] => (None, at + rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len())),
        [b'/', b'*', ..] => (None, at + comment(rest)),
        [b'"', ..] => (Some(Kind::Literal), at + string(rest)),
        [b'b' | b'c', b'"', ..] => (Some(Kind::Literal), at + 1 + string(&rest[1..])),
        [b'b', b'\'', ..] => (Some(Kind::Literal), at + 1 + character(&rest[1..]).unwrap_or(1)),
        [b'\'', ..] => match character(rest) {
            Some(length) => (Some(Kind::Literal), at + length),
            None => (Some(Kind::Lifetime), at + 1 + rest[1..].iter().take_while(|b| word(b)).count()),
        },
        [b'r' | b'b' | b'c', ..] if raw(rest).is_some() => (Some(Kind::Literal), at + raw(rest).unwrap_or(1)),
        [b'0'..=b'9', ..] => (Some(Kind::Number), at + rest.iter().take_while(|b| word(b)).count()),
        [b, ..] if word(b) => (Some(Kind::Word), at + rest.iter().take_while(|b| word(b)).count()),
        [b, ..] if b.is_ascii_whitespace() => (None, at + 1),
        _ => (Some(Kind::Punct), at + 1),
    }
}

fn comment(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at + 1 < rest.len() {
        match &rest[at..at + 2] {
            b"/*" => (depth, at) = (depth + 1, at + 2),
            b"*/" => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}

fn string(rest: &[u8]) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// The length of a character; a lifetime is none.
fn character(rest: &[u8]) -> Option<usize> {
    if rest.get(1) == Some(&b'\\') {
        return Some(rest.iter().skip(3).position(|b| *b == b'\'')? + 4);
    }
    let width = match rest.get(1)? {
        0..0x80 => 1,
        0x80..0xe0 => 2,
        0xe0..0xf0 => 3,
        0xf0.. => 4,
    };
    (rest.get(1 + width) == Some(&b'\'')).then_some(width + 2)
}

/// The length of `r"…"`, `r#"…"#` and the like.
fn raw(rest: &[u8]) -> Option<usize> {
    let r = rest.iter().take(2).position(|b| *b == b'r')?;
    let hashes = rest[r + 1..].iter().take_while(|b| **b == b'#').count();
    if rest.get(r + 1 + hashes) != Some(&b'"') {
        return None;
    }
    let close: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
    let open = r + 2 + hashes;
    let end = rest[open..].windows(close.len()).position(|window| window == close);
    Some(end.map_or(rest.len(), |end| open + end + close.len()))
}

/// Takes byte ranges, which do not overlap, out of a text, with the line that each leaves empty.
pub(crate) fn without(text: &str, ranges: &[Range<usize>]) -> String {
    let mut out = String::new();
    let mut from = 0;
    for range in ranges {
        out += text.get(from..range.start).unwrap_or_default().trim_end_matches([' ', '\t']);
        from = range.end;
        if text[from..].starts_with('\n') && (out.is_empty() || out.ends_with('\n')) {
            from += 1;
        }
    }
    out + text.get(from..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<&str> {
        let tokens = Tokens::new(text);
        (0..tokens.len()).map(|i| tokens.word(i)).collect()
    }

    #[test]
    fn comments_go_and_literals_stay_whole() {
        let text = "fn f<'a>(x: &'a str) { /* a /* b */ \" */ g(\"// \\\" }\", '{', b'\\'', r#\"\"}\"#, 1_u8) // }\n}";
        let want = "fn f < 'a > ( x : & 'a str ) { g ( \"// \\\" }\" , '{' , b'\\'' , r#\"\"}\"# , 1_u8 ) }";
        assert_eq!(words(text).join(" "), want);
        assert_eq!(Tokens::new(text).functions(), [("f", 0..text.len())]);
    }

    #[test]
    fn items_of_tests_are_found_and_taken_out() {
        let text = "use a;\n#[cfg(test)]\nuse b::c;\n#[test]\n#[should_panic]\nfn t() {}\nfn f() -> [u8; 2] {\n    g()\n}\n\n#[cfg(test)]\nmod tests {\n    fn g() {}\n}\n";
        let items = Tokens::new(text).test_items();
        assert_eq!(without(text, &items), "use a;\nfn f() -> [u8; 2] {\n    g()\n}\n\n");
    }
}
