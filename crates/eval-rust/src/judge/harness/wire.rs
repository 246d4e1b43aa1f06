//! Values as words: numbers, `x` and hexadecimal UTF-8, a length before elements, `0` or `1 value` for options.

use std::str::SplitWhitespace;

/// Reads a value from words.
pub trait Take {
    /// Takes as many words as the value has.
    fn take(words: &mut SplitWhitespace<'_>) -> Self;
}

/// Writes a value as words.
pub trait Put {
    /// Appends the words, each with a space before it.
    fn put(&self, out: &mut String);
}

macro_rules! numbers {
    ($($t:ty)*) => {$(
        impl Take for $t {
            fn take(words: &mut SplitWhitespace<'_>) -> Self {
                words.next().expect("a word").parse().expect("a number")
            }
        }
        impl Put for $t {
            fn put(&self, out: &mut String) {
                out.push(' ');
                out.push_str(&self.to_string());
            }
        }
    )*};
}
numbers!(u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize bool);

impl Take for String {
    fn take(words: &mut SplitWhitespace<'_>) -> Self {
        let word = &words.next().expect("a word")[1..];
        let byte = |i: usize| u8::from_str_radix(&word[i..i + 2], 16).expect("two hexadecimal digits");
        String::from_utf8((0..word.len()).step_by(2).map(byte).collect()).expect("UTF-8")
    }
}

impl Put for str {
    fn put(&self, out: &mut String) {
        out.push_str(" x");
        self.bytes().for_each(|byte| out.push_str(&format!("{byte:02x}")));
    }
}

impl Put for String {
    fn put(&self, out: &mut String) {
        self.as_str().put(out);
    }
}

impl Take for char {
    fn take(words: &mut SplitWhitespace<'_>) -> Self {
        String::take(words).chars().next().expect("a character")
    }
}

impl Put for char {
    fn put(&self, out: &mut String) {
        self.to_string().put(out);
    }
}

impl<T: Take> Take for Vec<T> {
    fn take(words: &mut SplitWhitespace<'_>) -> Self {
        (0..usize::take(words)).map(|_| T::take(words)).collect()
    }
}

impl<T: Put> Put for [T] {
    fn put(&self, out: &mut String) {
        self.len().put(out);
        self.iter().for_each(|item| item.put(out));
    }
}

impl<T: Put> Put for Vec<T> {
    fn put(&self, out: &mut String) {
        self.as_slice().put(out);
    }
}

impl<T: Take> Take for Option<T> {
    fn take(words: &mut SplitWhitespace<'_>) -> Self {
        (words.next().expect("a word") == "1").then(|| T::take(words))
    }
}

impl<T: Put> Put for Option<T> {
    fn put(&self, out: &mut String) {
        out.push_str(if self.is_some() { " 1" } else { " 0" });
        if let Some(value) = self {
            value.put(out);
        }
    }
}

/// A value or that there was an error, whatever error.
impl<T: Put, E> Put for Result<T, E> {
    fn put(&self, out: &mut String) {
        self.as_ref().ok().map(Same).put(out);
    }
}

struct Same<'a, T>(&'a T);

impl<T: Put> Put for Same<'_, T> {
    fn put(&self, out: &mut String) {
        self.0.put(out);
    }
}

impl Take for () {
    fn take(_: &mut SplitWhitespace<'_>) -> Self {}
}

impl Put for () {
    fn put(&self, _: &mut String) {}
}

macro_rules! tuples {
    ($(($($t:ident $i:tt)*))*) => {$(
        impl<$($t: Take),*> Take for ($($t,)*) {
            fn take(words: &mut SplitWhitespace<'_>) -> Self {
                ($($t::take(words),)*)
            }
        }
        impl<$($t: Put),*> Put for ($($t,)*) {
            fn put(&self, out: &mut String) {
                $(self.$i.put(out);)*
            }
        }
    )*};
}
tuples!((A 0) (A 0 B 1) (A 0 B 1 C 2) (A 0 B 1 C 2 D 3));
