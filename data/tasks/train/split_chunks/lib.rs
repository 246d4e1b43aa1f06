//! The list in pieces of `size`, the last one shorter where it must be.

/// The list in pieces of `size`, the last one shorter where it must be.
pub fn split_chunks(list: &[u16], size: usize) -> Vec<Vec<u16>> {
    let size = size.max(1);
    let mut out = Vec::new();
    let mut start = 0;
    while start < list.len() {
        let end = start.saturating_add(size).min(list.len());
        out.push(list[start..end].to_vec());
        start = end;
    }
    out
}
