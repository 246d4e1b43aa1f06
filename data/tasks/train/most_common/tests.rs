//! Tests of `most_common`.

use most_common::most_common;

#[test]
fn clear() {
    assert_eq!(most_common("banana"), Some('a'));
}

#[test]
fn tie() {
    assert_eq!(most_common("ba"), Some('a'));
}

#[test]
fn none() {
    assert_eq!(most_common(""), None);
}
