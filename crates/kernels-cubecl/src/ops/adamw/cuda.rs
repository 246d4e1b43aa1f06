//! AdamW on CUDA: one pass over parameter, gradient and state, in place; a plane works on a block of 256 elements.
#![expect(unsafe_code, reason = "a kernel without bounds checks, whose callers' lengths are checked here")]
#![allow(clippy::too_many_arguments, reason = "a kernel takes every buffer and size by itself")]

use burn::tensor::{DType, Tensor, TensorMetadata, TensorPrimitive, backend::Backend};
use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::packed::{BLOCK, M_CUT, V_CUT};
use super::{AdamW, Master, Moments, PackedMoments, packed};
use crate::Leaf;
use crate::cuda::launch::{THREADS, check_indices, check_lengths, cubes, dense, dense_as, lanes, owned};
use crate::cuda::peaks::{gather, new_words};
use crate::cuda::{Buffer, Runtime, has_fp8};

/// From the exponents of values in 0..=1 to the lowest ones of f32, and back.
const LOWER: f32 = 1.0 / RAISE;
/// As above: 2¹¹².
const RAISE: f32 = ((1u128 << 112) as f64) as f32;
/// Where [`lowered`] codes have their bits.
const M_MASK: u32 = 0x7F << M_CUT;
/// As above.
const V_MASK: u32 = 0xFF << V_CUT;
/// Elements of a thread.
const PER_THREAD: usize = BLOCK / 32;
/// Blocks of a cube.
const BLOCKS: usize = THREADS / 32;
/// Codes of a thread, in words.
const CODE_WORDS: usize = PER_THREAD / packed::CODES;
/// Remainders of a thread, in words.
const REMAINDER_WORDS: usize = PER_THREAD / 2;

/// Largest finite number.
const LARGEST: f32 = f32::MAX;

/// How the new parameter is rounded.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Rounding {
    Nearest,
    Stochastic,
    Remainder,
}

/// What the kernel is compiled for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Variant {
    rounding: Rounding,
    packed: bool,
    /// Elements of a vector of parameters.
    lanes: usize,
    /// Words of a vector of remainders.
    words: usize,
    /// Whether parameters and gradients are read as two bf16 numbers in a u32: fewer conversions.
    halves: bool,
    /// Whether the peaks of the new parameters are gathered.
    gathers: bool,
}

impl Variant {
    /// Vectors of parameters of a thread.
    fn vectors(self) -> usize {
        PER_THREAD / self.lanes
    }

    /// Whether a thread's elements are neighbours, or its vectors lie a plane's vectors apart.
    fn together(self) -> bool {
        self.packed || self.rounding != Rounding::Nearest
    }
}

/// The finaliser of [`packed::mix`].
#[cube]
fn mix(x: u32) -> u32 {
    let a = (x ^ (x >> 16u32)) * 0x7FEB_352Du32;
    let b = (a ^ (a >> 15u32)) * 0x846C_A68Bu32;
    b ^ (b >> 16u32)
}

/// The thread's number in its plane; cubes have whole planes and one axis.
#[cube]
fn lane() -> u32 {
    UNIT_POS % 32u32
}

/// Place of the thread's vector `j` of parameters.
#[cube]
fn place(block: u32, #[comptime] j: usize, #[comptime] variant: Variant) -> u32 {
    let first = block * comptime!((BLOCK / variant.lanes) as u32);
    if comptime!(variant.together()) {
        first + lane() * comptime!(variant.vectors() as u32) + comptime!(j as u32)
    } else {
        first + lane() + comptime!((j * 32) as u32)
    }
}

/// A number of the small float's exponents, shifted to the lowest exponents of f32. There the even steps of codes below the
/// smallest normal number are f32's own subnormal numbers, so that a code is a plain shift of the bits.
#[cube]
fn lowered(y: f32) -> f32 {
    y * LOWER
}

/// The way back.
#[cube]
fn raised(y: f32) -> f32 {
    y * RAISE
}

/// The largest magnitude of the plane's block as bits, in which NaN comes after infinity.
#[cube]
fn largest(values: &Array<f32>) -> u32 {
    let mut bits = 0u32;
    #[unroll]
    for i in 0..comptime!(PER_THREAD) {
        bits = max(bits, u32::reinterpret(values[i]) & 0x7FFF_FFFFu32);
    }
    plane_max(bits)
}

/// True for the bits of a scale that codes refer to: neither vanishing nor infinite nor NaN.
#[cube]
fn counts(bits: u32) -> bool {
    // Below the smallest normal number the difference wraps around.
    bits - 0x0080_0000u32 < 0x7F00_0000u32
}

/// One over the scale, or 0.
#[cube]
fn inverse(bits: u32) -> f32 {
    select(counts(bits), f32::reinterpret(bits).recip(), 0.0f32)
}

/// The scale with these bits, or 0 below the normal numbers.
#[cube]
fn scale_of(bits: u32) -> f32 {
    f32::reinterpret(select(bits < 0x0080_0000u32, 0u32, bits))
}

/// Byte `i` of a word with its lowest bit at `bit`, among other bits.
#[cube]
fn byte_at(word: u32, #[comptime] i: usize, #[comptime] bit: usize) -> u32 {
    if comptime!(bit >= 8 * i) {
        word << comptime!((bit - 8 * i) as u32)
    } else {
        word >> comptime!((8 * i - bit) as u32)
    }
}

/// The moments from the thread's codes.
#[cube]
fn unpack<S: Numeric, K: Size>(
    first: &mut Array<f32>,
    second: &mut Array<f32>,
    m: Vector<S, K>,
    v: Vector<S, K>,
    m_scale: f32,
    v_scale: f32,
) {
    #[unroll]
    for i in 0..comptime!(PER_THREAD) {
        let word = u32::cast_from(m[comptime!(i / packed::CODES)]);
        let sign = byte_at(word, comptime!(i % packed::CODES), 24usize) & 0x8000_0000u32;
        let magnitude = byte_at(word, comptime!(i % packed::CODES), comptime!(M_CUT as usize)) & M_MASK;
        first[i] = raised(f32::reinterpret(sign | magnitude)) * m_scale;
        let word = u32::cast_from(v[comptime!(i / packed::CODES)]);
        let magnitude = byte_at(word, comptime!(i % packed::CODES), comptime!(V_CUT as usize)) & V_MASK;
        let root = raised(f32::reinterpret(magnitude)) * v_scale;
        second[i] = root * root;
    }
}

/// Code of a first moment.
#[cube]
fn code_first(m: f32, inverse: f32, random: u32) -> u32 {
    let dither = ((random >> 12u32) & 0xF_FFF0u32) | 8u32;
    let magnitude = (u32::reinterpret(lowered(m.abs() * inverse)) + dither) >> M_CUT;
    magnitude | ((u32::reinterpret(m) >> 24u32) & 0x80u32)
}

/// Code of the root of a second moment.
#[cube]
fn code_second(root: f32, inverse: f32, random: u32) -> u32 {
    let dither = ((random & 0xFFFFu32) << 3u32) | 4u32;
    let code = (u32::reinterpret(lowered(root * inverse)) + dither) >> V_CUT;
    // At least 1 for a root above zero.
    max(code, min(u32::reinterpret(root), 1u32))
}

/// The thread's codes of the first moment, or else of the second moment's root.
#[cube]
fn pack<S: Numeric, K: Size>(
    values: &Array<f32>,
    random: &Array<u32>,
    scale_bits: u32,
    #[comptime] first: bool,
) -> Vector<S, K> {
    let (inverse, keep) = (inverse(scale_bits), select(counts(scale_bits), 0xFFFF_FFFFu32, 0u32));
    let mut words = Vector::<S, K>::empty();
    #[unroll]
    for word in 0..comptime!(CODE_WORDS) {
        let mut codes = 0u32;
        #[unroll]
        for i in 0..comptime!(packed::CODES) {
            let at = comptime!(word * packed::CODES + i);
            let code = if comptime!(first) {
                code_first(values[at], inverse, random[at])
            } else {
                code_second(values[at], inverse, random[at])
            };
            codes |= code << comptime!((8 * i) as u32);
        }
        words[word] = S::cast_from(codes & keep);
    }
    words
}

/// Bits of the parameter's exact value, all NaNs made one.
#[cube]
fn exact_bits(p: f32) -> u32 {
    let bits = u32::reinterpret(p);
    select((bits & 0x7FFF_FFFFu32) > 0x7F80_0000u32, 0x7FC0_0000u32, bits)
}

/// Adds the remainders to the thread's working values.
#[cube]
fn join<R: Size>(p: &mut Array<f32>, remainder: &Array<Vector<i32, R>>, block: u32, #[comptime] variant: Variant) {
    let first = (block * 32u32 + lane()) * comptime!((REMAINDER_WORDS / variant.words) as u32);
    #[unroll]
    for j in 0..comptime!(REMAINDER_WORDS / variant.words) {
        let at = (first + comptime!(j as u32)) as usize;
        if at < remainder.len() {
            let words = remainder[at];
            #[unroll]
            for i in 0..comptime!(2 * variant.words) {
                let low = (u32::cast_from(words[comptime!(i / 2)]) >> comptime!((16 * (i % 2)) as u32)) & 0xFFFFu32;
                let k = comptime!(2 * j * variant.words + i);
                p[k] = f32::reinterpret(u32::reinterpret(p[k]) + low - ((low & 0x8000u32) << 1u32));
            }
        }
    }
}

/// Writes the lower halves of the thread's exact values and leaves the working values in `p`.
#[cube]
fn split<R: Size>(p: &mut Array<f32>, remainder: &mut Array<Vector<i32, R>>, block: u32, #[comptime] variant: Variant) {
    let first = (block * 32u32 + lane()) * comptime!((REMAINDER_WORDS / variant.words) as u32);
    #[unroll]
    for j in 0..comptime!(REMAINDER_WORDS / variant.words) {
        let mut words = Vector::<i32, R>::empty();
        #[unroll]
        for i in 0..comptime!(variant.words) {
            let k = comptime!(2 * (j * variant.words + i));
            let low = exact_bits(p[k]);
            let high = exact_bits(p[comptime!(k + 1)]);
            words[i] = i32::cast_from((low & 0xFFFFu32) | (high << 16u32));
            p[k] = f32::reinterpret((low + 0x8000u32) & 0xFFFF_0000u32);
            p[comptime!(k + 1)] = f32::reinterpret((high + 0x8000u32) & 0xFFFF_0000u32);
        }
        let at = (first + comptime!(j as u32)) as usize;
        if at < remainder.len() {
            remainder[at] = words;
        }
    }
}

/// The thread's elements of parameters, gradients or moments; zeros beyond the end. Two bf16 numbers come as one u32 where
/// `halves` says so.
#[cube]
fn load<F: Numeric, N: Size>(
    from: &Array<Vector<F, N>>,
    to: &mut Array<f32>,
    block: u32,
    n_vectors: u32,
    #[comptime] variant: Variant,
    #[comptime] halves: bool,
) {
    #[unroll]
    for j in 0..comptime!(variant.vectors()) {
        let at = place(block, j, variant);
        if comptime!(halves) {
            let mut words = Vector::<u32, N>::new(0u32);
            if at < n_vectors {
                words = Vector::<u32, N>::cast_from(from[at as usize]);
            }
            #[unroll]
            for i in 0..comptime!(variant.lanes / 2) {
                let k = comptime!(j * variant.lanes + 2 * i);
                to[k] = f32::reinterpret(words[i] << 16u32);
                to[comptime!(k + 1)] = f32::reinterpret(words[i] & 0xFFFF_0000u32);
            }
        } else {
            let mut vector = Vector::<f32, N>::new(0.0f32);
            if at < n_vectors {
                vector = Vector::<f32, N>::cast_from(from[at as usize]);
            }
            #[unroll]
            for i in 0..comptime!(variant.lanes) {
                to[comptime!(j * variant.lanes + i)] = vector[i];
            }
        }
    }
}

/// The way back of [`load`]; with `halves` the numbers are bf16 numbers already.
#[cube]
fn store<F: Numeric, N: Size>(
    from: &Array<f32>,
    to: &mut Array<Vector<F, N>>,
    block: u32,
    n_vectors: u32,
    #[comptime] variant: Variant,
    #[comptime] halves: bool,
) {
    #[unroll]
    for j in 0..comptime!(variant.vectors()) {
        let at = place(block, j, variant);
        if comptime!(halves) {
            let mut words = Vector::<u32, N>::empty();
            #[unroll]
            for i in 0..comptime!(variant.lanes / 2) {
                let k = comptime!(j * variant.lanes + 2 * i);
                let high = u32::reinterpret(from[comptime!(k + 1)]) & 0xFFFF_0000u32;
                words[i] = (u32::reinterpret(from[k]) >> 16u32) | high;
            }
            if at < n_vectors {
                to[at as usize] = Vector::cast_from(words);
            }
        } else {
            let mut vector = Vector::<f32, N>::empty();
            #[unroll]
            for i in 0..comptime!(variant.lanes) {
                vector[i] = from[comptime!(j * variant.lanes + i)];
            }
            if at < n_vectors {
                to[at as usize] = Vector::cast_from(vector);
            }
        }
    }
}

/// Random bits of the thread's elements, which are a group; see [`packed::random`].
#[cube]
fn random_bits(key: u32, block: u32) -> Array<u32> {
    let group = mix(key ^ (block * 32u32 + lane()));
    let mut random = Array::<u32>::new(comptime!(PER_THREAD));
    #[unroll]
    for i in 0..comptime!(PER_THREAD) {
        let bits = (group ^ comptime!(packed::SPREAD.wrapping_mul(i as u32))) * packed::STIR;
        random[i] = bits ^ (bits >> 16u32);
    }
    random
}

/// Rounds the thread's parameters to bf16 numbers at random.
#[cube]
fn round_stochastically(p: &mut Array<f32>, random: &Array<u32>) {
    #[unroll]
    for i in 0..comptime!(PER_THREAD) {
        let up = (random[i] * packed::SPREAD) >> 16u32;
        p[i] = f32::reinterpret((exact_bits(p[i]) + up) & 0xFFFF_0000u32);
    }
}

/// The largest size of a finite number among the thread's parameters, as their type has them.
#[cube]
fn size_of<P: Numeric>(p: &Array<f32>, #[comptime] rounded: bool) -> f32 {
    let mut most = 0.0f32;
    #[unroll]
    for i in 0..comptime!(PER_THREAD) {
        let size = if comptime!(rounded) { p[i].abs() } else { f32::cast_from(P::cast_from(p[i])).abs() };
        // False for NaN.
        most = max(most, select(size <= LARGEST, size, 0.0f32));
    }
    most
}

/// The step; see [`AdamW`]. `m` and `v` hold numbers or codes; the remainder and the moments' scales are touched where the
/// variant has them, `words` where it gathers peaks. The flags choose the division that is right to two units in the last place.
#[cube(
    launch_unchecked,
    fast_math = FastMath::AllowReciprocal | FastMath::ReducedPrecision | FastMath::UnsignedZero | FastMath::NotInf
)]
fn step_kernel<P: Numeric, G: Numeric, S: Numeric, N: Size, K: Size, R: Size>(
    param: &mut Array<Vector<P, N>>,
    grad: &Array<Vector<G, N>>,
    m: &mut Array<Vector<S, K>>,
    v: &mut Array<Vector<S, K>>,
    remainder: &mut Array<Vector<i32, R>>,
    m_scale: &mut Array<f32>,
    v_scale: &mut Array<f32>,
    scale: &Array<f32>,
    words: &Array<Atomic<u32>>,
    n_vectors: u32,
    blocks: u32,
    beta1: f32,
    rest1: f32,
    beta2: f32,
    rest2: f32,
    keep: f32,
    step: f32,
    inverse_root2: f32,
    eps: f32,
    key: u32,
    #[comptime] variant: Variant,
    #[define(P)] _param_type: StorageType,
    #[define(G)] _grad_type: StorageType,
    #[define(S)] _state_type: StorageType,
) {
    let block = CUBE_POS_X * comptime!(BLOCKS as u32) + UNIT_POS / 32u32;
    let factor = scale[0];
    // A NaN is neither above zero nor finite.
    let effect = factor.abs() > 0.0f32 && factor.abs() <= LARGEST;
    let rounded = comptime!(variant.rounding != Rounding::Nearest);
    let mut p = Array::<f32>::new(comptime!(PER_THREAD));
    let mut size = 0.0f32.runtime();
    if effect && block < blocks {
        let mut g = Array::<f32>::new(comptime!(PER_THREAD));
        let mut first = Array::<f32>::new(comptime!(PER_THREAD));
        let mut second = Array::<f32>::new(comptime!(PER_THREAD));
        let mut root = Array::<f32>::new(comptime!(PER_THREAD));
        let codes = (block * 32u32 + lane()) as usize;
        load::<P, N>(param, &mut p, block, n_vectors, variant, comptime!(variant.halves));
        load::<G, N>(grad, &mut g, block, n_vectors, variant, comptime!(variant.halves));
        if comptime!(variant.packed) {
            let (m_scale, v_scale) = (m_scale[block as usize], v_scale[block as usize]);
            unpack::<S, K>(&mut first, &mut second, m[codes], v[codes], m_scale, v_scale);
        } else {
            load::<S, K>(m, &mut first, block, n_vectors, variant, false);
            load::<S, K>(v, &mut second, block, n_vectors, variant, false);
        }
        if comptime!(variant.rounding == Rounding::Remainder) {
            join::<R>(&mut p, remainder, block, variant);
        }
        #[unroll]
        for i in 0..comptime!(PER_THREAD) {
            let gradient = g[i] * factor;
            first[i] = beta1 * first[i] + rest1 * gradient;
            second[i] = beta2 * second[i] + rest2 * gradient * gradient;
            root[i] = second[i].sqrt();
            p[i] = p[i] * keep - step * first[i] / (root[i] * inverse_root2 + eps);
        }
        if comptime!(variant.packed) {
            let random = random_bits(key, block);
            let m_bits = largest(&first);
            let v_bits = largest(&root);
            m[codes] = pack::<S, K>(&first, &random, m_bits, true);
            v[codes] = pack::<S, K>(&root, &random, v_bits, false);
            if lane() == 0u32 {
                m_scale[block as usize] = scale_of(m_bits);
                v_scale[block as usize] = scale_of(v_bits);
            }
        } else {
            store::<S, K>(&first, m, block, n_vectors, variant, false);
            store::<S, K>(&second, v, block, n_vectors, variant, false);
        }
        if comptime!(variant.rounding == Rounding::Stochastic) {
            round_stochastically(&mut p, &random_bits(key, block));
        }
        if comptime!(variant.rounding == Rounding::Remainder) {
            split::<R>(&mut p, remainder, block, variant);
        }
        store::<P, N>(&p, param, block, n_vectors, variant, comptime!(variant.halves));
        if comptime!(variant.gathers) {
            size = size_of::<P>(&p, rounded);
        }
    }
    if comptime!(variant.gathers) {
        if !effect && block < blocks {
            load::<P, N>(param, &mut p, block, n_vectors, variant, comptime!(variant.halves));
            size = size_of::<P>(&p, true);
        }
        gather(size, words, THREADS);
    }
}

/// A backend whose tensors are buffers of the device.
pub(crate) trait OnDevice: Backend<FloatTensorPrimitive = Buffer, IntTensorPrimitive = Buffer> {}
impl<B: Backend<FloatTensorPrimitive = Buffer, IntTensorPrimitive = Buffer>> OnDevice for B {}

/// A parameter's state on the device. What a variant lacks is some other buffer, which its kernel does not touch.
pub(crate) struct State {
    pub(crate) m: Buffer,
    pub(crate) v: Buffer,
    pub(crate) scales: Option<[Buffer; 2]>,
    pub(crate) remainder: Option<Buffer>,
    pub(crate) stochastic: bool,
}

impl State {
    /// The state of any backend whose tensors are such buffers.
    pub(crate) fn new<B: OnDevice>(master: Master<B>, moments: Moments<B>) -> Self {
        let (m, v, scales) = match moments {
            Moments::Full { m, v } => (m.into_primitive(), v.into_primitive(), None),
            Moments::Packed(PackedMoments { m, m_scale, v, v_scale }) => {
                let scales = [m_scale, v_scale].map(|scale| scale.into_primitive().tensor());
                (m.into_primitive(), v.into_primitive(), Some(scales))
            }
        };
        let stochastic = matches!(master, Master::Stochastic);
        let remainder = match master {
            Master::Remainder(remainder) => Some(remainder.into_primitive()),
            Master::Nearest | Master::Stochastic => None,
        };
        Self { m, v, scales, remainder, stochastic }
    }

    /// The way back of [`State::new`].
    pub(crate) fn into_parts<B: OnDevice>(self) -> (Master<B>, Moments<B>) {
        let master = match self.remainder {
            Some(remainder) => Master::Remainder(Tensor::from_primitive(remainder)),
            None if self.stochastic => Master::Stochastic,
            None => Master::Nearest,
        };
        let moments = match self.scales {
            None => Moments::Full { m: Leaf::from_primitive(self.m), v: Leaf::from_primitive(self.v) },
            Some(scales) => {
                let [m_scale, v_scale] = scales.map(|scale| Tensor::from_primitive(TensorPrimitive::Float(scale)));
                let [m, v] = [self.m, self.v].map(Tensor::from_primitive);
                Moments::Packed(PackedMoments { m, m_scale, v, v_scale })
            }
        };
        (master, moments)
    }
}

/// The parameter and its state after one step, and peaks of parts of it where an FP8 layer of this device could read it.
pub(crate) fn step(
    param: Buffer,
    grad: Buffer,
    state: State,
    scale: Buffer,
    hyper: &AdamW,
    gather: bool,
) -> (Buffer, State, Option<Buffer>) {
    let (param, grad, scale) = (owned(param), dense(grad), dense_as(scale, DType::F32));
    let (m, v) = (owned(state.m), owned(state.v));
    let (scales, remainder) = (state.scales.map(|scales| scales.map(owned)), state.remainder.map(owned));
    assert!(m.dtype == v.dtype, "adamw: both moments need one element type, got {:?} and {:?}", m.dtype, v.dtype);
    check_indices("adamw", &[&param]);
    let n = param.shape().num_elements();
    let (code_words, blocks) = packed::lengths(n);
    let moments = if scales.is_some() { code_words } else { n };
    check_lengths("adamw", &[(&grad, n), (&m, moments), (&v, moments), (&scale, 1)]);
    scales.iter().flatten().for_each(|scale| check_lengths("adamw scales", &[(scale, blocks)]));
    remainder.iter().for_each(|remainder| check_lengths("adamw remainder", &[(remainder, n.div_ceil(2))]));
    let gathers = gather && n > 0 && param.dtype == DType::BF16 && has_fp8(&param.device);
    let peaks = gathers.then(|| new_words(&param));
    if n > 0 {
        let packed = scales.is_some();
        let width = match packed {
            true => lanes(n, &[&param, &grad]),
            false => lanes(n, &[&param, &grad, &m, &v]),
        };
        let words = remainder.as_ref().map_or(1, |remainder| lanes(remainder.shape().num_elements(), &[remainder]));
        let rounding = match (&remainder, state.stochastic) {
            (Some(_), _) => Rounding::Remainder,
            (None, true) => Rounding::Stochastic,
            (None, false) => Rounding::Nearest,
        };
        let halves = width == PER_THREAD && packed && rounding != Rounding::Nearest;
        let variant = Variant { rounding, packed, lanes: width, words, halves, gathers: peaks.is_some() };
        let n_vectors = (n / width) as u32;
        let width = if halves { PER_THREAD / 2 } else { width };
        let [m_scale, v_scale] = scales.clone().unwrap_or_else(|| [scale.clone(), scale.clone()]);
        let low = remainder.clone().unwrap_or_else(|| scale.clone());
        let seen = peaks.clone().unwrap_or_else(|| scale.clone());
        let factors = hyper.factors();
        let read_as = |dtype| if halves { DType::U32 } else { dtype };
        let (param_dtype, grad_dtype, state_dtype) = (read_as(param.dtype), read_as(grad.dtype), m.dtype);
        // SAFETY: gradient and full moments are as long as the parameter, state in blocks and remainders as long as it asks
        // for, as just checked; parameters, gradients and remainders are guarded by their lengths, blocks by their number.
        unsafe {
            step_kernel::launch_unchecked::<Runtime>(
                &param.client.clone(),
                cubes(blocks.div_ceil(BLOCKS)),
                CubeDim::new_1d(THREADS as u32),
                width,
                if packed { CODE_WORDS } else { width },
                words,
                param.clone().into_array_arg(),
                grad.into_array_arg(),
                m.clone().into_array_arg(),
                v.clone().into_array_arg(),
                low.into_array_arg(),
                m_scale.into_array_arg(),
                v_scale.into_array_arg(),
                scale.into_array_arg(),
                seen.into_array_arg(),
                n_vectors,
                blocks as u32,
                factors.beta1,
                factors.rest1,
                factors.beta2,
                factors.rest2,
                factors.keep,
                factors.step,
                factors.inverse_root2,
                factors.eps,
                factors.key,
                variant,
                param_dtype.into(),
                grad_dtype.into(),
                state_dtype.into(),
            );
        }
    }
    (param, State { m, v, scales, remainder, stochastic: state.stochastic }, peaks)
}
