//! Tests of `roman_value`.

use roman_value::roman_value;

#[test]
fn adds() {
    assert_eq!(roman_value("XVI"), Some(16));
    assert_eq!(roman_value("III"), Some(3));
}

#[test]
fn subtracts() {
    assert_eq!(roman_value("XIV"), Some(14));
    assert_eq!(roman_value("XC"), Some(90));
}

#[test]
fn fifty() {
    assert_eq!(roman_value("XLIX"), Some(49));
}

#[test]
fn bad() {
    assert_eq!(roman_value("XQ"), None);
}
