//! The second largest of the different numbers; `None` where there are not two.

/// The second largest of the different numbers; `None` where there are not two.
pub fn second_largest(numbers: &[i32]) -> Option<i32> {
    let mut first = None;
    let mut second = None;
    for &n in numbers {
        if first.is_none_or(|f| n > f) {
            second = first;
            first = Some(n);
        } else if Some(n) != first && second.is_none_or(|s| n > s) {
            second = Some(n);
        }
    }
    second
}
