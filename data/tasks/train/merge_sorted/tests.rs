//! Tests of `merge_sorted`.

use merge_sorted::merge_sorted;

#[test]
fn mixed() {
    assert_eq!(merge_sorted(&[1, 4], &[2, 3, 5]), [1, 2, 3, 4, 5]);
}

#[test]
fn empty() {
    assert_eq!(merge_sorted(&[], &[1]), [1]);
    assert_eq!(merge_sorted(&[2], &[]), [2]);
}

#[test]
fn equal() {
    assert_eq!(merge_sorted(&[1, 1], &[1]), [1, 1, 1]);
}
