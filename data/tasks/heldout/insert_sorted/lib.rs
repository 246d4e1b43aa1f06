//! The sorted list with a number put where it belongs.

/// The sorted list with a number put where it belongs.
pub fn insert_sorted(list: &[i32], number: i32) -> Vec<i32> {
    let mut out = Vec::with_capacity(list.len() + 1);
    let mut placed = false;
    for &n in list {
        if !placed && n >= number {
            out.push(number);
            placed = true;
        }
        out.push(n);
    }
    if !placed {
        out.push(number);
    }
    out
}
