//! Tests of `rotate_left`.

use rotate_left::rotate_left;

#[test]
fn by_one() {
    assert_eq!(rotate_left(&[1, 2, 3], 1), [2, 3, 1]);
}

#[test]
fn around() {
    assert_eq!(rotate_left(&[1, 2, 3], 4), [2, 3, 1]);
    assert_eq!(rotate_left(&[1, 2], 2), [1, 2]);
}

#[test]
fn empty() {
    assert_eq!(rotate_left(&[], 3).len(), 0);
}
