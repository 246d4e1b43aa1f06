//! The characters in their order, each with how often it stands in a row.

/// The characters in their order, each with how often it stands in a row.
pub fn run_lengths(text: &str) -> Vec<(char, usize)> {
    let mut runs: Vec<(char, usize)> = Vec::new();
    for c in text.chars() {
        match runs.last_mut() {
            Some((last, count)) if *last == c => *count += 1,
            _ => runs.push((c, 1)),
        }
    }
    runs
}
