//! Whether a text is a time of day as `HH:MM`.

/// Whether a text is a time of day as `HH:MM`.
pub fn valid_time(text: &str) -> bool {
    let Some((hours, minutes)) = text.split_once(':') else {
        return false;
    };
    let number = |part: &str| {
        let digits = part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit());
        if digits {
            part.parse::<u8>().ok()
        } else {
            None
        }
    };
    match (number(hours), number(minutes)) {
        (Some(hours), Some(minutes)) => hours < 24 && minutes < 60,
        _ => false,
    }
}
