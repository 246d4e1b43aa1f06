//! Tests of `caesar`.

use caesar::caesar;

#[test]
fn moves() {
    assert_eq!(caesar("abc", 1), "bcd");
}

#[test]
fn wraps() {
    assert_eq!(caesar("xyz", 3), "abc");
    assert_eq!(caesar("Z", 1), "A");
}

#[test]
fn keeps() {
    assert_eq!(caesar("a-b!", 2), "c-d!");
}

#[test]
fn full_turn() {
    assert_eq!(caesar("Hello", 26), "Hello");
    assert_eq!(caesar("b", 255), "w");
}
