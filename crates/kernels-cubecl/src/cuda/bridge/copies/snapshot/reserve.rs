//! Pinned host memory that is taken before it is needed: pinning takes seconds for what a large model needs.
//!
//! It is apart from the memory of parked tensors, which take what they find: what is promised to a checkpoint must be there.

use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;

use burn::tensor::Bytes;
use cubecl_common::bytes::{AllocationController, AllocationProperty};
use cudarc::driver::sys;

use super::super::try_pin;
use crate::HostReserve;
use crate::cuda::CudaDevice;

/// Alignment that is promised; pinned memory begins at a page.
const ALIGNMENT: usize = 64;

/// Device and bytes of a piece of memory.
type Key = (usize, usize);

/// The memory of all devices.
static STORE: Mutex<Store> = Mutex::new(Store { free: BTreeMap::new(), coming: BTreeMap::new() });
/// Something was pinned, given back, or will not come.
static CHANGED: Condvar = Condvar::new();

#[derive(Debug)]
struct Store {
    /// Addresses that nobody uses.
    free: BTreeMap<Key, Vec<usize>>,
    /// How many are still to be pinned.
    coming: BTreeMap<Key, usize>,
}

fn store() -> MutexGuard<'static, Store> {
    STORE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store {
    fn coming(&self, key: Key) -> usize {
        self.coming.get(&key).copied().unwrap_or(0)
    }

    /// What is missing to have all of these at a time, where nothing is in use.
    fn missing(&self, keys: &[Key]) -> Vec<Key> {
        let mut there: BTreeMap<Key, usize> = BTreeMap::new();
        let missing = |key: &&Key| {
            let left =
                there.entry(**key).or_insert_with(|| self.free.get(key).map_or(0, Vec::len) + self.coming(**key));
            let is_there = *left > 0;
            *left = left.saturating_sub(1);
            !is_there
        };
        keys.iter().filter(missing).copied().collect()
    }
}

/// Pinned memory of a reserve; it goes back when this is dropped.
#[derive(Debug)]
pub(in super::super::super::super) struct Reserved {
    key: Key,
    address: usize,
}

impl Reserved {
    /// Memory of so many bytes, where there is some; waits while some is being pinned.
    pub(in super::super::super::super) fn take(device: &CudaDevice, bytes: usize) -> Option<Self> {
        let key = (device.index, bytes);
        let mut store = store();
        loop {
            if let Some(address) = store.free.get_mut(&key).and_then(Vec::pop) {
                return Some(Self { key, address });
            }
            if store.coming(key) == 0 {
                return None;
            }
            store = CHANGED.wait(store).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(super) fn address(&self) -> usize {
        self.address
    }

    pub(super) fn bytes(&self) -> usize {
        self.key.1
    }

    /// The bytes themselves, without a copy; the copy into them has ended.
    pub(in super::super::super::super) fn into_bytes(self) -> Bytes {
        let n_bytes = self.key.1;
        // SAFETY: the copy from the device has written all of them.
        unsafe { Bytes::from_controller(Box::new(self), n_bytes) }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        store().free.entry(self.key).or_default().push(self.address);
        CHANGED.notify_all();
    }
}

impl AllocationController for Reserved {
    fn alloc_align(&self) -> usize {
        ALIGNMENT
    }

    fn property(&self) -> AllocationProperty {
        AllocationProperty::Pinned
    }

    unsafe fn memory_mut(&mut self) -> &mut [MaybeUninit<u8>] {
        // SAFETY: the memory is pinned for as long as the process lives, has this length, and nobody else has it.
        unsafe { std::slice::from_raw_parts_mut(self.address as *mut MaybeUninit<u8>, self.key.1) }
    }

    fn memory(&self) -> &[MaybeUninit<u8>] {
        // SAFETY: as in `memory_mut`.
        unsafe { std::slice::from_raw_parts(self.address as *const MaybeUninit<u8>, self.key.1) }
    }
}

/// What a thread has promised to pin; nobody waits for what it does not.
struct Promise(Vec<Key>);

impl Promise {
    fn made(keys: Vec<Key>) -> Self {
        keys.iter().for_each(|key| *store().coming.entry(*key).or_default() += 1);
        Self(keys)
    }

    /// Pins one after the other until there is no more to be had.
    fn keep(&mut self, pin: &mut dyn FnMut(usize) -> Option<usize>) {
        self.0.reverse();
        while let Some(&key) = self.0.last() {
            let Some(address) = pin(key.1) else { return };
            self.0.pop();
            let mut store = store();
            store.free.entry(key).or_default().push(address);
            *store.coming.entry(key).or_default() -= 1;
            CHANGED.notify_all();
        }
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        let mut store = store();
        self.0.iter().for_each(|key| *store.coming.entry(*key).or_default() -= 1);
        CHANGED.notify_all();
    }
}

/// Begins to pin memory of these sizes, as far as it is not there already, in a thread of its own and in their order, unless
/// that is more than `limit` bytes.
pub(in super::super::super::super) fn reserve(device: &CudaDevice, sizes: &[usize], limit: u64) -> HostReserve {
    let keys: Vec<Key> = sizes.iter().filter(|bytes| **bytes > 0).map(|bytes| (device.index, *bytes)).collect();
    let missing = store().missing(&keys);
    if missing.iter().map(|key| key.1 as u64).sum::<u64>() > limit {
        return HostReserve::TooMuch;
    }
    let (index, mut promise) = (device.index, Promise::made(missing));
    let work = move || {
        if enter(index) {
            promise.keep(&mut |bytes| try_pin(bytes).ok());
        }
    };
    // Without the thread the promise is dropped and copies wait, as they do without memory.
    let _ = Builder::new().name("pin".into()).spawn(work);
    HostReserve::Begun
}

/// Makes the device's primary context, which cubecl uses, current on this thread for good.
fn enter(index: usize) -> bool {
    let ok = |result| result == sys::CUresult::CUDA_SUCCESS;
    let (mut device, mut context) = (0, std::ptr::null_mut());
    // SAFETY: every pointer is to a live local variable; the context is retained and never released.
    unsafe {
        ok(sys::cuInit(0))
            && ok(sys::cuDeviceGet(&mut device, index as i32))
            && ok(sys::cuDevicePrimaryCtxRetain(&mut context, device))
            && ok(sys::cuCtxSetCurrent(context))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sizes that are there or on their way are not pinned again; each counts once.
    #[test]
    fn only_what_is_missing_is_pinned() {
        let key = |bytes| (91, bytes);
        let store =
            Store { free: BTreeMap::from([(key(8), vec![1, 2])]), coming: BTreeMap::from([(key(8), 1), (key(16), 1)]) };
        assert_eq!(store.missing(&[key(8), key(16), key(8), key(32), key(8)]), [key(32)]);
        assert_eq!(store.missing(&[key(8); 5]), [key(8); 2]);
        assert_eq!(store.missing(&[(92, 8)]), [(92, 8)]);
    }

    /// Who takes memory that is promised waits for it; what is not kept is not waited for.
    #[test]
    fn memory_is_waited_for_while_it_comes() {
        let device = CudaDevice::new(93);
        assert!(Reserved::take(&device, 640).is_none(), "nothing was reserved");
        let mut promise = Promise::made(vec![(93, 640), (93, 1280)]);
        let taker = std::thread::spawn(|| {
            let device = CudaDevice::new(93);
            [640, 1280].map(|bytes| Reserved::take(&device, bytes))
        });
        promise.keep(&mut |bytes| (bytes == 640).then_some(1 << 20));
        drop(promise);
        let [first, second] = taker.join().unwrap();
        assert!(second.is_none(), "it could not be pinned");
        assert_eq!(first.as_ref().map(|memory| (memory.address(), memory.bytes())), Some((1 << 20, 640)));
        drop(first);
        assert_eq!(Reserved::take(&device, 640).map(|memory| memory.address()), Some(1 << 20), "it was given back");
        assert_eq!(reserve(&device, &[640, 1 << 20], 1 << 19), HostReserve::TooMuch);
    }
}
