//! Memory: what a step needs, and what the allocator does with the memory that a step gives back.
//!
//! Every step allocates and frees the same activations. The C library returns large blocks to the system at once, so each
//! step would pay for fresh zeroed pages again; docs/LOG.md has what that costs.

mod plan;
mod step;

pub(crate) use plan::offloaded_bytes;
pub use plan::{AdapterWorkload, MemoryPlan, SamplingWorkload, Workload};
pub use step::{AdapterShape, Head};

/// Bytes of the host's memory that a process can still take, as Linux estimates them; `None` on other systems.
pub fn host_available() -> Option<u64> {
    mem_available(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

/// `MemAvailable` of `/proc/meminfo`.
fn mem_available(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    kib.checked_mul(1024)
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read() {
        let text = "MemTotal:       131072000 kB\nMemFree:         1000 kB\nMemAvailable:   2048 kB\n";
        assert_eq!(mem_available(text), Some(2 << 20));
        for text in ["", "MemFree: 1 kB", "MemAvailable: many kB", "MemAvailable: 5 MB"] {
            assert_eq!(mem_available(text), None, "{text}");
        }
        #[cfg(target_os = "linux")]
        assert!(host_available().is_some_and(|bytes| bytes > 1 << 20));
    }
}
