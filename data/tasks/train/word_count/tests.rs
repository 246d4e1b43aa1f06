//! Tests of `word_count`.

use word_count::word_count;

#[test]
fn two_lines() {
    assert_eq!(word_count("a b\nc"), (3, 2));
}

#[test]
fn blank() {
    assert_eq!(word_count("a\n\n  \nb"), (2, 2));
}

#[test]
fn empty() {
    assert_eq!(word_count(""), (0, 0));
}
