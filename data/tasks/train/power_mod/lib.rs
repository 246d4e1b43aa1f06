//! `base` to the power of `exponent`, modulo `modulus`; 0 modulo 0 and 1.

/// `base` to the power of `exponent`, modulo `modulus`; 0 modulo 0 and 1.
pub fn power_mod(base: u32, exponent: u32, modulus: u32) -> u32 {
    if modulus < 2 {
        return 0;
    }
    let modulus = u64::from(modulus);
    let mut base = u64::from(base) % modulus;
    let mut exponent = exponent;
    let mut result = 1;
    while exponent > 0 {
        if exponent & 1 == 1 {
            result = result * base % modulus;
        }
        base = base * base % modulus;
        exponent >>= 1;
    }
    result as u32
}
