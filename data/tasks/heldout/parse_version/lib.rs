//! Reads `MAJOR.MINOR.PATCH`; `None` of anything else.

/// Reads `MAJOR.MINOR.PATCH`; `None` of anything else.
pub fn parse_version(text: &str) -> Option<(u16, u16, u16)> {
    let mut parts = text.split('.');
    let mut next = || parts.next()?.parse::<u16>().ok();
    let (major, minor, patch) = (next()?, next()?, next()?);
    if parts.next().is_some() {
        return None;
    }
    Some((major, minor, patch))
}
