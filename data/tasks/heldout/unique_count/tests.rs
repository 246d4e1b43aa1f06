//! Tests of `unique_count`.

use unique_count::unique_count;

#[test]
fn some() {
    assert_eq!(unique_count(&[3, 1, 3]), 2);
}

#[test]
fn all() {
    assert_eq!(unique_count(&[1, 2, 3]), 3);
}

#[test]
fn same() {
    assert_eq!(unique_count(&[7, 7]), 1);
}

#[test]
fn empty() {
    assert_eq!(unique_count(&[]), 0);
}
