//! Tests of `run_lengths`.

use run_lengths::run_lengths;

#[test]
fn runs() {
    assert_eq!(run_lengths("aab"), [('a', 2), ('b', 1)]);
}

#[test]
fn again() {
    assert_eq!(run_lengths("aba"), [('a', 1), ('b', 1), ('a', 1)]);
}

#[test]
fn empty() {
    assert_eq!(run_lengths("").len(), 0);
}

#[test]
fn long() {
    assert_eq!(run_lengths("xxxx"), [('x', 4)]);
}
