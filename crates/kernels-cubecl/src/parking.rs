//! Tensors that wait in the host's memory while the device uses theirs for other things.

use burn::tensor::{Tensor, TensorData, backend::Backend};

use crate::LmBackend;

/// A tensor that is on its way to the host, there, or on its way back.
///
/// Nothing here waits for the device: the copies take their place in the order of its work.
pub trait Parked<B: Backend>: Send {
    /// Ends the way to the host: work that is enqueued from now on may use the tensor's memory on the device.
    fn leave(&mut self);
    /// Begins the way back, where that has not happened yet.
    fn fetch(&mut self);
    /// The tensor on the device again, the same bit for bit.
    ///
    /// # Panics
    /// When it was taken before.
    fn take(&mut self) -> Tensor<B, 3>;
}

/// A copy in plain host memory, for backends without copies of their own; making it waits for the device.
struct Copied<B: Backend> {
    data: Option<TensorData>,
    device: B::Device,
}

/// Copies the tensor to plain host memory.
pub(crate) fn park<B: LmBackend>(x: Tensor<B, 3>) -> Box<dyn Parked<B>> {
    let device = x.device();
    Box::new(Copied { data: Some(x.into_data()), device })
}

impl<B: LmBackend> Parked<B> for Copied<B> {
    fn leave(&mut self) {}

    fn fetch(&mut self) {}

    fn take(&mut self) -> Tensor<B, 3> {
        let data = self.data.take().expect("a parked tensor is taken once");
        let dtype = data.dtype;
        Tensor::from_data(data, (&self.device, dtype))
    }
}
