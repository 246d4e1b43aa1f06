//! MXFP4: numbers of 4 bits in blocks of 32 along a row, with a power of two for each block.
//!
//! A number is e2m1 (sign, two bits of exponent, one of significand); a scale is the biased exponent of a power of two.
//!
//! # Source
//! Open Compute Project, "Microscaling Formats (MX) Specification"; the rounding is that of the published GPT-OSS weights.

use burn::backend::Autodiff;
use burn::tensor::{DType, Int, Tensor, TensorData, TensorPrimitive, backend::Backend};

use crate::leaf::without_gaps;
use crate::{KernelError, LmBackend};

/// Numbers that share a scale.
pub const MXFP4_BLOCK: usize = 32;
/// Bytes of a block's codes.
pub const MXFP4_BYTES: usize = MXFP4_BLOCK / 2;
/// Codes in a word.
pub(crate) const CODES: usize = 8;
/// Scales in a word.
pub(crate) const SCALES: usize = 4;
/// Numbers whose scales make a word.
const SCALED: usize = MXFP4_BLOCK * SCALES;

/// The number of each code.
pub(crate) const TABLE: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// `2^(scale − 127)`; 255 is NaN, as the format says.
pub(crate) fn power(scale: u8) -> f32 {
    match scale {
        0 => f32::from_bits(1 << 22),
        u8::MAX => f32::NAN,
        scale => f32::from_bits(u32::from(scale) << 23),
    }
}

/// A matrix in MXFP4 on a device.
///
/// Each row is padded to whole words by itself, so that a range of rows is a range of both tensors.
#[derive(Clone, Debug)]
pub struct Mxfp4<B: Backend> {
    /// `[rows, i/8]`: eight codes in an i32, the first one in the lowest bits.
    pub codes: Tensor<B, 2, Int>,
    /// `[rows, ⌈i/128⌉]`: four scales in an i32, the first one in the lowest bits.
    pub scales: Tensor<B, 2, Int>,
    /// Rows and width in numbers.
    dims: [usize; 2],
}

impl<B: Backend> Mxfp4<B> {
    /// Puts the bytes of a checkpoint on a device: `blocks` `[rows, i/32, 16]` with the low half of a byte first, `scales`
    /// `[rows, i/32]`.
    ///
    /// # Errors
    /// [`KernelError::Mxfp4`] when the width is no multiple of 32 or a length does not fit the dimensions.
    pub fn from_bytes(blocks: &[u8], scales: &[u8], dims: [usize; 2], device: &B::Device) -> Result<Self, KernelError> {
        let [rows, i] = dims;
        let n_blocks = i / MXFP4_BLOCK;
        let fits = i.is_multiple_of(MXFP4_BLOCK)
            && blocks.len() == rows * n_blocks * MXFP4_BYTES
            && scales.len() == rows * n_blocks;
        if !fits {
            return Err(KernelError::Mxfp4 { dims, blocks: blocks.len(), scales: scales.len() });
        }
        let word = |bytes: &[u8]| {
            let mut word = [0; 4];
            word[..bytes.len()].copy_from_slice(bytes);
            i32::from_le_bytes(word)
        };
        let codes = blocks.chunks(4).map(word).collect();
        let scales = scales.chunks(n_blocks.max(1)).flat_map(|row| row.chunks(SCALES).map(word)).collect();
        Ok(Self {
            codes: words(codes, [rows, i / CODES], device),
            scales: words(scales, [rows, i.div_ceil(SCALED)], device),
            dims,
        })
    }

    /// A matrix of words that are on the device already: `codes [rows, columns/8]` and `scales [rows, ⌈columns/128⌉]`.
    ///
    /// # Panics
    /// When the widths do not fit.
    pub fn from_words(codes: Tensor<B, 2, Int>, scales: Tensor<B, 2, Int>, columns: usize) -> Self {
        let ([rows, width], scale_dims) = (codes.dims(), scales.dims());
        let fits = columns.is_multiple_of(MXFP4_BLOCK) && width == columns / CODES;
        assert!(
            fits && scale_dims == [rows, columns.div_ceil(SCALED)],
            "MXFP4: rows of {columns} need codes [{rows}, {}] and scales [{rows}, {}], got {width} and {scale_dims:?}",
            columns / CODES,
            columns.div_ceil(SCALED)
        );
        Self { codes, scales, dims: [rows, columns] }
    }

    /// The bytes of a checkpoint: blocks `[rows, i/32, 16]` and scales `[rows, i/32]`. Reads the device.
    pub fn to_bytes(&self) -> (Vec<u8>, Vec<u8>) {
        let [rows, i] = self.dims;
        let blocks = bytes(self.codes.clone());
        let width = i.div_ceil(SCALED) * SCALES;
        let scales = bytes(self.scales.clone());
        let scales = (0..rows).flat_map(|row| scales[row * width..][..i / MXFP4_BLOCK].to_vec()).collect();
        (blocks, scales)
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

    /// A matrix of no rows: what stands in the place of one that is somewhere else.
    pub fn empty(device: &B::Device) -> Self {
        Self { codes: words(Vec::new(), [0, 0], device), scales: words(Vec::new(), [0, 0], device), dims: [0, 0] }
    }

    /// The same matrix under automatic differentiation, which never tracks it.
    pub fn to_autodiff(&self) -> Mxfp4<Autodiff<B>> {
        self.clone().map(Tensor::from_inner)
    }

    /// The same on another backend, field by field.
    pub(crate) fn map<C: Backend>(self, f: impl Fn(Tensor<B, 2, Int>) -> Tensor<C, 2, Int>) -> Mxfp4<C> {
        let Self { codes, scales, dims } = self;
        Mxfp4 { codes: f(codes), scales: f(scales), dims }
    }
}

impl<B: LmBackend> Mxfp4<B> {
    /// The numbers, `[rows, i]` in the backend's float type; exact in f32 and in bf16.
    pub fn decode(&self) -> Tensor<B, 2> {
        let dtype = <B::FloatElem as burn::tensor::Element>::dtype();
        Tensor::from_primitive(TensorPrimitive::Float(B::lm_mxfp4_decode(self, dtype)))
    }
}

fn words<B: Backend>(words: Vec<i32>, dims: [usize; 2], device: &B::Device) -> Tensor<B, 2, Int> {
    match words.is_empty() {
        true => Tensor::empty(dims, (device, DType::I32)),
        false => without_gaps(TensorData::new(words, dims), dims, (device, DType::I32)),
    }
}

fn bytes<B: Backend>(words: Tensor<B, 2, Int>) -> Vec<u8> {
    match words.dims().contains(&0) {
        true => Vec::new(),
        false => words.into_data().iter::<i32>().flat_map(i32::to_le_bytes).collect(),
    }
}

/// Rounds numbers to MXFP4: blocks `[n/32, 16]` and scales `[n/32]` of a checkpoint.
///
/// # Numerics
/// The scale is the largest number over 6, rounded up to a power of two; numbers go to the nearest code, ties away from zero,
/// and beyond 6 to 6. A block of zeros has scale 0; one with an infinity or NaN becomes NaN as a whole. Numbers that were in
/// MXFP4 come back unchanged.
///
/// # Errors
/// [`KernelError::Mxfp4Length`] when the numbers are no whole blocks.
pub fn quantise_mxfp4(values: &[f32]) -> Result<(Vec<u8>, Vec<u8>), KernelError> {
    quantise(values, scale_of)
}

/// As [`quantise_mxfp4`], but a block has half the scale where its numbers come closer so, the largest ones cut off at 6.
///
/// For numbers that were in MXFP4 and moved a little: where the largest moves beyond 6, the published rule doubles the scale and
/// with it every step of the block.
///
/// # Errors
/// [`KernelError::Mxfp4Length`] when the numbers are no whole blocks.
pub fn quantise_mxfp4_closest(values: &[f32]) -> Result<(Vec<u8>, Vec<u8>), KernelError> {
    quantise(values, |block| {
        let (scale, inverse) = scale_of(block);
        if matches!(scale, 0 | 1 | u8::MAX) {
            return (scale, inverse);
        }
        let half = (scale - 1, 2.0 * inverse);
        if squared_error(block, half) < squared_error(block, (scale, inverse)) { half } else { (scale, inverse) }
    })
}

fn squared_error(block: &[f32], (scale, inverse): (u8, f32)) -> f64 {
    let factor = power(scale);
    block.iter().map(|x| f64::from(TABLE[encode(x * inverse) as usize] * factor - x).powi(2)).sum()
}

fn quantise(values: &[f32], scale_of: impl Fn(&[f32]) -> (u8, f32)) -> Result<(Vec<u8>, Vec<u8>), KernelError> {
    if !values.len().is_multiple_of(MXFP4_BLOCK) {
        return Err(KernelError::Mxfp4Length { got: values.len() });
    }
    let mut blocks = Vec::with_capacity(values.len() / 2);
    let mut scales = Vec::with_capacity(values.len() / MXFP4_BLOCK);
    for block in values.chunks_exact(MXFP4_BLOCK) {
        let (scale, inverse) = scale_of(block);
        scales.push(scale);
        blocks.extend(block.chunks_exact(2).map(|pair| encode(pair[0] * inverse) | encode(pair[1] * inverse) << 4));
    }
    Ok((blocks, scales))
}

/// Scale of a block, and what its numbers are multiplied by.
fn scale_of(block: &[f32]) -> (u8, f32) {
    if block.iter().any(|x| !x.is_finite()) {
        return (u8::MAX, 0.0);
    }
    let peak = block.iter().fold(0.0f32, |peak, x| peak.max(x.abs())) / 6.0;
    let bits = (peak.to_bits() + 0x007F_FFFF) & 0x7F80_0000;
    match bits {
        0 => (0, 0.0),
        bits => ((bits >> 23) as u8, 1.0 / f32::from_bits(bits)),
    }
}

/// The nearest code.
fn encode(x: f32) -> u8 {
    /// Midpoints between neighbours; a number at one belongs to the upper neighbour.
    const MIDDLES: [f32; 7] = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0];
    let size = MIDDLES.iter().filter(|middle| x.abs() >= **middle).count() as u8;
    size | u8::from(x.is_sign_negative()) << 3
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::path::Path;

    use super::*;
    use crate::Cpu;
    use crate::cpu::with_portable;

    /// The tensors of a safetensors file: shape and bytes.
    fn fixture(name: &str) -> HashMap<String, (Vec<usize>, Vec<u8>)> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
        let bytes = std::fs::read(path).unwrap();
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let (header, data) = bytes[8..].split_at(header);
        let tensors: HashMap<String, serde_json::Value> = serde_json::from_slice(header).unwrap();
        let whole = |value: &serde_json::Value| -> Vec<usize> { serde_json::from_value(value.clone()).unwrap() };
        let tensor = |(name, tensor): (String, serde_json::Value)| {
            let offsets = whole(&tensor["data_offsets"]);
            (name, (whole(&tensor["shape"]), data[offsets[0]..offsets[1]].to_vec()))
        };
        tensors.into_iter().map(tensor).collect()
    }

    fn floats(bytes: &[u8]) -> Vec<f32> {
        bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|x| x.to_bits()).collect()
    }

    fn decoded(blocks: &[u8], scales: &[u8], dims: [usize; 2]) -> Vec<f32> {
        let matrix = Mxfp4::<Cpu>::from_bytes(blocks, scales, dims, &Default::default()).unwrap();
        assert_eq!(matrix.to_bytes(), (blocks.to_vec(), scales.to_vec()));
        let fast = crate::cases::numbers(matrix.decode());
        let portable = crate::cases::numbers(with_portable(|| matrix.decode()));
        let same = fast.iter().zip(&portable).all(|(a, b)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()));
        assert!(same, "both bodies decode alike");
        fast
    }

    /// The numbers that transformers decodes, which stand transposed: `[expert, in, out]`.
    #[test]
    fn decoding_matches_transformers_to_the_bit() {
        let fixture = fixture("mxfp4.safetensors");
        let (shape, blocks) = &fixture["blocks"];
        let (experts, o, i) = (shape[0], shape[1], shape[2] * MXFP4_BLOCK);
        let got = decoded(blocks, &fixture["scales"].1, [experts * o, i]);
        let want = floats(&fixture["dequant_f32"].1);
        let halves = &fixture["dequant_bf16"].1;
        assert_eq!(got.len(), want.len());
        for (at, got) in got.iter().enumerate() {
            let (expert, out, k) = (at / (o * i), at / i % o, at % i);
            let at = (expert * i + k) * o + out;
            assert_eq!(got.to_bits(), want[at].to_bits(), "{expert} {out} {k}");
            let half = u16::from_le_bytes([halves[2 * at], halves[2 * at + 1]]);
            assert_eq!(half::bf16::from_f32(*got).to_bits(), half, "{expert} {out} {k} in bf16");
        }
    }

    #[test]
    fn rounding_matches_the_published_rule_to_the_bit() {
        let fixture = fixture("mxfp4_quant.safetensors");
        let (dims, w) = &fixture["w"];
        let (blocks, scales) = quantise_mxfp4(&floats(w)).unwrap();
        assert_eq!(blocks, fixture["blocks"].1);
        assert_eq!(scales, fixture["scales"].1);
        let numbers = decoded(&blocks, &scales, [dims[0], dims[1]]);
        // The fixture's zeros are those of a product with 2^-127, as ours.
        assert_eq!(bits(&numbers), bits(&floats(&fixture["dequant"].1)));
        let (blocks, scales) = quantise_mxfp4(&numbers).unwrap();
        let again = decoded(&blocks, &scales, [dims[0], dims[1]]);
        assert_eq!(bits(&again), bits(&numbers), "rounding again changes no number");
    }

    #[test]
    fn the_closest_scale_is_never_worse_and_keeps_what_moved_a_little() {
        let fixture = fixture("mxfp4_quant.safetensors");
        let (dims, w) = &fixture["w"];
        let dims = [dims[0], dims[1]];
        let error = |want: &[f32], (blocks, scales): (Vec<u8>, Vec<u8>), dims| -> f64 {
            let got = decoded(&blocks, &scales, dims);
            got.iter().zip(want).map(|(g, w)| f64::from(g - w).powi(2)).sum()
        };
        let finite: Vec<f32> = floats(w);
        let rule = error(&finite, quantise_mxfp4(&finite).unwrap(), dims);
        let closest = error(&finite, quantise_mxfp4_closest(&finite).unwrap(), dims);
        assert!(closest <= rule && rule > 0.0, "{closest:e} {rule:e}");
        let (blocks, scales) = quantise_mxfp4(&finite).unwrap();
        let numbers = decoded(&blocks, &scales, dims);
        assert_eq!(
            error(&numbers, quantise_mxfp4_closest(&numbers).unwrap(), dims),
            0.0,
            "rounding again changes nothing"
        );
        let mut moved: Vec<f32> = TABLE.iter().chain(&TABLE).copied().collect();
        moved[7] = 6.01;
        assert_eq!(quantise_mxfp4(&moved).unwrap().1, [128]);
        let (blocks, scales) = quantise_mxfp4_closest(&moved).unwrap();
        assert_eq!(scales, [127]);
        moved[7] = 6.0;
        assert_eq!(decoded(&blocks, &scales, [1, MXFP4_BLOCK]), moved);
        for edge in [0.0, f32::from_bits(60), f32::INFINITY] {
            let block = [edge; MXFP4_BLOCK];
            assert_eq!(quantise_mxfp4_closest(&block), quantise_mxfp4(&block), "{edge:e}");
        }
        let (blocks, scales) = quantise_mxfp4_closest(&[f32::MAX; MXFP4_BLOCK]).unwrap();
        assert_eq!(decoded(&blocks, &scales, [1, MXFP4_BLOCK])[0], 6.0 * 2f32.powi(125), "an infinity is never closer");
    }

    #[test]
    fn codes_and_scales_at_the_edges() {
        let codes: Vec<u8> = (0..16).map(|byte| byte | (15 - byte) << 4).collect();
        let values = |scale| decoded(&codes, &[scale], [1, MXFP4_BLOCK]);
        let want = crate::ops::grouped_mxfp4::reference::decode(&codes, &[1]);
        for (got, want) in values(1).iter().zip(want) {
            assert_eq!((*got).to_bits(), (want as f32).to_bits());
        }
        assert_eq!(values(0)[2], 0.5 * 2f32.powi(-126) / 2.0, "code 1 at the smallest scale");
        assert!(values(255).iter().all(|x| x.is_nan()), "255 is no power of two");
        let (_, scales) = quantise_mxfp4(&[f32::MAX; MXFP4_BLOCK]).unwrap();
        assert!(scales[0] < 255, "the largest number has a scale");
        let (blocks, scales) = quantise_mxfp4(&[f32::INFINITY; MXFP4_BLOCK]).unwrap();
        assert!(decoded(&blocks, &scales, [1, MXFP4_BLOCK])[0].is_nan(), "an infinity shows");
        let (blocks, scales) = quantise_mxfp4(&[f32::from_bits(60); MXFP4_BLOCK]).unwrap();
        assert_eq!((blocks[0], scales[0]), (0, 1), "what vanishes beside the smallest scale is zero");
    }

    #[test]
    fn bytes_that_do_not_fit_are_errors() {
        let make = |blocks, scales, dims| {
            Mxfp4::<Cpu>::from_bytes(&vec![0; blocks], &vec![0; scales], dims, &Default::default()).err()
        };
        assert_eq!(make(64, 4, [2, 64]), None);
        for (blocks, scales, dims) in [(63, 4, [2, 64]), (64, 3, [2, 64]), (64, 4, [2, 63]), (64, 4, [3, 64])] {
            assert_eq!(make(blocks, scales, dims), Some(KernelError::Mxfp4 { dims, blocks, scales }));
        }
        assert_eq!(quantise_mxfp4(&[0.0; 33]).err(), Some(KernelError::Mxfp4Length { got: 33 }));
    }
}
