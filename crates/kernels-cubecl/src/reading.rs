//! Numbers on their way from the device to the host.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use burn::tensor::{
    DType, FloatDType, Tensor, TensorData,
    backend::{Backend, ExecutionError},
    read_sync,
};

/// A read that the device does in the order of its work, while the host goes on.
pub struct Reading(State);

enum State {
    Here(Result<TensorData, ExecutionError>),
    OnTheWay(Pin<Box<dyn Future<Output = Result<TensorData, ExecutionError>>>>),
}

impl Reading {
    /// Enqueues the copy of `values`: it comes after everything enqueued so far and before everything that comes later.
    pub fn start<B: Backend>(values: Tensor<B, 1>) -> Self {
        let mut copy = Box::pin(values.cast(FloatDType::F32).into_data_async());
        // The copy is enqueued by the first poll; nobody has to be woken, because `finish` waits.
        match copy.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(data) => Self(State::Here(data)),
            Poll::Pending => Self(State::OnTheWay(copy)),
        }
    }

    /// Waits for the values.
    ///
    /// # Panics
    /// When the device failed meanwhile; [`crate::on_device`] turns that into an error.
    pub fn finish(self) -> Vec<f32> {
        let data = match self.0 {
            State::Here(data) => data,
            State::OnTheWay(copy) => read_sync(copy),
        };
        let data = data.unwrap_or_else(|error| panic!("read from the device: {error:?}"));
        assert_eq!(data.dtype, DType::F32, "the values were cast before they were read");
        data.into_vec().expect("f32, as checked just before")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Cpu;

    #[test]
    fn values_arrive_in_their_order() {
        let values = Tensor::<Cpu, 1>::from_data([1.0f32, f32::INFINITY, -3.5], &Default::default());
        let reading = Reading::start(values);
        assert_eq!(reading.finish(), [1.0, f32::INFINITY, -3.5]);
    }
}
