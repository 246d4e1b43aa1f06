//! Tests of `snake_case`.

use snake_case::snake_case;

#[test]
fn words() {
    assert_eq!(snake_case("fooBar"), "foo_bar");
}

#[test]
fn leading() {
    assert_eq!(snake_case("FooBar"), "foo_bar");
}

#[test]
fn lower() {
    assert_eq!(snake_case("foo"), "foo");
}

#[test]
fn single() {
    assert_eq!(snake_case("aB"), "a_b");
}
