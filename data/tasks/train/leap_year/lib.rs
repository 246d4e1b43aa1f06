//! Whether a year of the Gregorian calendar has 366 days.

/// Whether a year of the Gregorian calendar has 366 days.
pub fn leap_year(year: u32) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}
