//! Tests of `title_case`.

use title_case::title_case;

#[test]
fn words() {
    assert_eq!(title_case("the end"), "The End");
}

#[test]
fn lowers() {
    assert_eq!(title_case("HELLO wORLD"), "Hello World");
}

#[test]
fn spaces() {
    assert_eq!(title_case("a  b"), "A  B");
}

#[test]
fn empty() {
    assert_eq!(title_case(""), "");
}
