//! The list with its first `by` elements moved to the end.

/// The list with its first `by` elements moved to the end.
pub fn rotate_left(list: &[u8], by: usize) -> Vec<u8> {
    if list.is_empty() {
        return Vec::new();
    }
    let by = by % list.len();
    let mut out = list[by..].to_vec();
    out.extend_from_slice(&list[..by]);
    out
}
