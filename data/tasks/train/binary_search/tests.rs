//! Tests of `binary_search`.

use binary_search::binary_search;

#[test]
fn found() {
    assert_eq!(binary_search(&[1, 3, 5, 7], 5), Ok(2));
    assert_eq!(binary_search(&[1, 3], 1), Ok(0));
}

#[test]
fn between() {
    assert_eq!(binary_search(&[1, 3, 5], 4), Err(2));
}

#[test]
fn ends() {
    assert_eq!(binary_search(&[1, 3], 0), Err(0));
    assert_eq!(binary_search(&[1, 3], 9), Err(2));
}
