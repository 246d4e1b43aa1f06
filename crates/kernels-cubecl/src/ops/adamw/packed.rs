//! Moments in 8 bits: blocks of 256 consecutive elements with one f32 scale each, rounded stochastically.
//!
//! A block's scale is its largest magnitude. An element is stored as a small float of `x / scale`, with 4 exponent bits:
//!
//! | moment | value | code, high bit first | of the code 0 |
//! |---|---|---|---|
//! | first | `m / scale` in −1..1 | sign, 4 exponent bits, 3 mantissa bits | zero |
//! | second | `√v / scale` in 0..1 | 4 exponent bits, 4 mantissa bits | zero, and only for `v = 0` |
//!
//! The largest exponent is that of 1.0, so the numbers reach down to 2⁻¹⁴ with full mantissa and from there to 0 in even
//! steps. The root of `v` is stored because it has half the exponents, and a positive `v` never becomes 0 because `m / √v`
//! would explode. Four codes lie in an i32, the first in the low byte, and the last block is padded with zeros.
//!
//! A scale below the normal f32 numbers is stored as 0, with its whole block. A block with an infinity or a NaN gets that as
//! its scale and the codes 0, so that all of it reads as NaN: damage is seen, not spread by a code that stands for something else.
//!
//! # Why stochastic rounding
//! A step changes `√v` by about `(1 − beta2)/2` of itself. That is less than half a unit of the mantissa, so rounding to
//! nearest would never let a moment decay. Rounded up or down with the right probabilities, it decays on average.
//! The random bits are a hash of the parameter's seed, the step and the element's index: 16 of them for each moment, in the
//! middle of their cells, added below the last kept bit. A run is repeatable, and the result depends on no launch shape.

/// Elements of a block.
pub const BLOCK: usize = 256;
/// Codes of one i32.
pub const CODES: usize = 4;

/// Smallest normal value of both formats.
pub(crate) const SMALLEST: f32 = 1.0 / (1 << 14) as f32;
/// Mantissa bits of f32 that the first moment does not keep.
pub(crate) const M_CUT: u32 = 20;
/// Mantissa bits of f32 that the second moment does not keep.
pub(crate) const V_CUT: u32 = 19;
/// What the upper bits of an f32 number are above its code; the exponent −15 has the code 0.
pub(crate) const M_BASE: u32 = (127 - 15) << (23 - M_CUT);
/// As [`M_BASE`], for the second moment.
pub(crate) const V_BASE: u32 = (127 - 15) << (23 - V_CUT);
/// Codes below this are the even steps down to 0.
pub(crate) const M_LINEAR: u32 = 1 << (23 - M_CUT);
/// As [`M_LINEAR`], for the second moment.
pub(crate) const V_LINEAR: u32 = 1 << (23 - V_CUT);

/// `(i32 words, blocks)` of the moments of `n` elements.
pub fn lengths(n: usize) -> (usize, usize) {
    let blocks = n.div_ceil(BLOCK);
    (blocks * BLOCK / CODES, blocks)
}

/// A bijection of 32 bits that leaves nothing to see of its input (Wellons' "lowbias32").
pub(crate) fn mix(mut x: u32) -> u32 {
    x = (x ^ (x >> 16)).wrapping_mul(0x7FEB_352D);
    x = (x ^ (x >> 15)).wrapping_mul(0x846C_A68B);
    x ^ (x >> 16)
}

/// Elements that share one call of [`mix`].
pub(crate) const GROUP: usize = 8;
/// Sets the elements of a group apart.
pub(crate) const SPREAD: u32 = 0x9E37_79B9;
/// As above; odd.
pub(crate) const STIR: u32 = 0x2C1B_3C6D;

/// Random bits of an element: the upper half is the first moment's, the lower half the second moment's.
///
/// For each place in a group this is a bijection of what `mix` gives for the group, so every element's bits are uniform.
pub(crate) fn random(key: u32, index: usize) -> u32 {
    let group = mix(key ^ (index / GROUP) as u32);
    let bits = (group ^ SPREAD.wrapping_mul((index % GROUP) as u32)).wrapping_mul(STIR);
    bits ^ (bits >> 16)
}

/// What is added to the first moment below its last kept bit.
pub(crate) fn m_dither(random: u32) -> u32 {
    (random >> 16) << 4 | 8
}

/// What is added to the second moment below its last kept bit.
pub(crate) fn v_dither(random: u32) -> u32 {
    (random & 0xFFFF) << 3 | 4
}

/// Code of a value in 0..=1.
fn encode(y: f32, dither: u32, cut: u32, base: u32, linear: u32) -> u32 {
    // Adding the smallest normal number turns the even steps below it into mantissa bits.
    let (y, base) = if y < SMALLEST { (y + SMALLEST, base + linear) } else { (y, base) };
    ((y.to_bits() + dither) >> cut) - base
}

/// Value of a code, in 0..=1.
fn decode(code: u32, cut: u32, base: u32, linear: u32) -> f32 {
    match code < linear {
        true => f32::from_bits((code + base + linear) << cut) - SMALLEST,
        false => f32::from_bits((code + base) << cut),
    }
}

/// `m / scale` of a code.
pub(crate) fn decode_m(code: u8) -> f32 {
    let magnitude = decode(u32::from(code) & 0x7F, M_CUT, M_BASE, M_LINEAR);
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

/// `√v / scale` of a code.
pub(crate) fn decode_v(code: u8) -> f32 {
    decode(u32::from(code), V_CUT, V_BASE, V_LINEAR)
}

/// Scale of a block, and its reciprocal, which is 0 where the codes are.
pub(crate) fn scale(block: &[f32]) -> (f32, f32) {
    // As whole numbers, magnitudes are ordered with infinity and then NaN at the end.
    let bits = block.iter().map(|x| x.to_bits() & 0x7FFF_FFFF).max().unwrap_or(0);
    let scale = f32::from_bits(bits);
    match (scale.is_finite(), scale >= f32::MIN_POSITIVE) {
        (true, true) => (scale, 1.0 / scale),
        (true, false) => (0.0, 0.0),
        (false, _) => (scale, 0.0),
    }
}

/// Code of a first moment.
pub(crate) fn encode_m(m: f32, inverse: f32, random: u32) -> u8 {
    if inverse == 0.0 {
        return 0;
    }
    let sign = (m.to_bits() >> 24) & 0x80;
    (encode(m.abs() * inverse, m_dither(random), M_CUT, M_BASE, M_LINEAR) | sign) as u8
}

/// Code of the root of a second moment.
pub(crate) fn encode_v(root: f32, inverse: f32, random: u32) -> u8 {
    if inverse == 0.0 {
        return 0;
    }
    let code = encode(root * inverse, v_dither(random), V_CUT, V_BASE, V_LINEAR);
    code.max(u32::from(root > 0.0)) as u8
}

/// The code of element `i` in a block's words.
pub(crate) fn code(words: &[i32], i: usize) -> u8 {
    words[i / CODES].to_le_bytes()[i % CODES]
}

/// Words of a block's codes; the last ones are padded with zeros.
pub(crate) fn pack(codes: &[u8], words: &mut [i32]) {
    words.fill(0);
    for (i, &code) in codes.iter().enumerate() {
        words[i / CODES] |= i32::from_le_bytes([code, 0, 0, 0]) << (8 * (i % CODES));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_code_comes_back() {
        for random in [0, u32::MAX, 0x1234_5678] {
            for code in 0..=M_BASE / 8 + 8 {
                let code = code.min(0x78) as u8;
                assert_eq!(encode_m(decode_m(code), 1.0, random), code);
                assert_eq!(encode_m(-decode_m(code), 1.0, random), code | 0x80);
            }
            for code in 0..=0xF0u8 {
                assert_eq!(encode_v(decode_v(code), 1.0, random), code);
            }
        }
        assert_eq!((decode_m(0x78), decode_v(0xF0)), (1.0, 1.0), "the largest codes are one");
        assert!((0..0x78).all(|code| decode_m(code) < decode_m(code + 1)));
        assert!((0..0xF0).all(|code| decode_v(code) < decode_v(code + 1)));
    }

    #[test]
    fn a_positive_second_moment_never_becomes_zero() {
        assert_eq!(encode_v(1e-30, 1.0, 0), 1);
        assert_eq!(encode_v(0.0, 1.0, u32::MAX), 0);
    }

    #[test]
    fn scales_of_damaged_and_vanishing_blocks() {
        assert_eq!(scale(&[0.0, -0.0]), (0.0, 0.0));
        assert_eq!(scale(&[1e-40, 0.0]), (0.0, 0.0));
        assert_eq!(scale(&[-4.0, 1.0]), (4.0, 0.25));
        assert_eq!(scale(&[1.0, f32::NEG_INFINITY]), (f32::INFINITY, 0.0));
        let (scale, inverse) = scale(&[f32::INFINITY, f32::NAN]);
        assert!(scale.is_nan() && inverse == 0.0);
    }

    /// The mean over many seeds is the value itself, for values that rounding to nearest would keep for ever.
    #[test]
    fn rounding_is_right_on_average() {
        let n = 20_000;
        for value in [0.9995, 0.5 * 1.0625 - 1e-3, 0.1, 3e-4, 2.2e-5, 3e-6] {
            let mean = |f: &dyn Fn(u32) -> f32| (0..n).map(|i| f64::from(f(random(7, i)))).sum::<f64>() / n as f64;
            let m = mean(&|random| decode_m(encode_m(value, 1.0, random)));
            let v = mean(&|random| decode_v(encode_v(value, 1.0, random)));
            // A unit is at most an eighth of a value, or the step at the lower end.
            let bound = |step: f64| 4.0 * f64::from(value).max(step).max(step * 8.0) / 8.0 / (n as f64).sqrt();
            assert!((m - f64::from(value)).abs() < bound(2f64.powi(-17)), "m {value}: {m}");
            // Below its smallest step the second moment is held up on purpose.
            let held = f64::from(value) < 2f64.powi(-18);
            assert!(held || (v - f64::from(value)).abs() < bound(2f64.powi(-18)), "v {value}: {v}");
        }
    }

    proptest! {
        /// The error is below one unit in the last place, whatever the random bits.
        #[test]
        fn codes_are_neighbours(y in 0.0f32..=1.0, random: u32) {
            let unit = |bits: i32| (f64::from(y).max(f64::from(SMALLEST)).log2().floor() - f64::from(bits)).exp2();
            let (m, v) = (decode_m(encode_m(y, 1.0, random)), decode_v(encode_v(y, 1.0, random)));
            prop_assert!((f64::from(m) - f64::from(y)).abs() < unit(3) * 1.0001, "{y} {m}");
            prop_assert!((f64::from(v) - f64::from(y)).abs() < unit(4) * 1.0001, "{y} {v}");
        }

        #[test]
        fn packed_codes_come_back(codes in proptest::collection::vec(any::<u8>(), 0..=BLOCK)) {
            let mut words = vec![-1; BLOCK / CODES];
            pack(&codes, &mut words);
            for i in 0..BLOCK {
                prop_assert_eq!(code(&words, i), codes.get(i).copied().unwrap_or(0));
            }
        }
    }
}
