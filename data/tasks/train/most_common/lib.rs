//! The character that stands most often; of equals the smallest.

/// The character that stands most often; of equals the smallest.
pub fn most_common(text: &str) -> Option<char> {
    let mut counts = std::collections::BTreeMap::new();
    for c in text.chars() {
        *counts.entry(c).or_insert(0) += 1;
    }
    let mut best: Option<(char, i32)> = None;
    for (c, count) in counts {
        if best.is_none_or(|(_, most)| count > most) {
            best = Some((c, count));
        }
    }
    best.map(|(c, _)| c)
}
