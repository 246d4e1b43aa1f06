//! Tests of `compress_spaces`.

use compress_spaces::compress_spaces;

#[test]
fn inner() {
    assert_eq!(compress_spaces("a  b"), "a b");
}

#[test]
fn ends() {
    assert_eq!(compress_spaces("  a "), "a");
}

#[test]
fn empty() {
    assert_eq!(compress_spaces("   "), "");
}

#[test]
fn same() {
    assert_eq!(compress_spaces("a b c"), "a b c");
}
