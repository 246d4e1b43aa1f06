//! Whether the digits pass the Luhn check; spaces are skipped, at least two digits are needed.

/// Whether the digits pass the Luhn check; spaces are skipped, at least two digits are needed.
pub fn luhn(text: &str) -> bool {
    let mut sum = 0;
    let mut count = 0;
    for c in text.chars().rev().filter(|c| *c != ' ') {
        let Some(digit) = c.to_digit(10) else {
            return false;
        };
        let value = if count % 2 == 1 { digit * 2 } else { digit };
        sum += if value > 9 { value - 9 } else { value };
        count += 1;
    }
    count > 1 && sum % 10 == 0
}
