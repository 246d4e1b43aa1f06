//! Tests of `isqrt`.

use isqrt::isqrt;

#[test]
fn squares() {
    assert_eq!(isqrt(0), 0);
    assert_eq!(isqrt(1), 1);
    assert_eq!(isqrt(144), 12);
}

#[test]
fn between() {
    assert_eq!(isqrt(143), 11);
    assert_eq!(isqrt(8), 2);
}

#[test]
fn largest() {
    assert_eq!(isqrt(u32::MAX), 65_535);
}
