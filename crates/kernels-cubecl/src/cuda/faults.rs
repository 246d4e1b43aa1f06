//! Faults of cubecl's device thread.
//!
//! cubecl runs kernels from a thread of its own and drops a panic there: the op does not run and reads give garbage. So a
//! panic hook keeps the first such panic with the op it belongs to, the next op panics with it on the caller's thread, and
//! [`guarded`] turns that into an error.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, Location, PanicHookInfo, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, Once, PoisonError};

use crate::KernelError;

/// The first fault that nobody has reported yet.
static FAULT: Mutex<Option<KernelError>> = Mutex::new(None);
/// True from the first one on.
static BROKEN: AtomicBool = AtomicBool::new(false);
/// True while there is one: what each op looks at.
static PENDING: AtomicBool = AtomicBool::new(false);
/// The op that was called last, for panics of kernels that are not ours.
static LAST_OP: Mutex<&str> = Mutex::new("");
static HOOK: Once = Once::new();

/// How the names of cubecl's device threads begin.
const THREAD_PREFIXES: [&str; 2] = ["DSU-", "DSD-"];

thread_local! {
    /// The foreign work that this device thread is doing.
    static FOREIGN_OP: Cell<Option<&'static str>> = const { Cell::new(None) };
}

/// Starts to watch the device threads.
pub(super) fn watch() {
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if let Some(op) = device_op(info.location()) {
                record(op, message(info));
            }
            before(info);
        }));
    });
}

/// The op of a panic on a device thread, `None` on every other thread.
fn device_op(location: Option<&Location>) -> Option<String> {
    if let Some(op) = FOREIGN_OP.get() {
        return Some(op.to_owned());
    }
    let thread = std::thread::current();
    if !is_device_thread(thread.name()) {
        return None;
    }
    let own = location.and_then(|location| op_of_path(location.file()));
    let last = *LAST_OP.lock().unwrap_or_else(PoisonError::into_inner);
    Some(own.unwrap_or_else(|| format!("one not later than {last}")))
}

fn is_device_thread(name: Option<&str>) -> bool {
    name.is_some_and(|name| THREAD_PREFIXES.iter().any(|prefix| name.starts_with(prefix)))
}

/// The op whose folder a source file is in.
fn op_of_path(file: &str) -> Option<String> {
    let mut parts =
        file.split(['/', '\\']).skip_while(|part| *part != "kernels-cubecl").skip_while(|part| *part != "ops");
    parts.next()?;
    parts.next().map(str::to_owned)
}

fn message(info: &PanicHookInfo) -> String {
    let place = info.location().map(|at| format!(" ({}:{})", at.file(), at.line())).unwrap_or_default();
    format!("{}{place}", info.payload_as_str().unwrap_or("a panic without a message"))
}

fn record(op: String, message: String) {
    let mut fault = FAULT.lock().unwrap_or_else(PoisonError::into_inner);
    fault.get_or_insert(match out_of_memory(&message) {
        Some(bytes) => KernelError::OutOfMemory { op, bytes },
        None => KernelError::DeviceFault { op, message },
    });
    PENDING.store(true, Ordering::Release);
    BROKEN.store(true, Ordering::Release);
}

fn text(panic: &(dyn Any + Send)) -> Option<&str> {
    panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied())
}

/// Whether a message says that the device has no memory left, and if so how much was asked for, where that is known.
///
/// cubecl's device thread unwraps the error of the pool; the text is that of its `IoError::BufferTooBig`, displayed or as the
/// variant. The driver's own calls say the name of their result.
fn out_of_memory(message: &str) -> Option<Option<u64>> {
    for mark in ["can't allocate buffer of size: ", "BufferTooBig { size: "] {
        if let Some((_, rest)) = message.split_once(mark) {
            let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            return Some(rest[..end].parse().ok());
        }
    }
    message.contains("CUDA_ERROR_OUT_OF_MEMORY").then_some(None)
}

fn take() -> Option<KernelError> {
    let fault = FAULT.lock().unwrap_or_else(PoisonError::into_inner).take();
    PENDING.store(false, Ordering::Release);
    fault
}

/// Names the foreign work of the device thread while `work` runs.
pub(super) fn on_device_thread(op: &'static str, work: impl FnOnce()) {
    /// Takes the name away, also when the work panics.
    struct Unnamed;
    impl Drop for Unnamed {
        fn drop(&mut self) {
            FOREIGN_OP.set(None);
        }
    }
    FOREIGN_OP.set(Some(op));
    let _unnamed = Unnamed;
    work();
}

/// Whether a device thread has failed in this process, reported or not.
pub(crate) fn broken() -> bool {
    BROKEN.load(Ordering::Acquire)
}

/// Whether there is a fault that nobody has reported yet.
pub(super) fn pending() -> bool {
    PENDING.load(Ordering::Acquire)
}

/// Called by each op: remembers its name, and panics if an earlier op has failed on the device thread.
pub(super) fn enter(op: &'static str) {
    super::profile::enter(op);
    *LAST_OP.lock().unwrap_or_else(PoisonError::into_inner) = op;
    if pending() {
        let fault = FAULT.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(fault) = fault {
            panic!("{fault}");
        }
    }
}

/// Runs `work` and reports a fault of a device thread that happened meanwhile, also where it has made `work` panic.
///
/// Read something from the device at the end of `work`, so that what is enqueued has run. Without CUDA this only calls `work`.
///
/// # Errors
/// [`KernelError::DeviceFault`] with the op and the message, [`KernelError::OutOfMemory`] with the op and the bytes. `work` may have computed with garbage before it was noticed.
pub fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, KernelError> {
    let result = catch_unwind(AssertUnwindSafe(work));
    match (take(), result) {
        (Some(fault), _) => Err(fault),
        (None, Ok(value)) => Ok(value),
        // An error of the pool can also come back with what is read.
        (None, Err(panic)) => match text(&*panic).and_then(out_of_memory) {
            Some(bytes) => {
                let op = (*LAST_OP.lock().unwrap_or_else(PoisonError::into_inner)).to_owned();
                Err(KernelError::OutOfMemory { op, bytes })
            }
            None => resume_unwind(panic),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// There is one fault at a time, for all tests of a process.
    static ALONE: Mutex<()> = Mutex::new(());

    #[test]
    fn ops_are_named_by_their_folder() {
        let path = |text: &str| op_of_path(text);
        assert_eq!(path("crates/kernels-cubecl/src/ops/rms_norm/cuda.rs").as_deref(), Some("rms_norm"));
        assert_eq!(path("/x/kernels-cubecl/src/ops/attention/cuda/flash.rs").as_deref(), Some("attention"));
        assert_eq!(path("burn-cubecl-0.21.0/src/ops/numeric.rs"), None);
        assert_eq!(path("crates/kernels-cubecl/src/cuda/bridge.rs"), None);
    }

    #[test]
    fn device_threads_are_known_by_name() {
        for (name, want) in [(Some("DSU-0-0"), true), (Some("DSD-0-1"), true), (Some("main"), false), (None, false)] {
            assert_eq!(is_device_thread(name), want, "{name:?}");
        }
    }

    #[test]
    fn messages_without_memory_are_known() {
        for (message, want) in [
            (
                "called `Result::unwrap()` on an `Err` value: can't allocate buffer of size: 1099511627776\n<bt>",
                Some(Some(1 << 40)),
            ),
            ("called `Result::unwrap()` on an `Err` value: BufferTooBig { size: 512, backtrace: .. }", Some(Some(512))),
            ("can't allocate buffer of size: ?", Some(None)),
            ("cuMemAlloc: CUDA_ERROR_OUT_OF_MEMORY (bridge.rs:7)", Some(None)),
            ("cuLaunchKernel: CUDA_ERROR_ILLEGAL_ADDRESS", None),
        ] {
            assert_eq!(out_of_memory(message), want, "{message}");
        }
    }

    #[test]
    fn a_panic_for_lack_of_memory_is_an_error_of_its_own() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        watch();
        let error = guarded(|| {
            let panics = || on_device_thread("attention", || panic!("can't allocate buffer of size: 4096"));
            assert!(std::thread::spawn(panics).join().is_err());
        });
        let error = error.expect_err("the fault must surface");
        assert_eq!(error, KernelError::OutOfMemory { op: "attention".into(), bytes: Some(4096) });
        assert_eq!(error.exit_code(), 4);
        assert!(error.to_string().contains("4096 bytes were asked for"), "{error}");
    }

    /// A panic on a thread like cubecl's becomes an error that names the op, and the next op does not run.
    #[test]
    fn a_panic_of_the_device_thread_is_an_error() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        watch();
        let fault = guarded(|| {
            let panics = || on_device_thread("linear", || panic!("out of everything"));
            assert!(std::thread::spawn(panics).join().is_err());
            enter("swiglu");
        });
        let error = fault.expect_err("the fault must surface");
        assert_eq!(error.exit_code(), 4);
        let text = error.to_string();
        assert!(text.contains("linear") && text.contains("out of everything"), "{text}");
        assert_eq!(guarded(|| 7), Ok(7));
    }
}
