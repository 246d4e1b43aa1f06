//! Small reads in the order of the work, which the host waits for when it wants the values and not before.

use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cudarc::driver::sys;

use super::copies::HostMemory;
use super::{Buffer, CudaDevice, WITHOUT_TIMING, ask, check, enqueue};

/// A copy to the host that is enqueued.
pub(in super::super) struct Read {
    device: CudaDevice,
    host: HostMemory,
    bytes: usize,
    /// Address of the event behind the copy; 0 until it is enqueued.
    event: Arc<AtomicUsize>,
}

/// Enqueues a copy of a dense buffer: behind everything enqueued so far, and before everything that comes later.
pub(in super::super) fn begin_read(op: &'static str, buffer: &Buffer, bytes: usize) -> Read {
    let (device, event) = (buffer.device.clone(), Arc::new(AtomicUsize::new(0)));
    let host = HostMemory::new(&device, bytes);
    let (to, recorded) = (host.clone(), event.clone());
    enqueue(op, &[buffer], move |foreign, addresses| {
        let mut event = null_mut();
        // SAFETY: the pinned memory is as long as the copy and kept by the handle and this task; the pointer to the event is to
        // a live local variable; stream and context are this thread's.
        unsafe {
            check(
                "cuMemcpyDtoHAsync",
                sys::cuMemcpyDtoHAsync_v2(to.address() as *mut _, addresses[0], bytes, foreign.stream),
            );
            check("cuEventCreate", sys::cuEventCreate(&mut event, WITHOUT_TIMING));
            check("cuEventRecord", sys::cuEventRecord(event, foreign.stream));
        }
        recorded.store(event as usize, Ordering::Release);
    });
    Read { device, host, bytes, event }
}

impl Read {
    /// Waits for the copy, not for what was enqueued after it, and gives the bytes.
    ///
    /// # Errors
    /// When it was not enqueued, because work before it failed, or when the device failed.
    pub(in super::super) fn finish(self) -> Result<Vec<u8>, String> {
        let Self { device, host, bytes, event } = self;
        ask(&device, move |_| {
            let event = event.load(Ordering::Acquire) as sys::CUevent;
            if event.is_null() {
                return Err("the copy was not enqueued, because work before it failed".to_owned());
            }
            // SAFETY: the event was recorded on this thread and is destroyed once; the copy behind which it stands has filled
            // the pinned memory, which the handle keeps.
            unsafe {
                let result = sys::cuEventSynchronize(event);
                sys::cuEventDestroy_v2(event);
                match result {
                    sys::CUresult::CUDA_SUCCESS => {
                        Ok(std::slice::from_raw_parts(host.address() as *const u8, bytes).to_vec())
                    }
                    failed => Err(format!("cuEventSynchronize: {failed:?}")),
                }
            }
        })
    }
}
