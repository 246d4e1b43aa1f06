//! Copies of tensors for the host that the device makes beside its work.
//!
//! A copy has the values that its tensor has when the copy is begun. On CUDA it goes to pinned memory that
//! [`LmBackend::lm_reserve_host`] has taken before, on its own stream; it must have ended before anything changes the tensor in
//! place, so [`LmBackend::lm_end_copies`] comes before that. Without such memory, and on backends without such copies, beginning
//! one waits for the values.

use burn::tensor::backend::{Backend, ExecutionError};
use burn::tensor::{Int, Tensor, TensorData};

use crate::{KernelError, Leaf, LmBackend};

/// Waits for the values of a copy.
type Wait = Box<dyn FnOnce() -> Result<TensorData, KernelError> + Send>;

/// The values of a tensor on their way to the host; any thread may wait for them.
pub struct HostCopy(State);

enum State {
    Here(TensorData),
    OnTheWay(Wait),
}

impl HostCopy {
    /// Values that are there already.
    ///
    /// # Panics
    /// When the device failed; [`crate::on_device`] turns that into an error.
    pub(crate) fn here(data: Result<TensorData, ExecutionError>) -> Self {
        Self(State::Here(data.unwrap_or_else(|error| panic!("read from the device: {error:?}"))))
    }

    /// Values that `wait` gets, on whatever thread waits for them.
    pub fn on_the_way(wait: impl FnOnce() -> Result<TensorData, KernelError> + Send + 'static) -> Self {
        Self(State::OnTheWay(Box::new(wait)))
    }

    /// Whether beginning the copy has waited for the values.
    pub fn is_here(&self) -> bool {
        matches!(self.0, State::Here(_))
    }

    /// Waits for the values, which are in the tensor's element type.
    ///
    /// On CUDA they come only when the device's work goes on or [`LmBackend::lm_end_copies`] is called. Their memory is given to
    /// the next copy of that size when they are dropped.
    ///
    /// # Errors
    /// [`KernelError::DeviceFault`] when the copy could not be made.
    pub fn wait(self) -> Result<TensorData, KernelError> {
        match self.0 {
            State::Here(data) => Ok(data),
            State::OnTheWay(wait) => wait(),
        }
    }
}

/// What came of asking for memory of the host, see [`LmBackend::lm_reserve_host`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostReserve {
    /// The backend's copies need none.
    Unneeded,
    /// It is being taken.
    Begun,
    /// It would be too much; nothing is taken.
    TooMuch,
}

/// A tensor that is to be copied.
#[derive(Clone, Debug)]
pub enum Piece<B: Backend> {
    /// Floating point numbers.
    Float(Leaf<B>),
    /// Whole numbers.
    Int(Tensor<B, 1, Int>),
}

impl<B: LmBackend> Piece<B> {
    /// Bytes of the values.
    pub fn n_bytes(&self) -> usize {
        match self {
            Self::Float(leaf) => leaf.n_elements() * leaf.dtype().size(),
            Self::Int(tensor) => tensor.dims()[0] * tensor.dtype().size(),
        }
    }

    /// Begins the copy.
    pub fn copy(self) -> HostCopy {
        match self {
            Self::Float(leaf) => B::lm_copy_float(leaf.into_primitive()),
            Self::Int(tensor) => B::lm_copy_int(tensor.into_primitive()),
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::DType;

    use super::*;
    use crate::{Cpu, add_assign};

    /// Copies keep their values, their bits and their type while the tensors change in place; any thread gets them.
    #[test]
    fn a_copy_is_that_of_its_moment() {
        let device = Default::default();
        for data in
            [TensorData::from([1.5f32, -0.0, 3e-45]), TensorData::from([1.5f32, -2.0]).convert_dtype(DType::BF16)]
        {
            let tensor = Tensor::<Cpu, 1>::from_data(data.clone(), (&device, data.dtype));
            let piece = Piece::Float(Leaf::Vector(tensor.clone()));
            assert_eq!(piece.n_bytes(), data.bytes.len());
            let copy = piece.copy();
            assert!(copy.is_here());
            Cpu::lm_end_copies(&device);
            let changed = tensor.clone().add_scalar(1.0);
            assert_ne!(changed.into_data(), data);
            assert_eq!(std::thread::spawn(move || copy.wait()).join().unwrap(), Ok(data));
        }
        let codes = TensorData::from([i32::MIN, -1, 7]);
        let words = Tensor::<Cpu, 1, Int>::from_data(codes.clone(), (&device, DType::I32));
        assert_eq!(Piece::Int(words.clone()).n_bytes(), 12);
        assert_eq!(Piece::Int(words).copy().wait(), Ok(codes));

        let ones = || Tensor::<Cpu, 1>::ones([5000], &device);
        let mut weights = ones();
        let copy = Piece::Float(Leaf::Vector(weights.clone())).copy();
        weights = add_assign(weights, ones());
        assert_eq!(weights.into_data(), TensorData::from([2.0f32; 5000]));
        assert_eq!(copy.wait(), Ok(TensorData::from([1.0f32; 5000])));
    }

    #[test]
    fn a_copy_on_the_way_is_waited_for() {
        let data = TensorData::from([1.0f32]);
        let (sender, receiver) = std::sync::mpsc::channel();
        let copy = HostCopy::on_the_way(move || Ok(receiver.recv().unwrap()));
        assert!(!copy.is_here());
        let waiting = std::thread::spawn(move || copy.wait());
        sender.send(data.clone()).unwrap();
        assert_eq!(waiting.join().unwrap(), Ok(data));
    }

    #[test]
    fn memory_of_the_host_is_no_matter_for_the_cpu() {
        assert_eq!(Cpu::lm_reserve_host(&Default::default(), &[1 << 50], 0), HostReserve::Unneeded);
    }
}
