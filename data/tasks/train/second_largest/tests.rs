//! Tests of `second_largest`.

use second_largest::second_largest;

#[test]
fn plain() {
    assert_eq!(second_largest(&[1, 5, 3]), Some(3));
}

#[test]
fn falling() {
    assert_eq!(second_largest(&[9, 4, 2]), Some(4));
}

#[test]
fn equal() {
    assert_eq!(second_largest(&[5, 5]), None);
    assert_eq!(second_largest(&[5, 5, 2]), Some(2));
}

#[test]
fn few() {
    assert_eq!(second_largest(&[1]), None);
    assert_eq!(second_largest(&[]), None);
}
