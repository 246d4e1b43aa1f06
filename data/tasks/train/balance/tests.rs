//! Tests of `balance`.

use balance::balance;

#[test]
fn nested() {
    assert_eq!(balance("(a(b))"), Some(2));
    assert_eq!(balance("()()"), Some(1));
}

#[test]
fn none() {
    assert_eq!(balance("ab"), Some(0));
}

#[test]
fn open() {
    assert_eq!(balance("(()"), None);
}

#[test]
fn closed_first() {
    assert_eq!(balance(")("), None);
}
