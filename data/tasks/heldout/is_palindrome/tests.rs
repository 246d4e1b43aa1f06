//! Tests of `is_palindrome`.

use is_palindrome::is_palindrome;

#[test]
fn plain() {
    assert!(is_palindrome("level"));
    assert!(!is_palindrome("lever"));
}

#[test]
fn case_and_marks() {
    assert!(is_palindrome("A man, a plan, a canal: Panama"));
}

#[test]
fn empty() {
    assert!(is_palindrome(""));
}

#[test]
fn two() {
    assert!(!is_palindrome("ab"));
}
