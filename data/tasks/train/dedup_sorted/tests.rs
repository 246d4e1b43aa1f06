//! Tests of `dedup_sorted`.

use dedup_sorted::dedup_sorted;

#[test]
fn rows() {
    assert_eq!(dedup_sorted(&[1, 1, 2, 2, 2, 3]), [1, 2, 3]);
}

#[test]
fn again() {
    assert_eq!(dedup_sorted(&[1, 2, 1]), [1, 2, 1]);
}

#[test]
fn empty() {
    assert_eq!(dedup_sorted(&[]).len(), 0);
}
