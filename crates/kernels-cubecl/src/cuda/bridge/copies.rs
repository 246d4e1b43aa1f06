//! Copies between device memory and pinned host memory, beside the compute work.
//!
//! They have a stream of their own. Every foreign work waits for all that the context has enqueued before it, copies included,
//! so a large copy would hold the next product up. It is cut into parts, and each foreign work takes one along: the part runs
//! beside that work, and only the work after it waits for it.
//!
//! There are two queues. Parked tensors come first, because their memory is wanted soon. Snapshots ([`snapshot`]) take what
//! room is left beside the work.

pub(super) mod snapshot;

use std::collections::{BTreeMap, VecDeque};
use std::ptr::null_mut;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use cudarc::driver::sys;

use self::snapshot::Snapshots;
use super::{Buffer, CudaDevice, FOREIGN, Foreign, NON_BLOCKING, WITHOUT_TIMING, check, on_foreign, submit};
use crate::cuda::faults;

/// Parts of a copy: a block has five foreign works in its forward pass, of which four are sure to be long.
const PARTS: usize = 4;

/// Pinned memory that nobody uses, by device and size. It is never unpinned: the next step asks for the same sizes.
static UNUSED: Mutex<BTreeMap<(usize, usize), Vec<usize>>> = Mutex::new(BTreeMap::new());

/// Pinned host memory, taken when the first copy to it is begun and given on to others when the last clone goes.
///
/// A copy of the next owner is enqueued later on the one stream of copies, so that it never meets one of the last.
#[derive(Clone)]
pub(in super::super) struct HostMemory(Arc<Place>);

struct Place {
    key: (usize, usize),
    address: OnceLock<usize>,
}

impl HostMemory {
    /// So many bytes for a device.
    pub(in super::super) fn new(device: &CudaDevice, bytes: usize) -> Self {
        Self(Arc::new(Place { key: (device.index, bytes), address: OnceLock::new() }))
    }

    /// The address; called on the device thread.
    pub(super) fn address(&self) -> usize {
        *self.0.address.get_or_init(|| unused(self.0.key).unwrap_or_else(|| pin(self.0.key.1)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(address) = self.address.take() {
            UNUSED.lock().unwrap_or_else(PoisonError::into_inner).entry(self.key).or_default().push(address);
        }
    }
}

fn unused(key: (usize, usize)) -> Option<usize> {
    UNUSED.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&key)?.pop()
}

fn pin(bytes: usize) -> usize {
    // The name of the driver's error would pass for a lack of device memory.
    try_pin(bytes).unwrap_or_else(|result| {
        panic!(
            "cuMemHostAlloc: the host has no {bytes} bytes to pin ({}); offload fewer blocks, or raise the limit of locked memory",
            result as u32
        )
    })
}

/// Pins so many bytes; called with the device's context current on the thread.
fn try_pin(bytes: usize) -> Result<usize, sys::CUresult> {
    let mut address = null_mut();
    // SAFETY: the pointer is to a live local variable.
    let result = unsafe { sys::cuMemHostAlloc(&mut address, bytes.max(1), 0) };
    if result == sys::CUresult::CUDA_SUCCESS { Ok(address as usize) } else { Err(result) }
}

/// Where a copy goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Way {
    /// From the device.
    ToHost,
    /// From the host.
    ToDevice,
}

/// A part of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    host: usize,
    device: u64,
    bytes: usize,
    way: Way,
}

impl Part {
    fn enqueue(self, stream: sys::CUstream) {
        let Self { host, device, bytes, way } = self;
        // SAFETY: the part lies within pinned memory, which is never freed, and within a buffer whose owner keeps it until
        // the copies are finished; other users of either come later on this stream or wait for it.
        let result = unsafe {
            match way {
                Way::ToHost => sys::cuMemcpyDtoHAsync_v2(host as *mut _, device, bytes, stream),
                Way::ToDevice => sys::cuMemcpyHtoDAsync_v2(device, host as *const _, bytes, stream),
            }
        };
        check("cuMemcpyAsync", result);
    }
}

/// The copies of a device thread.
pub(super) struct Copies {
    stream: sys::CUstream,
    begun: sys::CUevent,
    done: sys::CUevent,
    /// Parts of begun copies that are not enqueued yet.
    waiting: VecDeque<Part>,
    snapshots: Snapshots,
}

impl Copies {
    pub(super) fn new() -> Self {
        let (mut stream, mut begun, mut done) = (null_mut(), null_mut(), null_mut());
        // SAFETY: every pointer is to a live local variable; cubecl has made its context current on this thread.
        unsafe {
            check("cuStreamCreate", sys::cuStreamCreate(&mut stream, NON_BLOCKING));
            check("cuEventCreate", sys::cuEventCreate(&mut begun, WITHOUT_TIMING));
            check("cuEventCreate", sys::cuEventCreate(&mut done, WITHOUT_TIMING));
        }
        Self { stream, begun, done, waiting: VecDeque::new(), snapshots: Snapshots::default() }
    }

    /// Lets the copies that are enqueued later come after everything that the context has enqueued so far.
    fn follow(&self, context: sys::CUcontext) {
        // SAFETY: context, stream and event are of this thread and are never destroyed.
        unsafe {
            check("cuCtxRecordEvent", sys::cuCtxRecordEvent(context, self.begun));
            check("cuStreamWaitEvent", sys::cuStreamWaitEvent(self.stream, self.begun, 0));
        }
    }

    /// Enqueues the next part, and of snapshots what also finds room beside work during which `room` bytes can be copied.
    pub(super) fn advance(&mut self, room: usize) {
        let part = self.waiting.pop_front();
        if let Some(part) = part {
            part.enqueue(self.stream);
        }
        self.snapshots.advance(self.stream, room.saturating_sub(part.map_or(0, |part| part.bytes)));
    }

    /// Enqueues the rest of the parked tensors and makes everything that comes later wait for it.
    fn finish(&mut self, context: sys::CUcontext) {
        while let Some(part) = self.waiting.pop_front() {
            part.enqueue(self.stream);
        }
        self.lead(context);
    }

    /// Enqueues the rest of the snapshots and makes everything that comes later wait for it.
    fn finish_snapshots(&mut self, context: sys::CUcontext) {
        // Memory that is copied goes back only when the wait is enqueued.
        let Some(kept) = self.snapshots.finish(self.stream) else { return };
        self.lead(context);
        drop(kept);
    }

    /// Makes everything that the context enqueues later wait for the copies that are enqueued.
    fn lead(&self, context: sys::CUcontext) {
        // SAFETY: as in `follow`.
        unsafe {
            check("cuEventRecord", sys::cuEventRecord(self.done, self.stream));
            check("cuCtxWaitEvent", sys::cuCtxWaitEvent(context, self.done));
        }
    }
}

/// Cuts a copy; parts begin at multiples of 256 bytes.
fn parts(whole: Part) -> impl Iterator<Item = Part> {
    let step = whole.bytes.div_ceil(PARTS).next_multiple_of(256).max(256);
    (0..whole.bytes).step_by(step).map(move |at| Part {
        host: whole.host + at,
        device: whole.device + at as u64,
        bytes: step.min(whole.bytes - at),
        way: whole.way,
    })
}

/// Begins a copy between the dense `buffer` and `host`, after everything that is enqueued already.
///
/// The caller keeps the buffer, and neither reads nor writes it, until [`finish_copies`].
pub(in super::super) fn begin_copy(op: &'static str, buffer: &Buffer, host: &HostMemory, way: Way) {
    let host = host.clone();
    on_foreign(op, &[buffer], move |Foreign { context, copies, .. }, addresses| {
        let whole = Part { host: host.address(), device: addresses[0], bytes: host.0.key.1, way };
        copies.follow(*context);
        copies.waiting.extend(parts(whole));
    });
}

/// Makes everything that is enqueued later wait for the copies that are begun, and keeps `buffer` until then.
pub(in super::super) fn finish_copies(op: &'static str, buffer: &Buffer) {
    let kept = buffer.handle.clone().binding();
    submit(&buffer.device, move |_| {
        faults::on_device_thread(op, || {
            FOREIGN.with_borrow_mut(|foreign| {
                if let Some(Foreign { context, copies, .. }) = foreign {
                    copies.finish(*context);
                }
            });
        });
        drop(kept);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_a_copy_without_overlap() {
        for bytes in [1, 255, 256, 1024, 1025, 5000, 1 << 28] {
            let whole = Part { host: 4096, device: 512, bytes, way: Way::ToHost };
            let parts: Vec<Part> = parts(whole).collect();
            assert!((1..=PARTS).contains(&parts.len()), "{bytes}: {parts:?}");
            let mut at = 0;
            for part in &parts {
                assert_eq!((part.host, part.device, part.way), (4096 + at, 512 + at as u64, Way::ToHost), "{bytes}");
                assert!(part.bytes > 0 && at.is_multiple_of(256));
                at += part.bytes;
            }
            assert_eq!(at, bytes);
        }
        assert_eq!(parts(Part { host: 0, device: 0, bytes: 0, way: Way::ToHost }).count(), 0);
    }

    /// Memory goes from one owner to the next of the same size, and to no other.
    #[test]
    fn pinned_memory_is_used_again() {
        let device = CudaDevice::new(77);
        let memory = HostMemory::new(&device, 640);
        memory.0.address.set(1 << 20).unwrap();
        let clone = memory.clone();
        drop(memory);
        assert_eq!(unused((77, 640)), None, "a clone has it");
        drop(clone);
        assert_eq!((unused((77, 512)), unused((78, 640))), (None, None));
        assert_eq!((unused((77, 640)), unused((77, 640))), (Some(1 << 20), None));
    }
}
