//! The largest difference of neighbours in a list; `None` where there are no two.

/// The largest difference of neighbours in a list; `None` where there are no two.
pub fn max_gap(list: &[i32]) -> Option<u32> {
    let mut most = None;
    for i in 1..list.len() {
        let gap = list[i].abs_diff(list[i - 1]);
        if most.is_none_or(|m| gap > m) {
            most = Some(gap);
        }
    }
    most
}
