//! The value of a Roman numeral in upper case; `None` of anything else.

/// The value of a Roman numeral in upper case; `None` of anything else.
pub fn roman_value(text: &str) -> Option<u32> {
    let mut total = 0_u32;
    let mut previous = 0;
    for c in text.chars().rev() {
        let value = match c {
            'I' => 1,
            'V' => 5,
            'X' => 10,
            'L' => 50,
            'C' => 100,
            _ => return None,
        };
        if value < previous {
            total = total.checked_sub(value)?;
        } else {
            total = total.checked_add(value)?;
            previous = value;
        }
    }
    Some(total)
}
