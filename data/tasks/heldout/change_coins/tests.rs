//! Tests of `change_coins`.

use change_coins::change_coins;

#[test]
fn zero() {
    assert_eq!(change_coins(0), (0, 0, 0, 0));
}

#[test]
fn mixed() {
    assert_eq!(change_coins(68), (2, 1, 1, 3));
}

#[test]
fn exact() {
    assert_eq!(change_coins(25), (1, 0, 0, 0));
    assert_eq!(change_coins(10), (0, 1, 0, 0));
}
