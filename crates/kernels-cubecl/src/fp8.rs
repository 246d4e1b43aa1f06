//! The two 8-bit floating-point formats, exactly as the matrix units have them.

use std::fmt::Debug;

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;

/// An 8-bit format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// 4 bits of exponent, 3 of significand: activations and weights.
    E4m3,
    /// 5 bits of exponent, 2 of significand: gradients, which span more powers of two.
    E5m2,
}

impl Format {
    /// Largest number as `1.75 · 2ⁿ`: this `n`.
    const fn top(self) -> i32 {
        match self {
            Self::E4m3 => 8,
            Self::E5m2 => 15,
        }
    }

    /// Bits of the significand behind the point, and the exponent of the smallest normal number.
    const fn bits(self) -> (i32, i32) {
        match self {
            Self::E4m3 => (3, -6),
            Self::E5m2 => (2, -14),
        }
    }

    /// The largest number.
    pub(crate) fn max(self) -> f32 {
        1.75 * power(self.top())
    }

    /// The factor for numbers up to `peak` in size: the largest power of two that keeps them in the format, 1 for zeros.
    pub(crate) fn scale(self, peak: f32) -> f32 {
        if peak == 0.0 {
            return 1.0;
        }
        let (exponent, fraction) = ((peak.to_bits() >> 23) as i32 - 127, peak.to_bits() & 0x007f_ffff);
        let top = if fraction <= 0x0060_0000 { self.top() } else { self.top() - 1 };
        power((top - exponent).clamp(-126, 126))
    }

    /// `x · scale` in the format, as an f32: to the nearest, ties to even, not beyond the largest. Infinities become NaN.
    pub(crate) fn round(self, x: f32, scale: f32) -> f32 {
        if !x.is_finite() {
            return f32::NAN;
        }
        let x = (x * scale).clamp(-self.max(), self.max());
        let (significand, smallest) = self.bits();
        let exponent = ((x.to_bits() >> 23 & 0xff) as i32 - 127).max(smallest);
        let step = power(exponent - significand);
        (x / step).round_ties_even() * step
    }
}

/// `2ⁿ` of a normal number.
fn power(n: i32) -> f32 {
    f32::from_bits(((n + 127) as u32) << 23)
}

/// The largest size of a finite number.
pub(crate) fn peak(values: &[f32]) -> f32 {
    values.iter().filter(|x| x.is_finite()).fold(0.0, |peak, x| peak.max(x.abs()))
}

/// True where a linear layer of these rows, inputs and outputs is computed in FP8: the matrix units need whole groups.
pub(crate) fn fits(dims: [usize; 3]) -> bool {
    dims.iter().all(|n| *n > 0 && n.is_multiple_of(GROUP))
}

/// What rows and widths of an FP8 product must be multiples of.
const GROUP: usize = 16;

/// How the FP8 products of a linear layer are summed.
///
/// The matrix units add FP8 products in fewer bits than f32 has. `fast` leaves long sums there; otherwise they are moved into
/// f32 every few terms, which costs some speed. Only CUDA devices know the difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fp8 {
    /// Fast sums in the forward pass.
    pub fast_forward: bool,
    /// Fast sums in the backward pass.
    pub fast_backward: bool,
}

impl Default for Fp8 {
    fn default() -> Self {
        Self { fast_forward: true, fast_backward: false }
    }
}

/// Slots through which the ops beside an FP8 linear layer tell it abs-maxima of what they wrote, so that a layer with scales of
/// now need not look for them in a pass of its own.
///
/// A slot is for one tensor in one pass: the op that writes the tensor fills it, the layer empties it. A tensor that is not the
/// one that the slot was filled for makes the layer's result NaN. `P` is [`crate::LmBackend::Peaks`]; a backend without such
/// kernels leaves the slots empty, and the layer looks itself.
#[derive(Clone, Debug)]
pub struct Gathered<P> {
    /// Of the tensor that passes forward: the result of the op before the layer.
    pub forward: Option<P>,
    /// Of the tensor that comes back: the gradient of the layer's result, which the op behind the layer makes.
    pub backward: Option<P>,
}

impl<P> Default for Gathered<P> {
    /// No slots.
    fn default() -> Self {
        Self { forward: None, backward: None }
    }
}

/// What is known of an FP8 layer's peaks before it is computed.
#[derive(Clone, Debug)]
pub struct Fp8Known<B: Backend> {
    /// `[3, n]`: peaks of x, weight and gradient in earlier passes, which the scales come from; `None` takes those of now.
    pub history: Option<FloatTensor<B>>,
    /// `[n]`: abs-max of parts of the weight as it is now, the largest entry counts; `None` has the weight looked at.
    pub weight: Option<FloatTensor<B>>,
}

impl<B: Backend> Default for Fp8Known<B> {
    fn default() -> Self {
        Self { history: None, weight: None }
    }
}

/// What the backward pass of an FP8 linear layer needs of the forward pass.
#[derive(Clone, Debug)]
pub struct Fp8Saved<B: Backend> {
    /// The rounded `x`: `xᵀ` in FP8 where there is an `inverse`, its numbers in `x`'s own type otherwise.
    pub(crate) x: Option<FloatTensor<B>>,
    /// `[1]`: what the FP8 numbers must be multiplied with.
    pub(crate) inverse: Option<FloatTensor<B>>,
    /// The abs-max of `x` and of the weight, `[n]` each; the largest entry counts.
    pub(crate) peaks: Option<[FloatTensor<B>; 2]>,
    /// The history that the scales came from.
    pub(crate) history: Option<FloatTensor<B>>,
}

/// What the backward pass of an FP8 linear layer gives.
#[derive(Clone, Debug)]
pub struct Fp8Gradients<B: Backend> {
    /// As `x`, when asked for.
    pub dx: Option<FloatTensor<B>>,
    /// `[o, i]`, when asked for; with what it was added to.
    pub dw: Option<FloatTensor<B>>,
    /// `[3, n]`: the history with this pass's abs-max in front, where the forward pass had one.
    pub history: Option<FloatTensor<B>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: [Format; 2] = [Format::E4m3, Format::E5m2];

    #[test]
    fn numbers_of_the_formats_stay() {
        for (format, max, tiny) in [(Format::E4m3, 448.0, 2f32.powi(-9)), (Format::E5m2, 57344.0, 2f32.powi(-16))] {
            assert_eq!(format.max(), max);
            for x in [0.0, 1.0, -1.5, max, -max, tiny, 3.0 * tiny] {
                assert_eq!(format.round(x, 1.0).to_bits(), x.to_bits(), "{format:?} {x}");
            }
            assert_eq!(format.round(2.0 * max, 1.0), max);
            assert_eq!(format.round(0.5 * tiny, 1.0), 0.0);
            assert_eq!(format.round(0.51 * tiny, 1.0), tiny);
            assert_eq!(format.round(1.5 * tiny, 1.0), 2.0 * tiny);
            assert_eq!(format.round(f32::MAX, 2f32.powi(100)), max);
            assert!([f32::NAN, f32::INFINITY, f32::NEG_INFINITY].iter().all(|x| format.round(*x, 1.0).is_nan()));
        }
        assert_eq!([1.0625, 1.1875, 17.0, 19.0].map(|x| Format::E4m3.round(x, 1.0)), [1.0, 1.25, 16.0, 20.0]);
        assert_eq!([1.125, 1.375, 9.0].map(|x| Format::E5m2.round(x, 1.0)), [1.0, 1.5, 8.0]);
    }

    /// The largest power of two that does not push the peak out.
    #[test]
    fn scales_fill_the_format() {
        for format in BOTH {
            assert_eq!(format.scale(0.0), 1.0);
            for peak in [1.0f32, 1.75, 1.7500001, 1.999, 3.0, 1e-30, 1e30, f32::MAX, 448.0, 57344.0] {
                let scale = format.scale(peak);
                assert_eq!(scale.to_bits() & 0x007f_ffff, 0, "{peak} has the scale {scale}");
                assert!(peak * scale <= format.max() && peak * scale * 2.0 > format.max(), "{format:?} {peak} {scale}");
            }
            assert!(format.scale(1e-44).is_finite() && (1.0 / format.scale(1e-44)).is_normal());
        }
    }

    #[test]
    fn numbers_that_are_none_do_not_count() {
        assert_eq!(peak(&[1.0, -3.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY]), 3.0);
        assert_eq!(peak(&[]), 0.0);
    }
}
