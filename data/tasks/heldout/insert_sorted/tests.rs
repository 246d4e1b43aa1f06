//! Tests of `insert_sorted`.

use insert_sorted::insert_sorted;

#[test]
fn middle() {
    assert_eq!(insert_sorted(&[1, 5], 3), [1, 3, 5]);
}

#[test]
fn ends() {
    assert_eq!(insert_sorted(&[2], 1), [1, 2]);
    assert_eq!(insert_sorted(&[2], 3), [2, 3]);
}

#[test]
fn empty() {
    assert_eq!(insert_sorted(&[], 4), [4]);
}

#[test]
fn equal() {
    assert_eq!(insert_sorted(&[1, 2, 3], 2), [1, 2, 2, 3]);
}
