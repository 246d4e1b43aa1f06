//! Numbers on their way from the device to the host.

use burn::tensor::{DType, FloatDType, Tensor, TensorData};

use crate::LmBackend;

/// A read that the device does in the order of its work, while the host goes on.
pub struct Reading(Box<dyn FnOnce() -> TensorData>);

impl Reading {
    /// Enqueues the copy of `values`: it comes after everything enqueued so far and before everything that comes later.
    pub fn start<B: LmBackend>(values: Tensor<B, 1>) -> Self {
        Self(B::lm_begin_read(values.cast(FloatDType::F32).into_primitive().tensor()))
    }

    /// Waits for the values.
    ///
    /// # Panics
    /// When the device failed meanwhile; [`crate::on_device`] turns that into an error.
    pub fn finish(self) -> Vec<f32> {
        let data = (self.0)();
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
