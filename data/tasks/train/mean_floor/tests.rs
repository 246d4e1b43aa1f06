//! Tests of `mean_floor`.

use mean_floor::mean_floor;

#[test]
fn whole() {
    assert_eq!(mean_floor(&[1, 2, 3]), Some(2));
}

#[test]
fn down() {
    assert_eq!(mean_floor(&[1, 2]), Some(1));
    assert_eq!(mean_floor(&[-1, -2]), Some(-2));
}

#[test]
fn none() {
    assert_eq!(mean_floor(&[]), None);
}

#[test]
fn one() {
    assert_eq!(mean_floor(&[7]), Some(7));
}
