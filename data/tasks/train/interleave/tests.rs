//! Tests of `interleave`.

use interleave::interleave;

#[test]
fn same() {
    assert_eq!(interleave(&[1, 3], &[2, 4]), [1, 2, 3, 4]);
}

#[test]
fn longer() {
    assert_eq!(interleave(&[1], &[2, 3, 4]), [1, 2, 3, 4]);
    assert_eq!(interleave(&[1, 2, 3], &[9]), [1, 9, 2, 3]);
}

#[test]
fn empty() {
    assert_eq!(interleave(&[], &[]).len(), 0);
}
