//! Tests of `collatz_steps`.

use collatz_steps::collatz_steps;

#[test]
fn one() {
    assert_eq!(collatz_steps(1, 10), 0);
}

#[test]
fn six() {
    assert_eq!(collatz_steps(6, 100), 8);
}

#[test]
fn cut() {
    assert_eq!(collatz_steps(27, 5), 5);
}

#[test]
fn even() {
    assert_eq!(collatz_steps(8, 100), 3);
}
