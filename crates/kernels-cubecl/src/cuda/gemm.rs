//! Matrix products through cuBLASLt: no transpose copies, sums in f32, and true f32 products for f32 operands.

use burn::tensor::{DType, Shape, TensorMetadata};

use super::launch::{dense, empty, rows, with_last};
use super::{Buffer, bridge};

/// One product `c[m,n] (+)= op(a)[m,k] · op(b)[k,n]` of dense row-major matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Gemm {
    /// Rows of `c`.
    pub m: usize,
    /// Columns of `c`.
    pub n: usize,
    /// Length of the sums.
    pub k: usize,
    /// `a` is stored as `[k, m]`.
    pub a_transposed: bool,
    /// `b` is stored as `[n, k]`.
    pub b_transposed: bool,
    /// Add to `c` in place of writing it.
    pub accumulate: bool,
}

/// Bytes of the loads of a bias.
const BIAS_ALIGNMENT: u64 = 16;

/// Element type of an operand of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    /// `float`.
    F32,
    /// Upper half of a `float`.
    Bf16,
    /// 8 bits, 4 of them exponent, 3 significand; without infinities.
    E4m3,
    /// 8 bits, 5 of them exponent, 2 significand.
    E5m2,
}

impl Element {
    /// Bytes of an element.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
            Self::E4m3 | Self::E5m2 => 1,
        }
    }
}

/// Element types of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Types {
    /// Of `a`.
    pub a: Element,
    /// Of `b`.
    pub b: Element,
    /// Of the result.
    pub c: Element,
    /// FP8 products may be summed in the matrix units' own format, which has fewer bits than f32.
    pub fast_sums: bool,
}

impl Types {
    /// The types of a product, where cuBLASLt has it.
    fn new(a: DType, b: DType, c: DType) -> Option<Self> {
        let types = |operand, c| Some(Self { a: operand, b: operand, c, fast_sums: false });
        match (a, b, c) {
            (DType::BF16, DType::BF16, DType::BF16) => types(Element::Bf16, Element::Bf16),
            (DType::BF16, DType::BF16, DType::F32) => types(Element::Bf16, Element::F32),
            (DType::F32, DType::F32, DType::F32) => types(Element::F32, Element::F32),
            _ => None,
        }
    }
}

/// Enqueues a product into `c`'s memory, whoever else holds it.
///
/// # Panics
/// When a buffer is shorter than the product, or cuBLASLt has no product of these element types.
pub fn gemm(op: &'static str, a: &Buffer, b: &Buffer, c: &Buffer, problem: Gemm) {
    gemm_bias(op, [a, b, c], None, problem);
}

/// As [`gemm`], with a vector `[n]` in the type of `c` added to each row of the result.
fn gemm_bias(op: &'static str, [a, b, c]: [&Buffer; 3], bias: Option<&Buffer>, problem: Gemm) {
    let Gemm { m, n, k, .. } = problem;
    for (name, tensor, want) in [("a", a, m * k), ("b", b, n * k), ("c", c, m * n)] {
        let got = tensor.shape().num_elements();
        assert!(got == want && tensor.is_contiguous(), "{op}: {name} of {problem:?} needs {want} elements, got {got}");
    }
    assert!(m * n > 0 && k > 0, "{op}: a product needs rows, columns and terms, got {problem:?}");
    let types = Types::new(a.dtype, b.dtype, c.dtype).unwrap_or_else(|| {
        panic!(
            "{op}: no CUDA product of {:?} and {:?} into {:?}; use bf16 or f32 throughout",
            a.dtype, b.dtype, c.dtype
        )
    });
    if let Some(bias) = bias {
        let (got, dtype) = (bias.shape().num_elements(), bias.dtype);
        let fits = got == n && dtype == c.dtype && bias.is_contiguous() && !problem.accumulate;
        assert!(fits, "{op}: the bias of {problem:?} needs {n} elements in {:?}, got {got} in {dtype:?}", c.dtype);
    }
    bridge::enqueue_gemm(op, [a, b, c], bias, problem, types);
}

/// Enqueues a product of FP8 operands, kept as bytes, into `c`'s memory; each operand comes with a factor `[1]`.
///
/// cuBLASLt has them for `a` as it is and `b` transposed alone, in groups of 16.
///
/// # Panics
/// When a buffer is shorter than the product.
pub fn gemm_fp8(op: &'static str, buffers: [&Buffer; 3], factors: [&Buffer; 2], problem: Gemm, types: Types) {
    let Gemm { m, n, k, .. } = problem;
    for (tensor, want, bytes) in [
        (buffers[0], m * k, types.a.bytes()),
        (buffers[1], n * k, types.b.bytes()),
        (buffers[2], m * n, types.c.bytes()),
        (factors[0], 1, 4),
        (factors[1], 1, 4),
    ] {
        let (got, size) = (tensor.shape().num_elements(), tensor.dtype.size());
        let fits = got == want && size == bytes && tensor.is_contiguous();
        assert!(fits, "{op}: {problem:?} needs {want} elements of {bytes} bytes, got {got} of {size}");
    }
    bridge::enqueue_gemm_fp8(op, buffers, factors, problem, types);
}

/// A zero tensor; products without terms and gradients without rows are that.
pub(crate) fn zeros(like: &Buffer, shape: Shape, dtype: DType) -> Buffer {
    match shape.num_elements() {
        0 => empty(like, shape, dtype),
        _ => burn_cubecl::ops::numeric::zeros_client(like.client.clone(), like.device.clone(), shape, dtype),
    }
}

/// The two operands in one element type: bf16 only where both are.
pub(crate) fn paired(a: Buffer, b: Buffer) -> (Buffer, Buffer) {
    let dtype = if a.dtype == b.dtype { a.dtype } else { DType::F32 };
    (super::launch::dense_as(a, dtype), super::launch::dense_as(b, dtype))
}

/// `x[.., i] · weight[o, i]ᵀ`.
pub(crate) fn linear(x: Buffer, weight: Buffer) -> Buffer {
    linear_into(x, weight, None)
}

/// As [`linear`], with the result in this type where one is given.
pub(crate) fn linear_into(x: Buffer, weight: Buffer, dtype: Option<DType>) -> Buffer {
    let (x, weight) = paired(x, weight);
    let ((m, k), n) = (rows(&x.shape()), weight.shape()[0]);
    let y = empty(&x, with_last(&x.shape(), n), dtype.unwrap_or(x.dtype));
    if m * n == 0 || k == 0 {
        return zeros(&x, y.shape(), y.dtype);
    }
    gemm("linear", &x, &weight, &y, Gemm { m, n, k, a_transposed: false, b_transposed: true, accumulate: false });
    y
}

/// `x[.., i] · weight[o, i]ᵀ + bias[o]`, with the result in this type where one is given.
///
/// cuBLASLt adds the bias to the finished sums. Where its rule asks for something unusual of the product or of the bias's
/// place, the bias is added afterwards.
pub(crate) fn linear_bias(x: Buffer, weight: Buffer, bias: Buffer, dtype: Option<DType>) -> Buffer {
    let (x, weight) = paired(x, weight);
    let ((m, k), n) = (rows(&x.shape()), weight.shape()[0]);
    let y = empty(&x, with_last(&x.shape(), n), dtype.unwrap_or(x.dtype));
    let bias = super::launch::dense_as(bias, y.dtype);
    let aligned = bias.handle.offset_start.unwrap_or(0).is_multiple_of(BIAS_ALIGNMENT);
    if m == 0 || n < 2 || k < 2 || !aligned {
        let dtype = y.dtype;
        return crate::ops::linear_bias::cuda::add(linear_into(x, weight, Some(DType::F32)), bias, dtype);
    }
    let problem = Gemm { m, n, k, a_transposed: false, b_transposed: true, accumulate: false };
    gemm_bias("linear_bias", [&x, &weight, &y], Some(&bias), problem);
    y
}

/// `dy[.., o] · weight[o, i]`.
pub(crate) fn linear_dx(dy: Buffer, weight: Buffer) -> Buffer {
    let (dy, weight) = paired(dy, weight);
    let ((m, k), n) = (rows(&dy.shape()), weight.shape()[1]);
    let dx = empty(&dy, with_last(&dy.shape(), n), dy.dtype);
    if m * n == 0 || k == 0 {
        return zeros(&dy, dx.shape(), dy.dtype);
    }
    let problem = Gemm { m, n, k, a_transposed: false, b_transposed: false, accumulate: false };
    gemm("linear backward by x", &dy, &weight, &dx, problem);
    dx
}

/// `dyᵀ · x`, with the element type of `dy`.
pub(crate) fn linear_dw(dy: Buffer, x: Buffer) -> Buffer {
    let dtype = dy.dtype;
    let (dy, x) = paired(dense(dy), x);
    let ((k, m), (_, n)) = (rows(&dy.shape()), rows(&x.shape()));
    let shape = Shape::new([dy.shape()[dy.shape().num_dims() - 1], x.shape()[x.shape().num_dims() - 1]]);
    if k == 0 || m * n == 0 {
        return zeros(&dy, shape, dtype);
    }
    let dw = empty(&dy, shape, dy.dtype);
    let problem = Gemm { m, n, k, a_transposed: true, b_transposed: false, accumulate: false };
    gemm("linear backward by weight", &dy, &x, &dw, problem);
    super::launch::dense_as(dw, dtype)
}

/// `acc + dyᵀ · x`, with the element type of `acc`: f32, or bf16 where both operands are.
pub(crate) fn linear_dw_acc(dy: Buffer, x: Buffer, acc: Buffer) -> Buffer {
    let acc = super::launch::owned(acc);
    let (dy, x) = paired(dense(dy), x);
    let ((k, m), (_, n)) = (rows(&dy.shape()), rows(&x.shape()));
    if k == 0 || m * n == 0 {
        return acc;
    }
    if acc.dtype != DType::F32 && acc.dtype != dy.dtype {
        return crate::ops::accumulate::cuda::add_assign(acc, linear_dw(dy, x));
    }
    let problem = Gemm { m, n, k, a_transposed: true, b_transposed: false, accumulate: true };
    gemm("linear backward by weight", &dy, &x, &acc, problem);
    acc
}
