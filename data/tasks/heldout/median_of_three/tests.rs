//! Tests of `median_of_three`.

use median_of_three::median_of_three;

#[test]
fn sorted() {
    assert_eq!(median_of_three(1, 2, 3), 2);
    assert_eq!(median_of_three(3, 2, 1), 2);
}

#[test]
fn first() {
    assert_eq!(median_of_three(2, 1, 3), 2);
    assert_eq!(median_of_three(2, 3, 1), 2);
}

#[test]
fn last() {
    assert_eq!(median_of_three(1, 3, 2), 2);
    assert_eq!(median_of_three(3, 1, 2), 2);
}
