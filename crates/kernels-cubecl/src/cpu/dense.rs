//! Between burn's CPU tensors and slices: zero-copy where the elements lie in one run.

use burn::tensor::{Bytes, DType, Shape, TensorMetadata};
use burn_flex::{FlexTensor, Layout};

/// A tensor of f32 whose elements lie in one run.
pub(super) struct Dense(FlexTensor);

impl Dense {
    /// Takes the tensor over; copies it only when its elements are scattered.
    pub(super) fn new(tensor: FlexTensor) -> Self {
        match tensor.layout().contiguous_offsets() {
            Some(_) => Self(tensor),
            None => Self(tensor.to_contiguous()),
        }
    }

    /// The elements.
    pub(super) fn get(&self) -> &[f32] {
        self.0.as_slice().expect("the constructor made it f32 and contiguous")
    }

    /// The shape.
    pub(super) fn shape(&self) -> Shape {
        self.0.shape()
    }

    /// `(rows, width of the last axis)`; without elements there are no rows.
    pub(super) fn rows(&self) -> (usize, usize) {
        let shape = self.0.shape();
        let width = shape[shape.num_dims() - 1];
        (shape.num_elements().checked_div(width).unwrap_or(0), width)
    }

    /// Runs `f` on the elements in place if nobody else holds them, on a copy otherwise.
    pub(super) fn update(self, f: impl FnOnce(&mut [f32])) -> FlexTensor {
        let mut own = self.into_own();
        f(own.storage_mut());
        own
    }

    /// The tensor in memory that nobody else holds and that has no other elements.
    pub(super) fn into_own(self) -> FlexTensor {
        let whole = self.0.layout().contiguous_offsets() == Some((0, self.0.bytes().len() / size_of::<f32>()));
        match whole && self.0.is_unique() {
            true => self.0,
            false => tensor(self.get().to_vec(), self.0.shape()),
        }
    }
}

/// A tensor of these elements.
pub(super) fn tensor(elements: Vec<f32>, shape: Shape) -> FlexTensor {
    debug_assert_eq!(elements.len(), shape.num_elements(), "a tensor has as many elements as its shape says");
    FlexTensor::new(Bytes::from_elems(elements), Layout::contiguous(shape), DType::F32)
}

/// A tensor of whole numbers.
pub(super) fn int_tensor(elements: Vec<i32>, shape: Shape) -> FlexTensor {
    FlexTensor::new(Bytes::from_elems(elements), Layout::contiguous(shape), DType::I32)
}

/// The whole numbers of a tensor of any integer type that burn's CPU backend makes.
pub(super) fn whole_numbers(tensor: &FlexTensor) -> Vec<i32> {
    let tensor = tensor.to_contiguous();
    match tensor.dtype() {
        DType::I32 => tensor.storage::<i32>().to_vec(),
        DType::I64 => tensor.storage::<i64>().iter().map(|&x| narrow(x)).collect(),
        DType::U32 => tensor.storage::<u32>().iter().map(|&x| narrow(i64::from(x))).collect(),
        other => panic!("token ids and positions must be i32, i64 or u32, got {other:?}"),
    }
}

/// Numbers that do not fit become the nearest that does, which no vocabulary contains.
fn narrow(x: i64) -> i32 {
    i32::try_from(x).unwrap_or(if x < 0 { i32::MIN } else { i32::MAX })
}
