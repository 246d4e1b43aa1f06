//! Tests of `parse_version`.

use parse_version::parse_version;

#[test]
fn plain() {
    assert_eq!(parse_version("1.2.3"), Some((1, 2, 3)));
}

#[test]
fn short() {
    assert_eq!(parse_version("1.2"), None);
}

#[test]
fn long() {
    assert_eq!(parse_version("1.2.3.4"), None);
}

#[test]
fn letters() {
    assert_eq!(parse_version("1.x.3"), None);
}
