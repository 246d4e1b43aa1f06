//! Tests of `bounding_box`.

use bounding_box::bounding_box;

#[test]
fn two() {
    assert_eq!(bounding_box(&[(1, 5), (3, 2)]), Some((1, 2, 3, 5)));
}

#[test]
fn one() {
    assert_eq!(bounding_box(&[(4, -4)]), Some((4, -4, 4, -4)));
}

#[test]
fn none() {
    assert_eq!(bounding_box(&[]), None);
}
