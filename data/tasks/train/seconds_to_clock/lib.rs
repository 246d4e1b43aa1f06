//! Seconds as `H:MM:SS`.

/// Seconds as `H:MM:SS`.
pub fn seconds_to_clock(seconds: u32) -> String {
    let hours = seconds / 3600;
    let minutes = seconds % 3600 / 60;
    let seconds = seconds % 60;
    format!("{hours}:{minutes:02}:{seconds:02}")
}
