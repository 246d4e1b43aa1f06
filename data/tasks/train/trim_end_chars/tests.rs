//! Tests of `trim_end_chars`.

use trim_end_chars::trim_end_chars;

#[test]
fn some() {
    assert_eq!(trim_end_chars("axx", 'x'), ("a".to_owned(), 2));
}

#[test]
fn none() {
    assert_eq!(trim_end_chars("xa", 'x'), ("xa".to_owned(), 0));
}

#[test]
fn all() {
    assert_eq!(trim_end_chars("xx", 'x'), (String::new(), 2));
}
