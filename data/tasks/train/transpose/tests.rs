//! Tests of `transpose`.

use transpose::transpose;

#[test]
fn square() {
    assert_eq!(
        transpose(&[vec![1, 2], vec![3, 4]]),
        [vec![1, 3], vec![2, 4]]
    );
}

#[test]
fn short() {
    assert_eq!(transpose(&[vec![1], vec![2, 3]]), [vec![1, 2], vec![0, 3]]);
}

#[test]
fn empty() {
    assert_eq!(transpose(&[]).len(), 0);
}
