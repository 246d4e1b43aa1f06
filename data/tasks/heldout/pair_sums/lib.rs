//! How many pairs of different places have the given sum.

/// How many pairs of different places have the given sum.
pub fn pair_sums(list: &[i32], wanted: i64) -> usize {
    let mut count = 0;
    for (i, a) in list.iter().enumerate() {
        for b in &list[i + 1..] {
            if i64::from(*a) + i64::from(*b) == wanted {
                count += 1;
            }
        }
    }
    count
}
