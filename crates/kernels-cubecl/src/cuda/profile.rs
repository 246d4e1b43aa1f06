//! Where the time of a step goes, op by op.
//!
//! While a profile is taken, every op first waits for the device and books the time since the last one on the op before it, so
//! that nothing overlaps: the sum is somewhat longer than the step is otherwise. What burn's own ops take is booked on the op
//! before them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::{CudaDevice, bridge};

static ACTIVE: AtomicBool = AtomicBool::new(false);
static PROFILE: Mutex<Option<Profile>> = Mutex::new(None);

struct Profile {
    device: CudaDevice,
    op: &'static str,
    since: Instant,
    ops: BTreeMap<&'static str, (u64, f64)>,
}

impl Profile {
    fn book(&mut self, next: &'static str) {
        bridge::wait(&self.device);
        let now = Instant::now();
        let entry = self.ops.entry(self.op).or_default();
        *entry = (entry.0 + 1, entry.1 + (now - self.since).as_secs_f64());
        (self.op, self.since) = (next, now);
    }
}

fn with<T>(f: impl FnOnce(&mut Option<Profile>) -> T) -> T {
    f(&mut PROFILE.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Starts a profile of everything that runs on `device` from now on.
pub fn start(device: &CudaDevice) {
    bridge::wait(device);
    let profile =
        Profile { device: device.clone(), op: "before the first op", since: Instant::now(), ops: BTreeMap::new() };
    with(|slot| *slot = Some(profile));
    ACTIVE.store(true, Ordering::Release);
}

/// Ends the profile: per op its calls and seconds, the longest first.
pub fn stop() -> Vec<(&'static str, u64, f64)> {
    ACTIVE.store(false, Ordering::Release);
    let Some(mut profile) = with(Option::take) else { return Vec::new() };
    profile.book("");
    let mut ops: Vec<_> = profile.ops.into_iter().map(|(op, (calls, seconds))| (op, calls, seconds)).collect();
    ops.sort_by(|a, b| b.2.total_cmp(&a.2));
    ops
}

/// Called by each op.
pub(super) fn enter(op: &'static str) {
    if ACTIVE.load(Ordering::Acquire) {
        with(|profile| profile.as_mut().map(|profile| profile.book(op)));
    }
}
