//! Tensors that wait in pinned host memory, copied beside the compute work.

use burn::tensor::{DType, Shape, Tensor, TensorMetadata, TensorPrimitive};
use burn_cubecl::{BoolElement, CubeBackend, FloatElement, IntElement};
use cubecl::prelude::ComputeClient;

use super::bridge::{HostMemory, Way, begin_copy, finish_copies};
use super::launch::{dense, empty_on};
use super::{Buffer, CudaDevice, Runtime, faults};
use crate::Parked;

/// Name of the copies in errors and profiles.
const OP: &str = "offload";

/// A tensor in pinned memory, or on its way.
pub(super) struct OnHost {
    client: ComputeClient<Runtime>,
    device: CudaDevice,
    shape: Shape,
    dtype: DType,
    host: HostMemory,
    /// Source of a copy to the host, or target of one from there, whose end the device's work does not wait for yet.
    moving: Option<Buffer>,
    taken: bool,
}

impl OnHost {
    /// Begins the copy to the host.
    pub(super) fn new(x: Buffer) -> Self {
        let x = dense(x);
        let (client, device, shape, dtype) = (x.client.clone(), x.device.clone(), x.shape(), x.dtype);
        let host = HostMemory::new(&device, shape.num_elements() * dtype.size());
        begin_copy(OP, &x, &host, Way::ToHost);
        Self { client, device, shape, dtype, host, moving: Some(x), taken: false }
    }

    /// Makes everything that comes later wait for the copy, so that its buffer may be read or go.
    fn finish(&mut self) -> Option<Buffer> {
        let buffer = self.moving.take()?;
        finish_copies(OP, &buffer);
        Some(buffer)
    }

    fn begin_back(&mut self) {
        if self.taken || self.moving.is_some() {
            return;
        }
        let x = empty_on(&self.client, &self.device, self.shape.clone(), self.dtype);
        begin_copy(OP, &x, &self.host, Way::ToDevice);
        self.moving = Some(x);
    }
}

impl Drop for OnHost {
    /// A buffer must not go back to the pool while it is copied.
    fn drop(&mut self) {
        self.finish();
    }
}

impl<F: FloatElement, I: IntElement, T: BoolElement> Parked<CubeBackend<Runtime, F, I, T>> for OnHost {
    fn leave(&mut self) {
        self.finish();
    }

    fn fetch(&mut self) {
        faults::enter(OP);
        self.begin_back();
    }

    fn take(&mut self) -> Tensor<CubeBackend<Runtime, F, I, T>, 3> {
        faults::enter(OP);
        self.begin_back();
        let x = self.finish().expect("a parked tensor is taken once");
        self.taken = true;
        Tensor::from_primitive(TensorPrimitive::Float(x))
    }
}
