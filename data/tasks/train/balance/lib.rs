//! The largest depth of round brackets, or `None` where they do not match.

/// The largest depth of round brackets, or `None` where they do not match.
pub fn balance(text: &str) -> Option<u32> {
    let mut depth = 0_u32;
    let mut most = 0;
    for c in text.chars() {
        if c == '(' {
            depth += 1;
            most = most.max(depth);
        } else if c == ')' {
            depth = depth.checked_sub(1)?;
        }
    }
    if depth == 0 { Some(most) } else { None }
}
