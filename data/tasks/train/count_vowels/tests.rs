//! Tests of `count_vowels`.

use count_vowels::count_vowels;

#[test]
fn lower() {
    assert_eq!(count_vowels("banana"), 3);
}

#[test]
fn upper() {
    assert_eq!(count_vowels("AEIOU"), 5);
}

#[test]
fn none() {
    assert_eq!(count_vowels("rhythm"), 0);
}

#[test]
fn each() {
    assert_eq!(count_vowels("u"), 1);
    assert_eq!(count_vowels("e i o"), 3);
}
