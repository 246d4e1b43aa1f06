//! Tests of `common_prefix`.

use common_prefix::common_prefix;

#[test]
fn some() {
    assert_eq!(common_prefix("flower", "flow"), "flow");
}

#[test]
fn none() {
    assert_eq!(common_prefix("a", "b"), "");
}

#[test]
fn stops() {
    assert_eq!(common_prefix("abxd", "abyd"), "ab");
}
