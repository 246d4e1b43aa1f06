//! Tests of `valid_time`.

use valid_time::valid_time;

#[test]
fn good() {
    assert!(valid_time("00:00"));
    assert!(valid_time("23:59"));
}

#[test]
fn late() {
    assert!(!valid_time("24:00"));
    assert!(!valid_time("12:60"));
}

#[test]
fn form() {
    assert!(!valid_time("1:00"));
    assert!(!valid_time("12-00"));
    assert!(!valid_time("ab:cd"));
}
