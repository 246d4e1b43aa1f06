//! Memory: what a step needs, and what the allocator does with the memory that a step gives back.
//!
//! Every step allocates and frees the same activations. The C library returns large blocks to the system at once, so each
//! step would pay for fresh zeroed pages again; docs/LOG.md has what that costs.

mod plan;
mod step;

pub use plan::{MemoryPlan, Workload};
pub use step::{AdapterShape, Head};

/// Keeps freed memory for the next step instead of returning it to the system; call it once, before the first step.
///
/// Nothing happens where the C library is not glibc. The process holds its peak until it ends.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        /// The largest threshold that glibc takes; larger blocks are still mapped on their own.
        const MAPPED_BYTES: i32 = 32 << 20;
        const TOP_PAD_BYTES: i32 = 64 << 20;
        for (option, value) in [
            (libc::M_MMAP_THRESHOLD, MAPPED_BYTES),
            (libc::M_TRIM_THRESHOLD, i32::MAX),
            (libc::M_TOP_PAD, TOP_PAD_BYTES),
        ] {
            // SAFETY: mallopt takes two integers, touches only the allocator's own settings, and is safe to call from any
            // thread; a value that it refuses changes nothing.
            #[expect(unsafe_code, reason = "the allocator has no other interface")]
            unsafe {
                libc::mallopt(option, value);
            }
        }
    }
}
