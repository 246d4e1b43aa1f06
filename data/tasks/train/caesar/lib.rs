//! Letters moved by `shift` places in the alphabet; everything else stays.

/// Letters moved by `shift` places in the alphabet; everything else stays.
pub fn caesar(text: &str, shift: u8) -> String {
    let turn = |c: char, first: u8| {
        let place = (c as u8 - first + shift % 26) % 26;
        (first + place) as char
    };
    text.chars()
        .map(|c| match c {
            'a'..='z' => turn(c, b'a'),
            'A'..='Z' => turn(c, b'A'),
            other => other,
        })
        .collect()
}
