//! The sums of the first 1, 2, … numbers, wrapping around.

/// The sums of the first 1, 2, … numbers, wrapping around.
pub fn prefix_sums(numbers: &[i32]) -> Vec<i32> {
    let mut sum = 0_i32;
    let mut out = Vec::with_capacity(numbers.len());
    for n in numbers {
        sum = sum.wrapping_add(*n);
        out.push(sum);
    }
    out
}
