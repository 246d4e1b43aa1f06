//! Tests of `hex_digits`.

use hex_digits::hex_digits;

#[test]
fn zero() {
    assert_eq!(hex_digits(0), "0");
}

#[test]
fn one_digit() {
    assert_eq!(hex_digits(15), "f");
}

#[test]
fn many() {
    assert_eq!(hex_digits(255), "ff");
    assert_eq!(hex_digits(4096), "1000");
}

#[test]
fn all() {
    assert_eq!(hex_digits(u32::MAX), "ffffffff");
}
