//! Frozen matrices in fewer bits than the backend's floats, and FP8 by rows, which is one of them.

use burn::backend::Autodiff;
use burn::tensor::{DType, Element, Int, Tensor, TensorData, TensorPrimitive, backend::Backend};
use rayon::prelude::*;

use crate::fp8::{Format, peak};
use crate::leaf::without_gaps;
use crate::{KernelError, LmBackend, Mxfp4};

/// Codes in a word.
pub(crate) const FP8_CODES: usize = 4;

/// A frozen weight of experts, in the format that it is kept in.
#[derive(Clone, Debug)]
pub enum Packed<B: Backend> {
    /// 4 bits with a power of two for 32 numbers.
    Mxfp4(Mxfp4<B>),
    /// 8 bits with a power of two for a row.
    Fp8(Fp8Rows<B>),
}

impl<B: Backend> Packed<B> {
    /// Rows and width in numbers.
    pub fn dims(&self) -> [usize; 2] {
        match self {
            Self::Mxfp4(matrix) => matrix.dims(),
            Self::Fp8(matrix) => matrix.dims(),
        }
    }

    /// `n` rows from row `at` on.
    pub fn rows(&self, at: usize, n: usize) -> Self {
        match self {
            Self::Mxfp4(matrix) => Self::Mxfp4(matrix.rows(at, n)),
            Self::Fp8(matrix) => Self::Fp8(matrix.rows(at, n)),
        }
    }

    /// A matrix of no rows: what stands in the place of one that is somewhere else.
    pub fn empty(device: &B::Device) -> Self {
        Self::Mxfp4(Mxfp4::empty(device))
    }

    /// The same matrix under automatic differentiation, which never tracks it.
    pub fn to_autodiff(&self) -> Packed<Autodiff<B>> {
        match self {
            Self::Mxfp4(matrix) => Packed::Mxfp4(matrix.to_autodiff()),
            Self::Fp8(matrix) => Packed::Fp8(matrix.clone().map(Tensor::from_inner)),
        }
    }
}

impl<B: LmBackend> Packed<B> {
    /// The numbers, `[rows, i]` in the backend's float type; exact in f32 and in bf16.
    pub fn decode(&self) -> Tensor<B, 2> {
        match self {
            Self::Mxfp4(matrix) => matrix.decode(),
            Self::Fp8(matrix) => matrix.decode(),
        }
    }
}

/// A matrix in FP8 (e4m3) on a device, each row with a power of two of its own.
///
/// Numbers keep four significant bits down to 2⁻¹⁴ of the row's largest, whose own exponent always fits. MXFP4 survives unchanged
/// as long as the powers of two within a row are not further apart than that leaves room for.
#[derive(Clone, Debug)]
pub struct Fp8Rows<B: Backend> {
    /// `[rows, i/4]`: four codes in an i32, the first one in the lowest bits.
    pub codes: Tensor<B, 2, Int>,
    /// `[rows, 1]`: the biased exponent of what the row's codes are multiplied by.
    pub scales: Tensor<B, 2, Int>,
    dims: [usize; 2],
}

impl<B: Backend> Fp8Rows<B> {
    /// Rounds the rows of a matrix.
    ///
    /// # Numerics
    /// To the nearest number of the format, ties to even; the power of two is the largest that keeps the row within it. What is
    /// not finite becomes NaN.
    ///
    /// # Errors
    /// [`KernelError::Fp8Rows`] when the width is no multiple of 4 or the values are not as many as the dimensions say.
    pub fn quantise(values: &[f32], dims: [usize; 2], device: &B::Device) -> Result<Self, KernelError> {
        let [rows, i] = dims;
        if values.len() != rows * i || !i.is_multiple_of(FP8_CODES) {
            return Err(KernelError::Fp8Rows { dims, got: values.len() });
        }
        let row = |row: &[f32]| {
            let factor = Format::E4m3.scale(peak(row));
            let code = |x: &f32| encode(Format::E4m3.round(*x, factor));
            let word = |x: &[f32]| i32::from_le_bytes([code(&x[0]), code(&x[1]), code(&x[2]), code(&x[3])]);
            let exponent = ((1.0 / factor).to_bits() >> 23) as i32;
            (row.chunks_exact(FP8_CODES).map(word).collect::<Vec<_>>(), exponent)
        };
        let (codes, scales): (Vec<Vec<i32>>, Vec<i32>) = values.par_chunks(i.max(1)).map(row).unzip();
        let tensor = |words: Vec<i32>, dims: [usize; 2]| match words.is_empty() {
            true => Tensor::empty(dims, (device, DType::I32)),
            false => without_gaps(TensorData::new(words, dims), dims, (device, DType::I32)),
        };
        Ok(Self { codes: tensor(codes.concat(), [rows, i / FP8_CODES]), scales: tensor(scales, [rows, 1]), dims })
    }

    /// Rows and width in numbers.
    pub fn dims(&self) -> [usize; 2] {
        self.dims
    }

    /// `n` rows from row `at` on.
    pub fn rows(&self, at: usize, n: usize) -> Self {
        let part = |tensor: &Tensor<B, 2, Int>| tensor.clone().narrow(0, at, n);
        Self { codes: part(&self.codes), scales: part(&self.scales), dims: [n, self.dims[1]] }
    }

    /// The same on another backend, field by field.
    pub(crate) fn map<C: Backend>(self, f: impl Fn(Tensor<B, 2, Int>) -> Tensor<C, 2, Int>) -> Fp8Rows<C> {
        let Self { codes, scales, dims } = self;
        Fp8Rows { codes: f(codes), scales: f(scales), dims }
    }
}

impl<B: LmBackend> Fp8Rows<B> {
    /// The numbers, `[rows, i]` in the backend's float type; exact in f32 and in bf16.
    pub fn decode(&self) -> Tensor<B, 2> {
        let dtype = <B::FloatElem as Element>::dtype();
        Tensor::from_primitive(TensorPrimitive::Float(B::lm_fp8_decode(self, dtype)))
    }
}

/// The code of a number of the format.
fn encode(x: f32) -> u8 {
    if x.is_nan() {
        return 0x7F;
    }
    let (sign, size) = (u8::from(x.is_sign_negative()) << 7, x.abs());
    // Below the smallest normal number codes count steps of 2⁻⁹; above, exponent and significand are those of an f32.
    let code = if size < 2f32.powi(-6) { (size * 512.0) as u8 } else { ((size.to_bits() >> 20) - (120 << 3)) as u8 };
    sign | code
}

/// The number of a code.
pub(crate) fn number(code: u8) -> f32 {
    let size = u32::from(code & 0x7F);
    let number = match size {
        0x7F => f32::NAN,
        0..8 => size as f32 / 512.0,
        _ => f32::from_bits((size << 20) + (120 << 23)),
    };
    if code & 0x80 == 0 { number } else { -number }
}

/// What the codes of a row are multiplied by.
pub(crate) fn factor(scale: i32) -> f32 {
    f32::from_bits((scale as u32) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::numbers;
    use crate::cpu::with_portable;
    use crate::{Cpu, quantise_mxfp4};

    fn decoded(values: &[f32], dims: [usize; 2]) -> Vec<f32> {
        let matrix = Fp8Rows::<Cpu>::quantise(values, dims, &Default::default()).unwrap();
        let fast = numbers(matrix.decode());
        let portable = numbers(with_portable(|| matrix.decode()));
        let same = fast.iter().zip(&portable).all(|(a, b)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()));
        assert!(same, "both bodies decode alike");
        fast
    }

    #[test]
    fn every_code_is_its_number_and_every_number_its_code() {
        for code in 0..=u8::MAX {
            let x = number(code);
            assert_eq!(encode(x), if x.is_nan() { 0x7F } else { code }, "{code:#x}");
            assert!(x.is_nan() || Format::E4m3.round(x, 1.0).to_bits() == x.to_bits(), "{code:#x}");
        }
        assert_eq!([0x01, 0x08, 0x38, 0x7E, 0xFE].map(number), [2f32.powi(-9), 2f32.powi(-6), 1.0, 448.0, -448.0]);
    }

    #[test]
    fn rows_are_rounded_to_the_nearest_number_of_their_own_scale() {
        let values: Vec<f32> =
            (0..512).map(|at| ((at * 37 % 101) as f32 - 50.0) * 3f32.powi(at / 128 * 20 - 30)).collect();
        for (row, got) in values.chunks(128).zip(decoded(&values, [4, 128]).chunks(128)) {
            let scale = Format::E4m3.scale(peak(row));
            for (x, got) in row.iter().zip(got) {
                assert_eq!(*got, Format::E4m3.round(*x, scale) / scale);
                assert!((got - x).abs() <= x.abs() / 16.0, "{x:e} {got:e}");
            }
        }
        assert_eq!(decoded(&[0.0; 8], [2, 4]), [0.0; 8]);
        assert!(decoded(&[1.0, f32::INFINITY, 2.0, -3.0], [1, 4])[1].is_nan());
    }

    #[test]
    fn mxfp4_survives() {
        let values: Vec<f32> = (0..256).map(|at| ((at * 29 % 83) as f32 - 41.0) * 2f32.powi(at / 32 - 4)).collect();
        let (blocks, scales) = quantise_mxfp4(&values).unwrap();
        let packed = Mxfp4::<Cpu>::from_bytes(&blocks, &scales, [1, 256], &Default::default()).unwrap();
        let values = numbers(packed.decode());
        assert_eq!(decoded(&values, [1, 256]), values);
    }

    #[test]
    fn values_that_do_not_fit_are_errors() {
        let make = |n, dims| Fp8Rows::<Cpu>::quantise(&vec![0.0; n], dims, &Default::default()).err();
        assert_eq!(make(8, [2, 4]), None);
        for (n, dims) in [(8, [2, 3]), (6, [1, 6]), (7, [2, 4])] {
            assert_eq!(make(n, dims), Some(KernelError::Fp8Rows { dims, got: n }));
        }
    }
}
