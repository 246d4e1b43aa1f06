//! The price after `percent` off, rounded down, never below `least`.

/// The price after `percent` off, rounded down, never below `least`.
pub fn apply_discount(price: u32, percent: u32, least: u32) -> u32 {
    let off = u64::from(price) * u64::from(percent.min(100)) / 100;
    let left = u64::from(price) - off;
    if left < u64::from(least) {
        least
    } else {
        left as u32
    }
}
