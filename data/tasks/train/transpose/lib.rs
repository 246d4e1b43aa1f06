//! Rows as columns; rows that are too short count as ending in 0.

/// Rows as columns; rows that are too short count as ending in 0.
pub fn transpose(rows: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let width = rows.iter().map(Vec::len).max().unwrap_or(0);
    (0..width)
        .map(|x| {
            rows.iter()
                .map(|row| row.get(x).copied().unwrap_or(0))
                .collect()
        })
        .collect()
}
