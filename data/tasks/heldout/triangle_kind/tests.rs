//! Tests of `triangle_kind`.

use triangle_kind::triangle_kind;

#[test]
fn none() {
    assert_eq!(triangle_kind(1, 2, 3), 0);
    assert_eq!(triangle_kind(9, 2, 3), 0);
    assert_eq!(triangle_kind(2, 9, 3), 0);
}

#[test]
fn equal() {
    assert_eq!(triangle_kind(4, 4, 4), 3);
}

#[test]
fn two() {
    assert_eq!(triangle_kind(4, 4, 3), 2);
    assert_eq!(triangle_kind(3, 4, 4), 2);
    assert_eq!(triangle_kind(4, 3, 4), 2);
}

#[test]
fn all_differ() {
    assert_eq!(triangle_kind(3, 4, 5), 1);
}
