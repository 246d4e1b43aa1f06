//! The case table of all ops, and running it on any backend.
//!
//! [`run_all`] builds every case's inputs, runs the op forward and, where it has one, backward under `Autodiff`, and
//! compares each result with the f64 reference. A program for another backend calls it and prints what failed.

use std::fmt;

use burn::backend::Autodiff;
use burn::tensor::{
    DType, Element, FloatDType, Int, Tensor, TensorData,
    backend::{Backend, BackendTypes},
};

use crate::compare::{Mismatch, Report, compare};
use crate::tolerance::{Kind, Precision, Tolerance, tolerance};
use crate::{Gradients, LmBackend, ops};

/// What the numbers of a case look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// About one in size, both signs.
    Typical,
    /// All zero.
    Zero,
    /// So large that squares are still finite and fourth powers are not.
    Huge,
    /// So small that squares are the smallest normal numbers.
    Tiny,
    /// Typical with one NaN.
    WithNan,
    /// Typical with both infinities.
    WithInfinities,
}

impl Fill {
    /// `n` numbers; the same for the same seed.
    pub fn values(self, seed: u64, n: usize) -> Vec<f32> {
        let scale = match self {
            Self::Typical | Self::WithNan | Self::WithInfinities => 1.0,
            Self::Zero => 0.0,
            Self::Huge => 1e15,
            Self::Tiny => 1e-15,
        };
        let mut values: Vec<f32> = normals(seed, n).map(|x| x * scale).collect();
        match self {
            Self::WithNan if n > 0 => values[n / 3] = f32::NAN,
            Self::WithInfinities if n > 0 => {
                values[n / 5] = f32::NEG_INFINITY;
                values[n / 2] = f32::INFINITY;
            }
            _ => {}
        }
        values
    }
}

/// Numbers of mean 0 and variance 1: sums of four uniform ones, from a counter that is hashed.
fn normals(seed: u64, n: usize) -> impl Iterator<Item = f32> {
    let uniform = move |i: u64| (mix(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ i) >> 40) as f32 / (1u64 << 24) as f32;
    (0..n as u64).map(move |i| ((0..4).map(|j| uniform(4 * i + j)).sum::<f32>() - 2.0) * 3.0f32.sqrt())
}

/// The finaliser of splitmix64.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// `n` whole numbers in `0..limit`; the same for the same seed.
pub fn whole_numbers(seed: u64, n: usize, limit: usize) -> Vec<i32> {
    (0..n as u64).map(|i| (mix(mix(seed) ^ i) % limit.max(1) as u64) as i32).collect()
}

/// One result of one case, compared.
#[derive(Clone, Debug)]
pub struct Check {
    /// Name of the op's folder.
    pub op: &'static str,
    /// Name of the case.
    pub case: String,
    /// Name of the result, such as `y` or `dx`.
    pub what: &'static str,
    /// What the comparison said.
    pub outcome: Result<Report, Mismatch>,
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} / {} / {}: ", self.op, self.case, self.what)?;
        match &self.outcome {
            Ok(report) => write!(f, "{report}"),
            Err(mismatch) => write!(f, "{mismatch}"),
        }
    }
}

/// Runs the cases of one op on one backend and keeps what was compared.
#[derive(Debug)]
pub struct Runner<B: Backend> {
    /// Where the tensors live.
    pub device: B::Device,
    op: &'static str,
    case: String,
    checks: Vec<Check>,
}

impl<B: LmBackend> Runner<B> {
    /// A runner for one op.
    pub fn new(op: &'static str, device: &B::Device) -> Self {
        Self { device: device.clone(), op, case: String::new(), checks: Vec::new() }
    }

    /// Names the case that follows.
    pub fn begin(&mut self, case: &str) {
        self.case = case.to_owned();
    }

    /// All comparisons so far.
    pub fn finish(self) -> Vec<Check> {
        self.checks
    }

    /// A tracked tensor, and its values as the backend holds them.
    pub fn tracked<const D: usize>(&self, values: Vec<f32>, dims: [usize; D]) -> (Tensor<Autodiff<B>, D>, Vec<f64>) {
        let (tensor, values) = self.constant(values, dims);
        (tensor.require_grad(), values)
    }

    /// An untracked tensor, and its values as the backend holds them.
    pub fn constant<const D: usize>(&self, values: Vec<f32>, dims: [usize; D]) -> (Tensor<Autodiff<B>, D>, Vec<f64>) {
        // Said outright: a device's default type is that of the first backend that the process used on it.
        let options = (&self.device, B::FloatElem::dtype());
        let tensor = match dims.contains(&0) {
            // Not every backend copies nothing.
            true => Tensor::<B, D>::empty(dims, options),
            false => Tensor::from_data(TensorData::new(values, dims), options),
        };
        let values = numbers(tensor.clone()).into_iter().map(f64::from).collect();
        (Tensor::from_inner(tensor), values)
    }

    /// An untracked vector of f32 numbers, whatever the backend's float type is.
    pub fn floats<const N: usize>(&self, values: [f32; N]) -> Tensor<B, 1> {
        Tensor::from_data(TensorData::new(values.to_vec(), [N]), (&self.device, DType::F32))
    }

    /// A tracked tensor in f32, whatever the backend's type is.
    pub fn tracked_f32<const D: usize>(&self, values: Vec<f32>, dims: [usize; D]) -> Tensor<Autodiff<B>, D> {
        let tensor = Tensor::<B, D>::from_data(TensorData::new(values, dims), (&self.device, DType::F32));
        Tensor::from_inner(tensor).require_grad()
    }

    /// A tensor of whole numbers.
    pub fn ints<const D: usize>(&self, values: Vec<i32>, dims: [usize; D]) -> Tensor<Autodiff<B>, D, Int> {
        match dims.contains(&0) {
            true => Tensor::empty(dims, &self.device),
            false => Tensor::from_data(TensorData::new(values, dims), &self.device),
        }
    }

    /// Gradients of `Σ y·dy`; some ops give f32 whatever their operands are, and `dy` follows.
    pub fn backward<const D: usize>(&self, y: Tensor<Autodiff<B>, D>, dy: Tensor<Autodiff<B>, D>) -> Gradients {
        let dy = dy.cast::<FloatDType>(y.dtype().into());
        (y * dy).sum().backward()
    }

    /// False where `n` elements are too few for a backward pass: burn's own ops launch no kernel over an empty tensor.
    pub fn differentiates(&self, n: usize) -> bool {
        n > 0 || !B::name(&self.device).contains("cubecl")
    }

    /// Compares whole numbers with the reference, without passing through the float type.
    pub fn check_ints<const D: usize>(&mut self, what: &'static str, got: Tensor<B, D, Int>, want: &[f64]) {
        let got = match got.dims().contains(&0) {
            true => Vec::new(),
            false => got.into_data().iter::<f32>().collect(),
        };
        let outcome = compare(&got, want, tolerance(Precision::F32, Kind::Copy));
        self.checks.push(Check { op: self.op, case: self.case.clone(), what, outcome });
    }

    /// Compares a tensor with the reference.
    pub fn check<const D: usize>(&mut self, what: &'static str, got: Tensor<B, D>, want: &[f64], kind: Kind) {
        let precision = match B::FloatElem::dtype() {
            DType::BF16 => Precision::Bf16,
            _ => Precision::F32,
        };
        let outcome = compare(&numbers(got), want, tolerance(precision, kind));
        self.checks.push(Check { op: self.op, case: self.case.clone(), what, outcome });
    }

    /// Compares numbers with the reference under bounds of the caller's own.
    pub fn check_numbers(&mut self, what: &'static str, got: &[f32], want: &[f64], tolerance: Tolerance) {
        let outcome = compare(got, want, tolerance);
        self.checks.push(Check { op: self.op, case: self.case.clone(), what, outcome });
    }

    /// Compares the gradient of a leaf with the reference; a missing gradient is an empty result.
    pub fn check_grad<const D: usize>(
        &mut self,
        what: &'static str,
        leaf: &Tensor<Autodiff<B>, D>,
        grads: &Gradients,
        want: &[f64],
        kind: Kind,
    ) {
        self.check_made(what, leaf.grad(grads), want, kind);
    }

    /// Compares a tensor with the reference; a missing one is an empty result.
    pub fn check_made<const D: usize>(
        &mut self,
        what: &'static str,
        got: Option<Tensor<B, D>>,
        want: &[f64],
        kind: Kind,
    ) {
        match got {
            Some(got) => self.check(what, got, want, kind),
            None => {
                let outcome = Err(Mismatch::Length(0, want.len()));
                self.checks.push(Check { op: self.op, case: self.case.clone(), what, outcome });
            }
        }
    }
}

/// The elements of a tensor as f32.
pub fn numbers<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    // Not every backend reads a tensor without elements.
    if tensor.dims().contains(&0) {
        return Vec::new();
    }
    tensor.into_data().iter::<f32>().collect()
}

/// Names of the ops, as their folders are called.
pub const OPS: [&str; 20] = [
    "linear",
    "rms_norm",
    "rope_qkv",
    "attention",
    "swiglu",
    "embedding",
    "linear_cross_entropy",
    "token_logprobs",
    "sum_squares",
    "adamw",
    "accumulate",
    "linear_fp8",
    "linear_bias",
    "route",
    "dispatch",
    "grouped_linear",
    "grouped_mxfp4",
    "grouped_lora",
    "grouped_fp8",
    "swiglu_clamped",
];

/// Runs every case of one op of [`OPS`].
pub fn run_op<B: LmBackend>(op: usize, device: &B::Device) -> Vec<Check> {
    type Run<B> = fn(&<B as BackendTypes>::Device) -> Vec<Check>;
    let each: [Run<B>; OPS.len()] = [
        ops::linear::cases::run::<B>,
        ops::rms_norm::cases::run::<B>,
        ops::rope_qkv::cases::run::<B>,
        ops::attention::cases::run::<B>,
        ops::swiglu::cases::run::<B>,
        ops::embedding::cases::run::<B>,
        ops::linear_cross_entropy::cases::run::<B>,
        ops::token_logprobs::cases::run::<B>,
        ops::sum_squares::cases::run::<B>,
        ops::adamw::cases::run::<B>,
        ops::accumulate::cases::run::<B>,
        ops::linear_fp8::cases::run::<B>,
        ops::linear_bias::cases::run::<B>,
        ops::route::cases::run::<B>,
        ops::dispatch::cases::run::<B>,
        ops::grouped_linear::cases::run::<B>,
        ops::grouped_mxfp4::cases::run::<B>,
        ops::grouped_linear::lora::run::<B>,
        ops::grouped_fp8::cases::run::<B>,
        ops::swiglu_clamped::cases::run::<B>,
    ];
    each[op](device)
}

/// Runs every case of every op.
pub fn run_all<B: LmBackend>(device: &B::Device) -> Vec<Check> {
    (0..OPS.len()).flat_map(|op| run_op::<B>(op, device)).collect()
}
