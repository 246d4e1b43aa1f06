//! Linear layers per expert on Hopper, in CUDA C++: bf16, any groups, nothing is read on the host.

use burn::tensor::{DType, Shape, TensorMetadata};
use half::bf16;

use crate::cuda::launch::{dense, empty, owned, row_range};
use crate::cuda::{Argument, Buffer, Grid, RawKernel, capability};
use crate::experts_decoded;

/// Compute capability of the only architecture that has these instructions.
const HOPPER: i32 = 90;
/// Most experts that a block of threads has room for.
const MAX_EXPERTS: usize = 512;
/// Elements that are copied at a time, and bytes that addresses are multiples of.
const CHUNK: usize = 8;
const ALIGNMENT: u64 = 16;
/// Rows of a tile.
const TILE: usize = 128;
/// Two warpgroups that compute and one that loads.
const THREADS: usize = 3 * 128;
/// Bytes behind the slots, for barriers and what is known of the experts.
const RECORD_BYTES: u32 = 4608;

/// Widths of a tile, each with its number of slots.
const WIDTHS: [(usize, u32); 4] = [(64, 8), (128, 6), (192, 5), (256, 4)];

/// Definitions for tiles of one width: weights as they are or turned, results in bf16 or f32.
macro_rules! defines {
    ($width:literal) => {
        [
            &[$width, "TURNED=0", "RESULT_F32=0"],
            &[$width, "TURNED=1", "RESULT_F32=0"],
            &[$width, "TURNED=0", "RESULT_F32=1"],
        ]
    };
}
const DEFINES: [[&[&str]; 3]; 4] =
    [defines!("WIDTH=64"), defines!("WIDTH=128"), defines!("WIDTH=192"), defines!("WIDTH=256")];
const SOURCE: &str = concat!(include_str!("../../cuda/hopper.cuh"), include_str!("hopper.cu"));

/// Kinds of kernels, as [`DEFINES`] has them.
const PLAIN: usize = 0;
const TURNED: usize = 1;
const INTO_F32: usize = 2;

/// Index of the tile's width for results of so many columns.
fn width_for(n: usize) -> usize {
    let columns = |width: usize| n.div_ceil(WIDTHS[width].0) * WIDTHS[width].0;
    match n {
        0..=64 => 0,
        65..=128 => 1,
        // The widest has the least traffic for its work, but may do work for nobody.
        _ if columns(2) * 100 < columns(3) * 95 => 2,
        _ => 3,
    }
}

fn kernel(name: &'static str, width: usize, kind: usize) -> RawKernel {
    let (columns, slots) = WIDTHS[width];
    let shared_bytes = slots * ((TILE + columns) * 128) as u32 + RECORD_BYTES;
    RawKernel { name, source: SOURCE, defines: DEFINES[width][kind], shared_bytes, one_architecture: true }
}

/// Whether the kernels are for such operands, of these widths.
fn applies(tensors: &[&Buffer], widths: &[usize], n_experts: usize) -> bool {
    // What is not dense is copied to a place of its own.
    let aligned = |x: &Buffer| !x.is_contiguous() || x.handle.offset_start.unwrap_or(0).is_multiple_of(ALIGNMENT);
    capability(&tensors[0].device) == Some(HOPPER)
        && n_experts <= MAX_EXPERTS
        && tensors.iter().all(|x| x.dtype == DType::BF16 && aligned(x))
        && widths.iter().all(|width| *width > 0 && width.is_multiple_of(CHUNK))
}

/// Blocks that stay and take tiles, or as many neighbouring ones at a time, until there are none.
fn staying(x: &Buffer, tiles: usize, together: usize) -> Grid {
    let processors = x.client.properties().hardware.num_streaming_multiprocessors.unwrap_or(1) as usize;
    let blocks = tiles.min(processors / together).max(1) * together;
    Grid { blocks: [blocks, 1, 1], threads: THREADS }
}

fn int(x: usize) -> Argument<'static> {
    Argument::I32(x as i32)
}

/// Where the weights of experts are, `[e·o, i]`.
#[expect(clippy::large_enum_variant, reason = "a few live for the time of a call")]
pub(crate) enum Weight<'a> {
    /// In bf16.
    Whole(Buffer),
    /// In fewer bits: `decode(row, n)` gives rows in bf16, a part of the experts at a time.
    Parts {
        /// Rows and width.
        dims: [usize; 2],
        /// The decoder.
        decode: &'a dyn Fn(usize, usize) -> Buffer,
    },
}

/// The product of each expert's rows with its weight, and what is added to it.
pub(crate) struct Rows<'a> {
    /// `[m, i]`, or `[m, o]` where the weight is turned.
    pub(crate) x: Buffer,
    /// `[e·o, i]`.
    pub(crate) weight: Weight<'a>,
    /// Whether the weight's rows are summed over: the gradient of the layer's input.
    pub(crate) turned: bool,
    /// `[e·o]`.
    pub(crate) bias: Option<Buffer>,
    /// `[m, r]`, and `[e·o, r]` or `[e·r, i]` where the weight is turned: one more product.
    pub(crate) low_rank: Option<[Buffer; 2]>,
    /// `[e + 1]`.
    pub(crate) offsets: Buffer,
}

impl Rows<'_> {
    fn dims(&self) -> [usize; 2] {
        match &self.weight {
            Weight::Whole(weight) => [weight.shape()[0], weight.shape()[1]],
            Weight::Parts { dims, .. } => *dims,
        }
    }

    /// Whether the kernels are for these operands.
    pub(crate) fn fit(&self) -> bool {
        let n_experts = self.offsets.shape()[0] - 1;
        let [rows, i] = self.dims();
        let mut widths = vec![rows / n_experts, i];
        let mut tensors = vec![&self.x];
        if let Weight::Whole(weight) = &self.weight {
            tensors.push(weight);
        }
        tensors.extend(self.bias.iter().chain(self.low_rank.iter().flatten()));
        widths.extend(self.low_rank.iter().map(|[low, _]| low.shape()[1]));
        self.x.shape()[0] > 0 && applies(&tensors, &widths, n_experts)
    }

    /// The result `[m, o]`, or `[m, i]` where the weight is turned.
    pub(crate) fn product(self, op: &'static str) -> Buffer {
        let ([rows, i], n_experts) = (self.dims(), self.offsets.shape()[0] - 1);
        let Self { x, weight, turned, bias, low_rank, offsets } = self;
        let ([x, offsets], bias) = ([x, offsets].map(dense), bias.map(dense));
        let low_rank = low_rank.map(|pair| pair.map(dense));
        let (m, o) = (x.shape()[0], rows / n_experts);
        let out = empty(&x, Shape::new([m, if turned { i } else { o }]), DType::BF16);
        let part = match weight {
            Weight::Whole(_) => n_experts,
            Weight::Parts { .. } => experts_decoded(n_experts, o * i * size_of::<bf16>()),
        };
        for first in (0..n_experts).step_by(part) {
            let n = part.min(n_experts - first);
            let weight = match &weight {
                Weight::Whole(weight) => dense(weight.clone()),
                Weight::Parts { decode, .. } => dense(decode(first * o, n * o)),
            };
            let of_part = |x: &Buffer| {
                let each = x.shape()[0] / n_experts;
                row_range(x, first * each, n * each)
            };
            Part {
                x: &x,
                weight,
                turned,
                bias: bias.as_ref().map(of_part),
                low_rank: low_rank.as_ref().map(|[low, up]| [low.clone(), of_part(up)]),
                offsets: row_range(&offsets, first, n + 1),
                out: &out,
                last: first + n == n_experts,
            }
            .launch(op);
        }
        out
    }
}

/// The product of the rows of neighbouring experts.
struct Part<'a> {
    x: &'a Buffer,
    weight: Buffer,
    turned: bool,
    bias: Option<Buffer>,
    low_rank: Option<[Buffer; 2]>,
    offsets: Buffer,
    out: &'a Buffer,
    /// Whether rows behind these experts have none, and become zeros.
    last: bool,
}

impl Part<'_> {
    fn launch(self, op: &'static str) {
        let Self { x, weight, turned, bias, low_rank, offsets, out, last } = self;
        let (n_experts, m) = (offsets.shape()[0] - 1, x.shape()[0]);
        let (rows, i) = (weight.shape()[0], weight.shape()[1]);
        let o = rows / n_experts;
        let rank = low_rank.as_ref().map_or(0, |[low, _]| low.shape()[1]);
        let (k, n) = if turned { (o, i) } else { (i, o) };
        let width = width_for(n);
        let [low, up] = low_rank.as_ref().map_or([x, &weight], |[low, up]| [low, up]);
        // Maps of nothing are not made: without a rank those of the operands stand there, unread.
        let maps = match (rank, turned) {
            (0, _) => [Argument::Map(low, [1, m, k]), Argument::Map(up, [n_experts, o, i])],
            (_, false) => [Argument::Map(low, [1, m, rank]), Argument::Map(up, [n_experts, o, rank])],
            (_, true) => [Argument::Map(low, [1, m, rank]), Argument::Map(up, [n_experts, rank, i])],
        };
        check(&[(x, m * k), (&weight, rows * i), (&offsets, n_experts + 1), (out, m * n)]);
        if let Some(bias) = &bias {
            check(&[(bias, rows)]);
        }
        if low_rank.is_some() {
            check(&[(low, m * rank), (up, n_experts * rank * n)]);
        }
        let operands = [
            Argument::Map(x, [1, m, k]),
            Argument::Map(&weight, [n_experts, o, i]),
            maps[0],
            maps[1],
            Argument::Buffer(&offsets),
            Argument::Buffer(bias.as_ref().unwrap_or(x)),
            Argument::Buffer(out),
        ];
        let flags = [int(bias.is_some().into()), int(last.into())];
        let sizes = [int(n_experts), int(m), int(n), int(k), int(rank)];
        let pairs = (m / (2 * TILE) + 2 * (n_experts + 1)) * n.div_ceil(WIDTHS[width].0);
        let kernel = kernel("grouped_rows", width, if turned { TURNED } else { PLAIN });
        kernel.launch(op, staying(x, pairs, 2), &[operands.as_slice(), &sizes, &flags].concat());
    }
}

/// Panics when a buffer is not as long as the shapes ask for: the kernels check no index.
fn check(buffers: &[(&Buffer, usize)]) {
    for (buffer, want) in buffers {
        let got = buffer.shape().num_elements();
        assert!(got == *want && buffer.is_contiguous(), "experts: a buffer needs {want} elements, got {got}");
    }
}

/// What the gradient of a weight is made of.
pub(crate) struct Weights {
    /// `[m, o]`.
    pub(crate) dy: Buffer,
    /// `[m, i]`.
    pub(crate) x: Buffer,
    /// `[e + 1]`.
    pub(crate) offsets: Buffer,
    /// `[e·o, i]`, what the gradient is added to.
    pub(crate) acc: Option<Buffer>,
}

impl Weights {
    /// Whether the kernels are for these operands.
    pub(crate) fn fit(&self) -> bool {
        let widths = [self.dy.shape()[1], self.x.shape()[1]];
        self.x.shape()[0] > 0
            && self.acc.as_ref().is_none_or(|acc| matches!(acc.dtype, DType::BF16 | DType::F32))
            && applies(&[&self.dy, &self.x], &widths, self.offsets.shape()[0] - 1)
    }

    /// `dyᵀ · x` for each expert, `[e·o, i]`.
    pub(crate) fn gradient(self, op: &'static str) -> Buffer {
        let Self { dy, x, offsets, acc } = self;
        let [dy, x, offsets] = [dy, x, offsets].map(dense);
        let (n_experts, m) = (offsets.shape()[0] - 1, x.shape()[0]);
        let (o, i) = (dy.shape()[1], x.shape()[1]);
        let result = acc.as_ref().map_or(DType::BF16, |acc| acc.dtype);
        let onto = acc.is_some();
        let out = acc.map_or_else(|| empty(&x, Shape::new([n_experts * o, i]), result), owned);
        check(&[(&dy, m * o), (&x, m * i), (&offsets, n_experts + 1), (&out, n_experts * o * i)]);
        // The wider one stands in the rows of the tiles, so that a narrow one costs no work for nobody.
        let flipped = o < i && o <= TILE;
        let (a, b, high, n) = if flipped { (&x, &dy, i, o) } else { (&dy, &x, o, i) };
        let width = width_for(n);
        let kind = if result == DType::F32 { INTO_F32 } else { PLAIN };
        let arguments = [
            Argument::Map(a, [1, m, high]),
            Argument::Map(b, [1, m, n]),
            Argument::Buffer(&offsets),
            Argument::Buffer(&out),
            int(n_experts),
            int(m),
            int(high),
            int(n),
            int(flipped.into()),
            int(onto.into()),
        ];
        let tiles = n_experts * high.div_ceil(TILE) * n.div_ceil(WIDTHS[width].0);
        kernel("grouped_weights", width, kind).launch(op, staying(&x, tiles, 1), &arguments);
        out
    }
}
