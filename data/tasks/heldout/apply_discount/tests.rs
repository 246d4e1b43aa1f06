//! Tests of `apply_discount`.

use apply_discount::apply_discount;

#[test]
fn plain() {
    assert_eq!(apply_discount(200, 10, 0), 180);
}

#[test]
fn least() {
    assert_eq!(apply_discount(100, 90, 50), 50);
    assert_eq!(apply_discount(100, 50, 50), 50);
}

#[test]
fn capped() {
    assert_eq!(apply_discount(80, 150, 0), 0);
}
