//! A parameter of any rank that the models use, so that a list of parameters has one type.

use burn::backend::Autodiff;
use burn::tensor::{
    BasicOps, DType, Tensor, TensorCreationOptions, TensorData, TensorMetadata, TensorPrimitive, backend::Backend,
    ops::FloatTensor,
};

use crate::{Gradients, LmBackend};

/// A parameter: a vector (norm gain, attention sinks, bias) or a matrix.
#[derive(Clone, Debug)]
pub enum Leaf<B: Backend> {
    /// Rank 1.
    Vector(Tensor<B, 1>),
    /// Rank 2.
    Matrix(Tensor<B, 2>),
}

impl<B: Backend> Leaf<B> {
    /// Extents, outermost first.
    pub fn dims(&self) -> Vec<usize> {
        match self {
            Self::Vector(tensor) => tensor.dims().to_vec(),
            Self::Matrix(tensor) => tensor.dims().to_vec(),
        }
    }

    /// Where the values are.
    pub fn device(&self) -> B::Device {
        match self {
            Self::Vector(tensor) => tensor.device(),
            Self::Matrix(tensor) => tensor.device(),
        }
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        match self {
            Self::Vector(tensor) => tensor.dtype(),
            Self::Matrix(tensor) => tensor.dtype(),
        }
    }

    /// Number of elements.
    pub fn n_elements(&self) -> usize {
        self.dims().iter().product()
    }

    /// The vector; panics on a matrix, because the caller chose the parameter by its place.
    pub fn vector(self) -> Tensor<B, 1> {
        match self {
            Self::Vector(tensor) => tensor,
            Self::Matrix(tensor) => panic!("leaf: expected a vector, got a matrix {:?}", tensor.dims()),
        }
    }

    /// The matrix; panics on a vector, because the caller chose the parameter by its place.
    pub fn matrix(self) -> Tensor<B, 2> {
        match self {
            Self::Matrix(tensor) => tensor,
            Self::Vector(tensor) => panic!("leaf: expected a matrix, got a vector {:?}", tensor.dims()),
        }
    }

    /// Copies the values to the host.
    pub fn into_data(self) -> TensorData {
        match self {
            Self::Vector(tensor) => tensor.into_data(),
            Self::Matrix(tensor) => tensor.into_data(),
        }
    }

    /// Makes a leaf from host values, without gaps between its rows; panics unless the rank is 1 or 2.
    pub fn from_data(data: TensorData, device: &B::Device) -> Self {
        match data.shape[..] {
            [_] => Self::Vector(Tensor::from_data(data, device)),
            [rows, columns] if rows * columns > 0 => Self::Matrix(without_gaps(data, [rows, columns], device)),
            [_, _] => Self::Matrix(Tensor::from_data(data, device)),
            _ => panic!("leaf: expected rank 1 or 2, got rank {} with shape {:?}", data.shape.len(), data.shape),
        }
    }

    /// The primitive, of either rank.
    pub(crate) fn into_primitive(self) -> FloatTensor<B> {
        match self {
            Self::Vector(tensor) => tensor.into_primitive().tensor(),
            Self::Matrix(tensor) => tensor.into_primitive().tensor(),
        }
    }

    /// The leaf of a primitive; panics unless its rank is 1 or 2.
    pub(crate) fn from_primitive(primitive: FloatTensor<B>) -> Self {
        match primitive.rank() {
            1 => Self::Vector(wrap(primitive)),
            2 => Self::Matrix(wrap(primitive)),
            rank => panic!("leaf: expected rank 1 or 2, got rank {rank}"),
        }
    }

    /// Applies `f` to the primitive; the shape must stay.
    pub(crate) fn map_primitive<C: Backend>(self, f: impl FnOnce(FloatTensor<B>) -> FloatTensor<C>) -> Leaf<C> {
        Leaf::from_primitive(f(self.into_primitive()))
    }
}

fn wrap<B: Backend, const D: usize>(primitive: FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

impl<B: LmBackend> Leaf<B> {
    /// The same values on the autodiff backend: a fresh graph leaf, tracked when `require_grad`.
    pub fn to_autodiff(&self, require_grad: bool) -> Leaf<Autodiff<B>> {
        match self {
            Self::Vector(tensor) => Leaf::Vector(Tensor::from_inner(tensor.clone()).set_require_grad(require_grad)),
            Self::Matrix(tensor) => Leaf::Matrix(Tensor::from_inner(tensor.clone()).set_require_grad(require_grad)),
        }
    }
}

impl<B: LmBackend> Leaf<Autodiff<B>> {
    /// Gradient of this leaf, `None` when it is not tracked or took no part.
    pub fn grad(&self, grads: &Gradients) -> Option<Leaf<B>> {
        match self {
            Self::Vector(tensor) => tensor.grad(grads).map(Leaf::Vector),
            Self::Matrix(tensor) => tensor.grad(grads).map(Leaf::Matrix),
        }
    }

    /// Like [`Leaf::grad`], but takes the gradient out, so that the caller owns it alone and can accumulate in place.
    pub fn take_grad(&self, grads: &mut Gradients) -> Option<Leaf<B>> {
        match self {
            Self::Vector(tensor) => tensor.grad_remove(grads).map(Leaf::Vector),
            Self::Matrix(tensor) => tensor.grad_remove(grads).map(Leaf::Matrix),
        }
    }

    /// The values without the graph.
    pub fn inner(&self) -> Leaf<B> {
        match self {
            Self::Vector(tensor) => Leaf::Vector(tensor.clone().inner()),
            Self::Matrix(tensor) => Leaf::Matrix(tensor.clone().inner()),
        }
    }
}
/// A matrix whose rows follow each other at once.
///
/// Some backends round the distance of the rows of a new matrix up, and then every op that needs dense rows copies it anew.
pub(crate) fn without_gaps<B: Backend, K: BasicOps<B>>(
    data: TensorData,
    dims: [usize; 2],
    options: impl Into<TensorCreationOptions<B>>,
) -> Tensor<B, 2, K> {
    let [rows, columns] = dims;
    Tensor::<B, 1, K>::from_data(TensorData { shape: [rows * columns].into(), ..data }, options).reshape(dims)
}
