//! 0 where three sides make no triangle, else 3, 2 or 1 for how many of them are equal.

/// 0 where three sides make no triangle, else 3, 2 or 1 for how many of them are equal.
pub fn triangle_kind(a: u32, b: u32, c: u32) -> u8 {
    let (x, y, z) = (u64::from(a), u64::from(b), u64::from(c));
    if x + y <= z || y + z <= x || x + z <= y {
        return 0;
    }
    if a == b && b == c {
        3
    } else if a == b || b == c || a == c {
        2
    } else {
        1
    }
}
