//! Tests of `parse_pair`.

use parse_pair::parse_pair;

#[test]
fn pair() {
    assert_eq!(parse_pair("a = b"), Some(("a".to_owned(), "b".to_owned())));
}

#[test]
fn second_sign() {
    assert_eq!(
        parse_pair("a=b=c"),
        Some(("a".to_owned(), "b=c".to_owned()))
    );
}

#[test]
fn no_sign() {
    assert_eq!(parse_pair("ab"), None);
}

#[test]
fn no_key() {
    assert_eq!(parse_pair(" =b"), None);
}

#[test]
fn no_value() {
    assert_eq!(parse_pair("a="), Some(("a".to_owned(), String::new())));
}
