//! Copies for the host that are made beside the compute work; see [`crate::HostCopy`].

use burn::tensor::{TensorData, TensorMetadata};

use super::Buffer;
use super::bridge::{Reserved, begin_snapshot};
use crate::HostCopy;

/// Name of the copies in errors and profiles.
pub(super) const OP: &str = "snapshot";

/// Begins a copy; `read` gets the values where no memory is reserved for it.
pub(super) fn begin(x: Buffer, read: impl FnOnce(Buffer) -> HostCopy) -> HostCopy {
    let (shape, dtype) = (x.shape(), x.dtype);
    let bytes = shape.num_elements() * dtype.size();
    // A tensor with gaps between its rows is as it came from the host; to close them would take memory of the device.
    let host = if bytes > 0 && x.is_contiguous() { Reserved::take(&x.device, bytes) } else { None };
    let Some(host) = host else { return read(x) };
    let wait = begin_snapshot(OP, &x, host);
    HostCopy::on_the_way(move || Ok(TensorData::from_bytes(wait()?.into_bytes(), shape, dtype)))
}
