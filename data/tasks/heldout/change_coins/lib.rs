//! The fewest coins of 25, 10, 5 and 1 for an amount, in that order, taken greedily.

/// The fewest coins of 25, 10, 5 and 1 for an amount, in that order, taken greedily.
pub fn change_coins(amount: u32) -> (u32, u32, u32, u32) {
    let quarters = amount / 25;
    let rest = amount % 25;
    let dimes = rest / 10;
    let rest = rest % 10;
    (quarters, dimes, rest / 5, rest % 5)
}
