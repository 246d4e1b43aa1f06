//! The number in hexadecimal, in lower case and without leading zeros.

/// The number in hexadecimal, in lower case and without leading zeros.
pub fn hex_digits(number: u32) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut rest = number;
    let mut out = Vec::new();
    loop {
        out.push(DIGITS[(rest % 16) as usize] as char);
        rest /= 16;
        if rest == 0 {
            break;
        }
    }
    out.iter().rev().collect()
}
