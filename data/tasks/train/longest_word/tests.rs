//! Tests of `longest_word`.

use longest_word::longest_word;

#[test]
fn plain() {
    assert_eq!(longest_word("a bcd ef"), "bcd");
}

#[test]
fn first_of_equals() {
    assert_eq!(longest_word("one two"), "one");
}

#[test]
fn none() {
    assert_eq!(longest_word("  "), "");
}
