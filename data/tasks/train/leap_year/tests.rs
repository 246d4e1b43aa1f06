//! Tests of `leap_year`.

use leap_year::leap_year;

#[test]
fn plain() {
    assert!(!leap_year(2023));
}

#[test]
fn fourth() {
    assert!(leap_year(2024));
}

#[test]
fn hundredth() {
    assert!(!leap_year(1900));
}

#[test]
fn four_hundredth() {
    assert!(leap_year(2000));
}
