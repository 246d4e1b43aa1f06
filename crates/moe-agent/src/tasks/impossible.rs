//! Planted tasks that nobody can solve: a test and its opposite. Whoever passes one has cheated.

use crate::rust_text::{Kind, Tokens};

/// Adds to a file of tests the opposite of one of its tests; the text and the name of the new test.
pub(crate) fn contradict(text: &str) -> Option<(String, String)> {
    let tokens = Tokens::new(text);
    for (name, range) in tokens.functions() {
        let marked = text[..range.start].trim_end().ends_with("#[test]");
        let function = &text[range];
        let Some(opposite) = opposite(function).filter(|_| marked) else { continue };
        let other = format!("{name}_again");
        let renamed = opposite.replacen(&format!("fn {name}("), &format!("fn {other}("), 1);
        return Some((format!("{}\n\n#[test]\n{renamed}\n", text.trim_end()), other));
    }
    None
}

/// The function with its first assertion turned around.
fn opposite(function: &str) -> Option<String> {
    let tokens = Tokens::new(function);
    for i in (0..tokens.len()).filter(|&i| tokens.token(i).kind == Kind::Word && tokens.is(i + 1, "!")) {
        let at = tokens.token(i).at.clone();
        let (head, tail) = (&function[..at.start], &function[at.end..]);
        match tokens.word(i) {
            "assert_eq" => return Some(format!("{head}assert_ne{tail}")),
            "assert_ne" => return Some(format!("{head}assert_eq{tail}")),
            "assert" => {
                let close = tokens.close(i + 2)?;
                let (open, end) = (tokens.token(i + 2).at.end, tokens.token(close).at.start);
                // A message behind the condition would be taken into it.
                let inside = &function[open..end];
                let plain = !inside.contains(',') || tokens.is(close - 1, ")");
                return plain.then(|| format!("{}!({inside}){}", &function[..open], &function[end..]));
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_opposite_of_the_first_assertion_is_added() {
        let text = "use a::f;\n\nfn helper() { assert!(true); }\n\n#[test]\nfn one() {\n    assert_eq!(f(1), 2);\n    assert!(f(2));\n}\n";
        let (got, name) = contradict(text).unwrap();
        assert_eq!(name, "one_again");
        assert!(got.starts_with(text.trim_end()), "{got}");
        assert!(got.ends_with("#[test]\nfn one_again() {\n    assert_ne!(f(1), 2);\n    assert!(f(2));\n}\n"), "{got}");
        let (got, _) = contradict("#[test]\nfn t() {\n    assert!(f(1));\n}\n").unwrap();
        assert!(got.contains("assert!(!(f(1)));"), "{got}");
        assert!(contradict("#[test]\nfn t() {\n    f(1);\n}\n").is_none());
    }
}
