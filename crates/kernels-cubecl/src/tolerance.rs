//! The one table of tolerances: how far a result may be from the f64 reference, by element type and kind of op.

/// Element type that an op computed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// 24 bits of significand.
    F32,
    /// 8 bits of significand in memory, f32 inside.
    Bf16,
}

/// What an op does with its operands, as far as rounding is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Moves elements; must be exact.
    Copy,
    /// A few operations per element.
    Elementwise,
    /// A sum over a row, or two in a row.
    Reduction,
    /// A matrix product, or a softmax between two.
    Product,
    /// A sum over all rows of products of rounded results, most of which cancel.
    Cancelling,
}

/// Bounds of a comparison, relative to the reference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Error of an element relative to that element.
    pub element: f64,
    /// Error of an element relative to the largest element of the tensor, added to the first.
    pub floor: f64,
    /// Root-mean-square error relative to the root-mean-square of the reference.
    pub global: f64,
}

/// Bounds for an op of this kind in this precision.
pub fn tolerance(precision: Precision, kind: Kind) -> Tolerance {
    let (element, floor, global) = match (precision, kind) {
        (_, Kind::Copy) => (0.0, 0.0, 0.0),
        (Precision::F32, Kind::Elementwise) => (2e-6, 1e-7, 1e-6),
        (Precision::F32, Kind::Reduction) => (5e-6, 2e-6, 2e-6),
        (Precision::F32, Kind::Product | Kind::Cancelling) => (1e-5, 5e-6, 5e-6),
        (Precision::Bf16, Kind::Elementwise) => (8e-3, 1e-3, 3e-3),
        (Precision::Bf16, Kind::Reduction) => (1.6e-2, 4e-3, 4e-3),
        (Precision::Bf16, Kind::Product) => (1.6e-2, 8e-3, 4e-3),
        (Precision::Bf16, Kind::Cancelling) => (3e-2, 8e-3, 2e-2),
    };
    Tolerance { element, floor, global }
}
