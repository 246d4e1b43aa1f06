//! Tests of `seconds_to_clock`.

use seconds_to_clock::seconds_to_clock;

#[test]
fn zero() {
    assert_eq!(seconds_to_clock(0), "0:00:00");
}

#[test]
fn minute() {
    assert_eq!(seconds_to_clock(61), "0:01:01");
}

#[test]
fn hour() {
    assert_eq!(seconds_to_clock(3599), "0:59:59");
    assert_eq!(seconds_to_clock(3600), "1:00:00");
}

#[test]
fn days() {
    assert_eq!(seconds_to_clock(90_061), "25:01:01");
}
