//! The place of a number in a sorted list, or the place where it belongs.

/// The place of a number in a sorted list, or the place where it belongs.
pub fn binary_search(list: &[i32], wanted: i32) -> Result<usize, usize> {
    let (mut low, mut high) = (0, list.len());
    while low < high {
        let middle = low + (high - low) / 2;
        if list[middle] == wanted {
            return Ok(middle);
        }
        if list[middle] < wanted {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Err(low)
}
