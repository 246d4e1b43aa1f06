//! Steps of the Collatz sequence until 1, at most `most`.

/// Steps of the Collatz sequence until 1, at most `most`.
pub fn collatz_steps(start: u32, most: u32) -> u32 {
    let mut n = u64::from(start);
    let mut steps = 0;
    while n > 1 && steps < most {
        n = if n % 2 == 0 { n / 2 } else { 3 * n + 1 };
        steps += 1;
    }
    steps
}
