//! Tests of `split_chunks`.

use split_chunks::split_chunks;

#[test]
fn even() {
    assert_eq!(split_chunks(&[1, 2, 3, 4], 2), [vec![1, 2], vec![3, 4]]);
}

#[test]
fn rest() {
    assert_eq!(split_chunks(&[1, 2, 3], 2), [vec![1, 2], vec![3]]);
}

#[test]
fn zero() {
    assert_eq!(split_chunks(&[1, 2], 0), [vec![1], vec![2]]);
}

#[test]
fn large() {
    assert_eq!(split_chunks(&[1], 9), [vec![1]]);
}
