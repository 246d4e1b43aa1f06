//! Reads `KEY=VALUE`; the key is not empty, the value may be.

/// Reads `KEY=VALUE`; the key is not empty, the value may be.
pub fn parse_pair(line: &str) -> Option<(String, String)> {
    let at = line.find('=')?;
    let key = line[..at].trim();
    if key.is_empty() {
        return None;
    }
    Some((key.to_owned(), line[at + 1..].trim().to_owned()))
}
