//! Where the inputs of recomputed blocks wait for the backward pass, when not on the device.
//!
//! A block's input goes to the host while the block runs forward. When the backward pass comes to a block, its input is taken
//! back and the copy of the one before it begins, so that the device holds two of them at most.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use burn::tensor::Tensor;

use crate::LmBackend;
use crate::parking::Parked;

/// The offloaded inputs of a forward pass, in the order of the blocks; clones are the same shelf.
///
/// It owns none of them: they live as long as the graph.
#[derive(Clone, Debug, Default)]
pub struct Shelf(Arc<Mutex<Entries>>);

#[derive(Debug, Default)]
struct Entries {
    inputs: Vec<Weak<dyn Fetch>>,
    traffic: Traffic,
}

/// Inputs that were moved so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// From the device to the host.
    pub to_host: usize,
    /// Back to the device.
    pub to_device: usize,
}

/// An input of any backend, as far as its neighbour needs to know it.
trait Fetch: Send + Sync {
    fn fetch(&self);
}

struct Slot<B: LmBackend>(Mutex<Box<dyn Parked<B>>>);

/// An input on the shelf.
pub(super) struct Stored<B: LmBackend> {
    shelf: Shelf,
    index: usize,
    slot: Arc<Slot<B>>,
}

impl<B: LmBackend> Clone for Stored<B> {
    fn clone(&self) -> Self {
        Self { shelf: self.shelf.clone(), index: self.index, slot: self.slot.clone() }
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<B: LmBackend> Fetch for Slot<B> {
    fn fetch(&self) {
        lock(&self.0).fetch();
    }
}

impl Shelf {
    /// How many inputs were moved.
    pub fn traffic(&self) -> Traffic {
        lock(&self.0).traffic
    }

    /// Begins to move an input to the host.
    pub(super) fn put<B: LmBackend>(&self, x: Tensor<B, 3>) -> Stored<B> {
        self.store(B::lm_park(x))
    }

    fn store<B: LmBackend>(&self, input: Box<dyn Parked<B>>) -> Stored<B> {
        let slot = Arc::new(Slot(Mutex::new(input)));
        let weak: Weak<Slot<B>> = Arc::downgrade(&slot);
        let mut entries = lock(&self.0);
        entries.inputs.push(weak);
        entries.traffic.to_host += 1;
        Stored { shelf: self.clone(), index: entries.inputs.len() - 1, slot }
    }
}

impl<B: LmBackend> Stored<B> {
    /// See [`Parked::leave`].
    pub(super) fn leave(&self) {
        lock(&self.slot.0).leave();
    }

    /// Takes the input back and begins to fetch the one before it.
    pub(super) fn take(self) -> Tensor<B, 3> {
        let x = lock(&self.slot.0).take();
        let before = {
            let mut entries = lock(&self.shelf.0);
            entries.traffic.to_device += 1;
            self.index.checked_sub(1).and_then(|index| entries.inputs[index].upgrade())
        };
        if let Some(before) = before {
            before.fetch();
        }
        x
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Cpu;

    /// Writes down what is done to it.
    struct Logged(usize, Arc<Mutex<Vec<String>>>);

    impl Logged {
        fn log(&self, what: &str) {
            lock(&self.1).push(format!("{what} {}", self.0));
        }
    }

    impl Parked<Cpu> for Logged {
        fn leave(&mut self) {
            self.log("leave");
        }

        fn fetch(&mut self) {
            self.log("fetch");
        }

        fn take(&mut self) -> Tensor<Cpu, 3> {
            self.log("take");
            Tensor::zeros([1, 1, 1], &Default::default())
        }
    }

    #[test]
    fn taking_an_input_fetches_the_one_before_it() {
        let (shelf, log) = (Shelf::default(), Arc::new(Mutex::new(Vec::new())));
        let put = |i| {
            let stored: Stored<Cpu> = shelf.store(Box::new(Logged(i, log.clone())));
            stored.leave();
            stored
        };
        let mut stored: Vec<Stored<Cpu>> = (0..4).map(put).collect();
        // A graph that goes without a backward pass takes its inputs along.
        drop(stored.remove(1));
        stored.into_iter().rev().for_each(|stored| drop(stored.take()));
        let want = "leave 0, leave 1, leave 2, leave 3, take 3, fetch 2, take 2, take 0";
        assert_eq!(lock(&log).join(", "), want);
        assert_eq!(shelf.traffic(), Traffic { to_host: 4, to_device: 3 });
    }
}
