//! The length of the longest row of ones in the binary form.

/// The length of the longest row of ones in the binary form.
pub fn bit_runs(number: u32) -> u32 {
    let mut longest = 0;
    let mut current = 0;
    for i in 0..32 {
        if number >> i & 1 == 1 {
            current += 1;
            longest = longest.max(current);
        } else {
            current = 0;
        }
    }
    longest
}
