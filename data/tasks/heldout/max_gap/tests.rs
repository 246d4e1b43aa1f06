//! Tests of `max_gap`.

use max_gap::max_gap;

#[test]
fn plain() {
    assert_eq!(max_gap(&[1, 4, 6]), Some(3));
}

#[test]
fn falling() {
    assert_eq!(max_gap(&[9, 2]), Some(7));
}

#[test]
fn few() {
    assert_eq!(max_gap(&[5]), None);
    assert_eq!(max_gap(&[]), None);
}

#[test]
fn later() {
    assert_eq!(max_gap(&[1, 2, 9]), Some(7));
}
