//! Tests of `find_all`.

use find_all::find_all;

#[test]
fn several() {
    assert_eq!(find_all("abcab", "ab"), [0, 3]);
}

#[test]
fn overlap() {
    assert_eq!(find_all("aaa", "aa"), [0, 1]);
}

#[test]
fn none() {
    assert_eq!(find_all("abc", "x").len(), 0);
    assert_eq!(find_all("abc", "").len(), 0);
}
