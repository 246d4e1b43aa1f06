//! Tests of `prefix_sums`.

use prefix_sums::prefix_sums;

#[test]
fn sums() {
    assert_eq!(prefix_sums(&[1, 2, 3]), [1, 3, 6]);
}

#[test]
fn negative() {
    assert_eq!(prefix_sums(&[5, -7]), [5, -2]);
}

#[test]
fn empty() {
    assert_eq!(prefix_sums(&[]).len(), 0);
}
