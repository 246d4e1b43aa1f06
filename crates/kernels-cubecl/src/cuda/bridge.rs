//! The one place with unsafe code: foreign work on cubecl's memory, and questions to the driver before cubecl starts.
//!
//! Foreign work is cuBLASLt ([`products`]) and own CUDA C++ ([`raw`]). It runs on a stream of its own, which waits for
//! everything that the context has enqueued so far, and everything that comes later waits for it; so the order of the calls
//! is the order on the device, whatever streams cubecl uses. Copies to and from the host ([`copies`]) run beside it.
#![expect(unsafe_code, reason = "calls to the CUDA driver, NVRTC and cuBLASLt, whose bindings are unsafe")]

mod copies;
mod driver;
mod products;
mod raw;
mod reads;
mod search;

use std::cell::RefCell;
use std::collections::HashMap;
use std::ptr::null_mut;

use cubecl::server::{Binding, ComputeServer};
use cubecl_common::{device::Device, device_handle::DeviceHandle, stream_id::StreamId};
use cudarc::driver::sys;

use super::{Buffer, CudaDevice, Runtime, faults};
pub(super) use copies::snapshot::{Reserved, begin_snapshot, finish_snapshots, reserve};
pub(super) use copies::{HostMemory, Way, begin_copy, finish_copies};
use driver::target;
pub(super) use driver::{Facts, facts, libraries};
pub(crate) use driver::{capability, has_fp8};
pub use driver::{device_memory, treat_as};
pub(super) use products::{enqueue_gemm, enqueue_gemm_fp8};
pub(crate) use raw::{Argument, Grid, RawKernel};
pub(super) use reads::begin_read;

/// cubecl's server, which lives on the device thread.
type Server = <Runtime as cubecl::prelude::Runtime>::Server;

/// `CU_STREAM_NON_BLOCKING`.
const NON_BLOCKING: u32 = 1;
/// `CU_EVENT_DISABLE_TIMING`.
const WITHOUT_TIMING: u32 = 2;

thread_local! {
    /// Handles to the devices that this thread uses.
    static DEVICES: RefCell<HashMap<usize, DeviceHandle<Server>>> = RefCell::default();
    /// State of the device thread.
    static FOREIGN: RefCell<Option<Foreign>> = const { RefCell::new(None) };
}

/// Runs `task` on cubecl's device thread, after what is enqueued already.
fn submit(device: &CudaDevice, task: impl FnOnce(&mut Server) + Send + 'static) {
    DEVICES.with_borrow_mut(|devices| {
        devices.entry(device.index).or_insert_with(|| DeviceHandle::new(device.to_id())).submit(task);
    });
}

/// Runs `task` on the device thread, after what is enqueued already, and waits for its answer.
fn ask<T: Send + 'static>(device: &CudaDevice, task: impl FnOnce(&mut Server) -> T + Send + 'static) -> T {
    DEVICES.with_borrow_mut(|devices| {
        let handle = devices.entry(device.index).or_insert_with(|| DeviceHandle::new(device.to_id()));
        handle.submit_blocking(task).expect("the device thread answers")
    })
}

/// Sends what is submitted to the device thread, which otherwise waits for more.
fn flush(device: &CudaDevice) {
    DEVICES.with_borrow_mut(|devices| {
        devices.entry(device.index).or_insert_with(|| DeviceHandle::new(device.to_id())).flush_queue();
    });
}

/// Waits until the device has done everything that is enqueued.
pub(super) fn wait(device: &CudaDevice) {
    // SAFETY: the call takes nothing; cubecl has made its context current on the device thread.
    check("cuCtxSynchronize", ask(device, |_| unsafe { sys::cuCtxSynchronize() }));
}

/// Panics on the device thread, as a broken kernel does; [`faults::guarded`] must report it.
pub(super) fn submit_panic(device: &CudaDevice) {
    submit(device, |_| faults::on_device_thread("provoked fault", || panic!("provoked on the device thread")));
}

/// Ends the process without the libraries' own ends.
pub(crate) fn end_process(code: u8) -> ! {
    // SAFETY: the call takes a number and does not come back.
    unsafe { libc::_exit(code.into()) }
}

fn check(call: &str, result: sys::CUresult) {
    assert!(result == sys::CUresult::CUDA_SUCCESS, "{call}: {result:?}");
}

/// What foreign work needs on a device thread; it lives as long as the process.
struct Foreign {
    context: sys::CUcontext,
    stream: sys::CUstream,
    before: sys::CUevent,
    after: sys::CUevent,
    copies: copies::Copies,
    products: products::Products,
    modules: raw::Modules,
}

impl Foreign {
    fn new() -> Self {
        let (mut context, mut stream, mut before, mut after) = (null_mut(), null_mut(), null_mut(), null_mut());
        // SAFETY: every pointer is to a live local variable; cubecl has made its context current on this thread.
        unsafe {
            check("cuCtxGetCurrent", sys::cuCtxGetCurrent(&mut context));
            check("cuStreamCreate", sys::cuStreamCreate(&mut stream, NON_BLOCKING));
            check("cuEventCreate", sys::cuEventCreate(&mut before, WITHOUT_TIMING));
            check("cuEventCreate", sys::cuEventCreate(&mut after, WITHOUT_TIMING));
        }
        let (copies, products) = (copies::Copies::new(), products::Products::new());
        Self { context, stream, before, after, copies, products, modules: raw::Modules::default() }
    }

    /// Runs `work`, during which `room` bytes can be copied, so that it comes after all earlier and before all later work of
    /// the context.
    fn in_order(&mut self, room: usize, work: impl FnOnce(&mut Self)) {
        // SAFETY: context, stream and events are those made in `new`, on this thread, and are never destroyed.
        unsafe {
            check("cuCtxRecordEvent", sys::cuCtxRecordEvent(self.context, self.before));
            check("cuStreamWaitEvent", sys::cuStreamWaitEvent(self.stream, self.before, 0));
        }
        work(self);
        // Here it can run beside the work: `before` has not seen it, and `after` is not waited for yet.
        self.copies.advance(room);
        // SAFETY: as above.
        unsafe {
            check("cuEventRecord", sys::cuEventRecord(self.after, self.stream));
            check("cuCtxWaitEvent", sys::cuCtxWaitEvent(self.context, self.after));
        }
    }
}

/// Enqueues foreign work on `buffers`, whose device addresses it gets in their order.
///
/// The order of the streams keeps their memory until the work is done.
fn enqueue(op: &'static str, buffers: &[&Buffer], work: impl FnOnce(&mut Foreign, &[u64]) + Send + 'static) {
    enqueue_long(op, buffers, 0, work);
}

/// As [`enqueue`], for work during which so many bytes can be copied.
fn enqueue_long(
    op: &'static str,
    buffers: &[&Buffer],
    room: usize,
    work: impl FnOnce(&mut Foreign, &[u64]) + Send + 'static,
) {
    on_foreign(op, buffers, move |foreign, addresses| foreign.in_order(room, |foreign| work(foreign, addresses)));
}

/// As [`enqueue`], without an order: `work` has to make it.
fn on_foreign(op: &'static str, buffers: &[&Buffer], work: impl FnOnce(&mut Foreign, &[u64]) + Send + 'static) {
    let stream = StreamId::current();
    let bindings: Vec<Binding> = buffers.iter().map(|buffer| buffer.handle.clone().binding()).collect();
    submit(&buffers[0].device, move |server| {
        faults::on_device_thread(op, || {
            let address = |binding| match server.get_resource(binding, stream) {
                Ok(resource) => resource.resource().ptr,
                Err(error) => panic!("memory of {op}: {error:?}"),
            };
            let addresses: Vec<u64> = bindings.into_iter().map(address).collect();
            FOREIGN.with_borrow_mut(|foreign| work(foreign.get_or_insert_with(Foreign::new), &addresses));
        });
    });
}
