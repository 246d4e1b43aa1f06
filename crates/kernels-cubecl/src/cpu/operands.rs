//! Operands of attention and of the output head, from burn's tensors to what their kernels take.

use burn::tensor::{Shape, TensorMetadata};
use burn_flex::FlexTensor;

use super::dense::{Dense, whole_numbers};
use crate::HeadLayout;
use crate::ops::attention::{self, Problem};
use crate::ops::linear_cross_entropy::Operands;

/// Which keys each query sees, on the host.
pub(super) struct SpanValues {
    start: Vec<i32>,
    end: Vec<i32>,
    sinks: Option<Dense>,
    rows: [usize; 2],
}

impl SpanValues {
    pub(super) fn new(start: &FlexTensor, end: &FlexTensor, sinks: Option<FlexTensor>) -> Self {
        let shape = start.shape();
        Self {
            start: whole_numbers(start),
            end: whole_numbers(end),
            sinks: sinks.map(Dense::new),
            rows: [shape[0], shape[1]],
        }
    }

    /// The problem over `s` keys.
    pub(super) fn problem(&self, s: usize, heads: HeadLayout, scale: f32) -> Problem<'_> {
        let ([b, t], sinks) = (self.rows, self.sinks.as_ref().map(Dense::get));
        Problem { heads, b, t, s, scale, start: &self.start, end: &self.end, sinks }
    }
}

/// Keys or values `[b, s, width]` whose rows may lie apart.
pub(super) struct Rows {
    tensor: FlexTensor,
    strides: [usize; 2],
}

impl Rows {
    /// Copies the tensor only when the numbers of a row are no neighbours.
    pub(super) fn new(tensor: FlexTensor) -> Self {
        let strides = |tensor: &FlexTensor| match *tensor.layout().strides() {
            [batch, row, 1] => Some([usize::try_from(batch).ok()?, usize::try_from(row).ok()?]),
            _ => None,
        };
        match strides(&tensor) {
            Some(strides) => Self { tensor, strides },
            None => {
                let (tensor, shape) = (tensor.to_contiguous(), tensor.shape());
                Self { tensor, strides: [shape[1] * shape[2], shape[2]] }
            }
        }
    }

    /// Rows per batch row.
    pub(super) fn len(&self) -> usize {
        self.tensor.shape()[1]
    }

    pub(super) fn get(&self) -> attention::Rows<'_> {
        let [batch_stride, row_stride] = self.strides;
        attention::Rows {
            data: &self.tensor.storage()[self.tensor.layout().start_offset()..],
            batch_stride,
            row_stride,
        }
    }
}

/// Activations, output head and targets.
pub(super) struct Head {
    pub(super) x: Dense,
    pub(super) weight: Dense,
    targets: Vec<i32>,
}

impl Head {
    pub(super) fn new(x: FlexTensor, weight: FlexTensor, targets: &FlexTensor) -> Self {
        Self { x: Dense::new(x), weight: Dense::new(weight), targets: whole_numbers(targets) }
    }

    pub(super) fn operands(&self) -> Operands<'_> {
        let shape: Shape = self.weight.shape();
        Operands { x: self.x.get(), weight: self.weight.get(), targets: &self.targets, d: shape[1], v: shape[0] }
    }
}
