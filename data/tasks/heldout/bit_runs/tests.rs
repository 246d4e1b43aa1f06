//! Tests of `bit_runs`.

use bit_runs::bit_runs;

#[test]
fn none() {
    assert_eq!(bit_runs(0), 0);
}

#[test]
fn row() {
    assert_eq!(bit_runs(0b1110_0110), 3);
    assert_eq!(bit_runs(0b1011), 2);
}

#[test]
fn all() {
    assert_eq!(bit_runs(u32::MAX), 32);
}
