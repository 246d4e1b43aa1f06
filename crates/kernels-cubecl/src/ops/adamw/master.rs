//! A bf16 parameter and 16 more bits that together are its exact f32 value.
//!
//! The working value is the bf16 number nearest to the f32 one (of two equally near the one further from zero), and the
//! remainder is the f32 number's lower half. Read as a signed number it is what the working value lacks, so
//! ```text
//! f32 bits = (bf16 bits << 16) + sign-extended remainder
//! ```
//! holds bit for bit, through carries into the exponent, into infinity and for subnormal numbers. Only a NaN is made the plain
//! one first, because rounding up the largest would give −0. Two remainders lie in an i32, the first in the low half.

use half::bf16;

/// The plain NaN.
const NAN: u32 = 0x7FC0_0000;

/// Bits of an f32 number, all NaNs made one.
fn bits(x: f32) -> u32 {
    if x.is_nan() { NAN } else { x.to_bits() }
}

/// `(working value, remainder)` of an f32 number.
pub fn split(x: f32) -> (bf16, u16) {
    let bits = bits(x);
    // No carry out of the top: the largest bit pattern here is that of the plain NaN with a sign, or of −∞.
    (bf16::from_bits(((bits + 0x8000) >> 16) as u16), bits as u16)
}

/// The f32 number of a working value and its remainder.
pub fn join(value: bf16, remainder: u16) -> f32 {
    let low = i32::from(remainder.cast_signed()).cast_unsigned();
    f32::from_bits((u32::from(value.to_bits()) << 16).wrapping_add(low))
}

/// A bf16 number next to `x`, the upper one with the probability that makes the mean `x`; `random` has 16 bits.
pub fn round_stochastically(x: f32, random: u32) -> bf16 {
    bf16::from_bits(((bits(x) + (random & 0xFFFF)) >> 16) as u16)
}

/// The random bits of [`round_stochastically`], from those of the element.
pub(crate) fn dither(random: u32) -> u32 {
    random.wrapping_mul(super::packed::SPREAD) >> 16
}

/// Working values and packed remainders of f32 numbers, `n` and `⌈n/2⌉` of them.
pub fn split_all(values: &[f32]) -> (Vec<bf16>, Vec<i32>) {
    let (working, remainders): (Vec<_>, Vec<_>) = values.iter().map(|&x| split(x)).unzip();
    let word = |pair: &[u16]| i32::from(pair[0]) | i32::from(pair.get(1).copied().unwrap_or(0)) << 16;
    (working, remainders.chunks(2).map(word).collect())
}

/// The f32 numbers of working values and their packed remainders.
pub fn join_all(working: &[bf16], remainders: &[i32]) -> Vec<f32> {
    assert_eq!(remainders.len(), working.len().div_ceil(2), "master: two remainders lie in a word");
    working.iter().enumerate().map(|(i, &value)| join(value, (remainders[i / 2] >> (16 * (i % 2))) as u16)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(x: f32) {
        let (value, remainder) = split(x);
        let back = join(value, remainder);
        assert!(back.to_bits() == x.to_bits() || (x.is_nan() && back.is_nan()), "{x:e} came back as {back:e}");
        assert_eq!(value.is_nan(), x.is_nan(), "{x:e} works as {value:e}");
        let nearest = bf16::from_f32(x);
        let tie = x.to_bits() & 0xFFFF == 0x8000;
        assert!(x.is_nan() || tie || value.to_bits() == nearest.to_bits(), "{x:e} works as {value:e}, not {nearest:e}");
    }

    #[test]
    fn special_numbers_come_back() {
        let carries = [0x3F7F_FFFF, 0x3F80_7FFF, 0x3F80_8000, 0x3F80_8001, 0x007F_FFFF, 0x0000_8000, 0x0000_0001];
        let ends = [0x7F7F_FFFF, 0x7F80_0000, 0x7F80_0001, 0x7FC0_0000, 0x7FFF_FFFF, 0];
        for bits in carries.into_iter().chain(ends) {
            check(f32::from_bits(bits));
            check(f32::from_bits(bits | 0x8000_0000));
        }
    }

    #[test]
    fn the_random_neighbour_is_right_on_average() {
        let x = 1.0 + 0.3 / 128.0;
        let ups = (0..=0xFFFF).filter(|&random| round_stochastically(x, random) > bf16::ONE).count();
        assert!((ups as f64 / 65536.0 - 0.3).abs() < 1e-4, "{ups}");
        for special in [0.0, -1.0, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(round_stochastically(special, 0xFFFF).to_f32(), special);
        }
        assert!(round_stochastically(f32::from_bits(u32::MAX), 0xFFFF).is_nan());
    }

    proptest! {
        #[test]
        fn every_number_comes_back(bits: u32) {
            check(f32::from_bits(bits));
        }

        #[test]
        fn packed_numbers_come_back(values in proptest::collection::vec(-2.0f32..2.0, 0..9)) {
            let (working, remainders) = split_all(&values);
            prop_assert_eq!(join_all(&working, &remainders), values);
        }
    }
}
