//! Text of strangers for a terminal or a log.

/// The text with every control character but the end of a line, and every character that changes the direction of others, written
/// as its number. So it cannot move a cursor, hide a part or look like something else.
#[must_use]
pub fn shown(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let turns =
            matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if turns || (c.is_control() && c != '\n') {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t7_controls_become_numbers_and_everything_else_stays() {
        let text = "a\u{1b}[2J\u{9b}1m\0\r\u{7f}\tb\n\u{202e}é🦀 \"\\";
        let want = "a\\u{1b}[2J\\u{9b}1m\\u{0}\\u{d}\\u{7f}\\u{9}b\n\\u{202e}é🦀 \"\\";
        assert_eq!(shown(text), want);
        assert_eq!(shown(want), want);
    }
}
