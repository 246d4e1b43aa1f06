//! The list without elements that equal the one before.

/// The list without elements that equal the one before.
pub fn dedup_sorted(list: &[i32]) -> Vec<i32> {
    let mut out = Vec::new();
    for &n in list {
        if out.last() != Some(&n) {
            out.push(n);
        }
    }
    out
}
