//! Rust text as a flat list of tokens, so that comments, strings and spaces cannot hide or fake anything.

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// Groups inside each other from which on a file is not read.
const MAX_DEPTH: usize = 256;

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Ident,
    Punct,
    Open,
    Close,
    Literal,
}

/// One token.
#[derive(Debug, Clone)]
pub(crate) struct Token {
    pub(crate) kind: Kind,
    pub(crate) text: String,
    /// Stands between the brackets of an attribute.
    pub(crate) in_attribute: bool,
}

impl Token {
    pub(crate) fn is(&self, text: &str) -> bool {
        self.kind != Kind::Literal && self.text == text
    }
}

/// Reads a file; `None` when it does not fall into tokens or nests too deeply.
pub(crate) fn flatten(text: &str) -> Option<Vec<Token>> {
    flatten_stream(text.parse().ok()?)
}

/// Flattens a stream.
pub(crate) fn flatten_stream(stream: TokenStream) -> Option<Vec<Token>> {
    let mut tokens: Vec<Token> = Vec::new();
    let mut open = vec![(stream.into_iter(), "", false)];
    while let Some((trees, close, attribute)) = open.last_mut() {
        let in_attribute = *attribute;
        let mut push = |kind, text: String| tokens.push(Token { kind, text, in_attribute });
        match trees.next() {
            Some(TokenTree::Ident(ident)) => push(Kind::Ident, ident.to_string()),
            Some(TokenTree::Punct(punct)) => push(Kind::Punct, punct.as_char().to_string()),
            Some(TokenTree::Literal(literal)) => push(Kind::Literal, literal.to_string()),
            Some(TokenTree::Group(group)) => {
                let (start, end) = match group.delimiter() {
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::None => ("", ""),
                };
                let before = |back: usize| tokens.len().checked_sub(back).map(|i| tokens[i].text.as_str());
                let hash = before(1) == Some("#") || (before(1) == Some("!") && before(2) == Some("#"));
                let attribute = in_attribute || (start == "[" && hash);
                tokens.push(Token { kind: Kind::Open, text: start.into(), in_attribute });
                open.push((group.stream().into_iter(), end, attribute));
                if open.len() > MAX_DEPTH {
                    return None;
                }
            }
            None => {
                let close = *close;
                open.pop();
                if let Some((_, _, in_attribute)) = open.last() {
                    tokens.push(Token { kind: Kind::Close, text: close.into(), in_attribute: *in_attribute });
                }
            }
        }
    }
    Some(tokens)
}

/// The text of a plain string literal without escapes.
pub(crate) fn plain_string(literal: &str) -> Option<&str> {
    let inner = literal.strip_prefix('"')?.strip_suffix('"')?;
    (!inner.contains('\\')).then_some(inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> String {
        flatten(text).unwrap().iter().map(|t| t.text.as_str()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn comments_go_and_strings_stay_literals() {
        assert_eq!(words("fn f(/* unsafe */) { g(\"unsafe\") } // unsafe"), "fn f ( ) { g ( \"unsafe\" ) }");
        let tokens = flatten("#[allow(x)] #![allow(y)] a[allow]").unwrap();
        let marked: Vec<&str> = tokens.iter().filter(|t| t.in_attribute).map(|t| t.text.as_str()).collect();
        assert_eq!(marked, ["allow", "(", "x", ")", "allow", "(", "y", ")"]);
    }

    #[test]
    fn what_does_not_nest_or_nests_too_much_is_not_read() {
        assert!(flatten("fn f( {").is_none());
        assert!(flatten(&format!("{}{}", "(".repeat(60_000), ")".repeat(60_000))).is_none());
        assert_eq!(plain_string("\"a.txt\""), Some("a.txt"));
        assert_eq!(plain_string("\"\\x2e\""), None);
        assert_eq!(plain_string("r\"a\""), None);
    }
}
