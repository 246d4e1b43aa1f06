//! Tests of `power_mod`.

use power_mod::power_mod;

#[test]
fn small() {
    assert_eq!(power_mod(3, 4, 100), 81);
    assert_eq!(power_mod(2, 10, 1000), 24);
}

#[test]
fn zeroth() {
    assert_eq!(power_mod(5, 0, 7), 1);
}

#[test]
fn degenerate() {
    assert_eq!(power_mod(5, 3, 1), 0);
    assert_eq!(power_mod(5, 3, 0), 0);
}

#[test]
fn large() {
    assert_eq!(power_mod(4_000_000_000, 2, 4_294_967_295), 1_414_228_795);
}
