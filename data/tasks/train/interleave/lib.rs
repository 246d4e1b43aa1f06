//! Elements of two lists in turn, then what is left of the longer one.

/// Elements of two lists in turn, then what is left of the longer one.
pub fn interleave(a: &[u8], b: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for i in 0..a.len().max(b.len()) {
        if let Some(x) = a.get(i) {
            out.push(*x);
        }
        if let Some(y) = b.get(i) {
            out.push(*y);
        }
    }
    out
}
