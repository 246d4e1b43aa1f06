//! Copies to the host of tensors that stay where they are: what a checkpoint is written from.

mod reserve;

use std::collections::VecDeque;
use std::ptr::null_mut;
use std::sync::mpsc::{Receiver, Sender, channel};

use cubecl::server::Binding;
use cudarc::driver::sys;

use super::{Buffer, CudaDevice, FOREIGN, Foreign, Part, WITHOUT_TIMING, Way, check, on_foreign, submit};
use crate::KernelError;
use crate::cuda::bridge::flush;
use crate::cuda::faults;
pub(in super::super::super) use reserve::{Reserved, reserve};

/// `CU_EVENT_BLOCKING_SYNC`: who waits sleeps.
const BLOCKING_SYNC: u32 = 1;
/// Parts begin at multiples of so many bytes.
const STEP: usize = 256;
/// A part is at least so long, unless it is the rest: a shorter one is not worth its call.
const LEAST: usize = 1 << 20;

/// Snapshots of a device thread that are not finished.
#[derive(Default)]
pub(super) struct Snapshots {
    waiting: VecDeque<Copy>,
    /// Keeps the memory of the copied tensors from other users.
    kept: Vec<Binding>,
}

/// What of a copy is not enqueued yet.
struct Copy {
    context: sys::CUcontext,
    rest: Part,
    /// Tells who waits; dropped with the copy when it cannot be made.
    enqueued: Sender<Enqueued>,
}

/// The end of a copy on the device.
#[derive(Clone, Copy)]
struct Enqueued {
    context: usize,
    event: usize,
}

impl Snapshots {
    fn begin(&mut self, copy: Copy, kept: Binding) {
        self.waiting.push_back(copy);
        self.kept.push(kept);
    }

    /// Enqueues what finds room beside work during which so many bytes can be copied.
    pub(super) fn advance(&mut self, stream: sys::CUstream, mut room: usize) {
        while let Some(bytes) = self.waiting.front().map(|copy| cut(copy.rest.bytes, room)).filter(|bytes| *bytes > 0) {
            // Taken out first: should a call fail, nobody takes the copy for a whole one.
            let Some(mut copy) = self.waiting.pop_front() else { return };
            let part = Part { bytes, ..copy.rest };
            part.enqueue(stream);
            room -= bytes;
            copy.rest.host += bytes;
            copy.rest.device += bytes as u64;
            copy.rest.bytes -= bytes;
            match copy.rest.bytes {
                0 => copy.announce(stream),
                _ => self.waiting.push_front(copy),
            }
        }
    }

    /// Enqueues everything; gives what keeps the memory, or nothing where there was no snapshot.
    pub(super) fn finish(&mut self, stream: sys::CUstream) -> Option<Vec<Binding>> {
        // Both are taken first: should a call fail, nobody waits for what is left.
        let (waiting, kept) = (std::mem::take(&mut self.waiting), std::mem::take(&mut self.kept));
        for copy in waiting {
            copy.rest.enqueue(stream);
            copy.announce(stream);
        }
        (!kept.is_empty()).then_some(kept)
    }
}

impl Copy {
    /// Lets another thread wait for the end.
    fn announce(self, stream: sys::CUstream) {
        let mut event = null_mut();
        // SAFETY: the pointer is to a live local variable, and context and stream are of this thread.
        unsafe {
            check("cuEventCreate", sys::cuEventCreate(&mut event, WITHOUT_TIMING | BLOCKING_SYNC));
            check("cuEventRecord", sys::cuEventRecord(event, stream));
        }
        // Nobody may want the copy any more; then the event is lost.
        let _ = self.enqueued.send(Enqueued { context: self.context as usize, event: event as usize });
    }
}

impl Enqueued {
    /// Waits on any thread.
    fn wait(self) -> Result<(), KernelError> {
        let (context, event) = (self.context as sys::CUcontext, self.event as sys::CUevent);
        let mut popped = null_mut();
        // SAFETY: the context lives as long as the process and the event is this copy's own; the calling thread's current context
        // is put back.
        let results = unsafe {
            [
                sys::cuCtxPushCurrent_v2(context),
                sys::cuEventSynchronize(event),
                sys::cuEventDestroy_v2(event),
                sys::cuCtxPopCurrent_v2(&mut popped),
            ]
        };
        match results.into_iter().find(|result| *result != sys::CUresult::CUDA_SUCCESS) {
            Some(result) => Err(lost(format!("{result:?}"))),
            None => Ok(()),
        }
    }
}

/// Bytes of the next part of a copy that has `rest` bytes to go, with room for so many; 0 where none is worth it.
fn cut(rest: usize, room: usize) -> usize {
    match room {
        room if room >= rest => rest,
        room if room >= LEAST => room / STEP * STEP,
        _ => 0,
    }
}

fn lost(message: String) -> KernelError {
    KernelError::DeviceFault { op: "snapshot".to_owned(), message: format!("the copy to the host: {message}") }
}

/// Begins a copy of the dense `buffer`, after everything that is enqueued already; the result waits for it on any thread.
///
/// The caller changes nothing in the buffer until [`finish_snapshots`]; it may drop it.
pub(in super::super::super) fn begin_snapshot(
    op: &'static str,
    buffer: &Buffer,
    host: Reserved,
) -> impl FnOnce() -> Result<Reserved, KernelError> + Send + 'static {
    let (enqueued, end): (_, Receiver<Enqueued>) = channel();
    let kept = buffer.handle.clone().binding();
    let (address, bytes) = (host.address(), host.bytes());
    on_foreign(op, &[buffer], move |Foreign { context, copies, .. }, addresses| {
        // What an op that failed has left must not pass for a checkpoint.
        if faults::pending() {
            return;
        }
        copies.follow(*context);
        let rest = Part { host: address, device: addresses[0], bytes, way: Way::ToHost };
        copies.snapshots.begin(Copy { context: *context, rest, enqueued }, kept);
    });
    move || {
        arrival(end)?.wait()?;
        Ok(host)
    }
}

/// Waits until a copy is enqueued.
fn arrival(end: Receiver<Enqueued>) -> Result<Enqueued, KernelError> {
    end.recv().map_err(|_| lost("it was not begun; look for an earlier error".to_owned()))
}

/// Makes everything that is enqueued later wait for the snapshots that are begun, and whoever waits for them get them.
pub(in super::super::super) fn finish_snapshots(op: &'static str, device: &CudaDevice) {
    submit(device, move |_| {
        faults::on_device_thread(op, || {
            FOREIGN.with_borrow_mut(|foreign| {
                if let Some(Foreign { context, copies, .. }) = foreign {
                    copies.finish_snapshots(*context);
                }
            });
        });
    });
    flush(device);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_fit_their_room_and_cover_the_copy() {
        assert_eq!((cut(100, 100), cut(100, 1 << 30)), (100, 100));
        assert_eq!((cut(101, 100), cut(2 * LEAST, LEAST - 1), cut(LEAST, 0)), (0, 0, 0));
        for (whole, room) in [(180 << 20, 53_000_001), (5 << 20, LEAST), ((7 << 20) + 3, 2 << 20)] {
            let (mut rest, mut n_parts) = (whole, 0);
            while rest > 0 {
                let part = cut(rest, room);
                assert!(part > 0 && part <= room, "{whole} {room}");
                assert!(part == rest || part.is_multiple_of(STEP), "{whole} {room}");
                rest -= part;
                n_parts += 1;
            }
            assert!(n_parts <= whole.div_ceil(room) + 1, "{whole} {room}: {n_parts} parts");
        }
    }

    /// A copy that is never enqueued is an error for who waits.
    #[test]
    fn a_lost_copy_is_an_error() {
        let (enqueued, end) = channel::<Enqueued>();
        drop(enqueued);
        let error = arrival(end).map(|_| ()).unwrap_err();
        assert_eq!(error.exit_code(), 4);
    }
}
