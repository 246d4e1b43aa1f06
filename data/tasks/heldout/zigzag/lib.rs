//! The numbers from `low` to `high`, odd ones negated; none where `low` is above `high`.

/// The numbers from `low` to `high`, odd ones negated; none where `low` is above `high`.
pub fn zigzag(low: i16, high: i16) -> Vec<i32> {
    let mut out = Vec::new();
    let mut n = i32::from(low);
    while n <= i32::from(high) && out.len() < 100 {
        out.push(if n % 2 == 0 { n } else { -n });
        n += 1;
    }
    out
}
