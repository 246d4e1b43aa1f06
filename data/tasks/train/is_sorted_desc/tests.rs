//! Tests of `is_sorted_desc`.

use is_sorted_desc::is_sorted_desc;

#[test]
fn falling() {
    assert!(is_sorted_desc(&[5, 3, 1]));
}

#[test]
fn equal() {
    assert!(is_sorted_desc(&[2, 2, 2]));
}

#[test]
fn rising() {
    assert!(!is_sorted_desc(&[1, 2]));
    assert!(!is_sorted_desc(&[3, 1, 2]));
}

#[test]
fn short() {
    assert!(is_sorted_desc(&[]));
    assert!(is_sorted_desc(&[4]));
}
