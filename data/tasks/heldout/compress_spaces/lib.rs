//! The text with every run of spaces as one space, and none at its ends.

/// The text with every run of spaces as one space, and none at its ends.
pub fn compress_spaces(text: &str) -> String {
    let mut out = String::new();
    let mut pending = false;
    for c in text.chars() {
        if c == ' ' {
            pending = !out.is_empty();
        } else {
            if pending {
                out.push(' ');
                pending = false;
            }
            out.push(c);
        }
    }
    out
}
