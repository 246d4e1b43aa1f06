//! The sum of the numbers on the edge of a square of `size` rows filled with 1, 2, 3, ….

/// The sum of the numbers on the edge of a square of `size` rows filled with 1, 2, 3, ….
pub fn spiral_sum(size: u8) -> u64 {
    let size = u64::from(size);
    let mut sum = 0;
    for row in 0..size {
        for column in 0..size {
            let edge = row == 0 || column == 0 || row + 1 == size || column + 1 == size;
            if edge {
                sum += row * size + column + 1;
            }
        }
    }
    sum
}
