//! Every word with its first letter in upper case and the rest in lower case.

/// Every word with its first letter in upper case and the rest in lower case.
pub fn title_case(text: &str) -> String {
    let mut out = String::new();
    let mut start = true;
    for c in text.chars() {
        if start {
            out.push(c.to_ascii_uppercase());
        } else {
            out.push(c.to_ascii_lowercase());
        }
        start = c == ' ';
    }
    out
}
