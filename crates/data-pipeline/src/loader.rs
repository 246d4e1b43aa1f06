//! Which rows a step sees, and a thread that prepares them ahead of time.

use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use crate::error::DataError;

/// The order of rows: a pure function of `(seed, step)`, with no state to save.
///
/// Positions `0, 1, 2, ...` run over the epochs; within each epoch every row comes exactly once, in an order of its
/// own. Step `s` of `p` rows takes positions `s·p .. (s+1)·p`, so an epoch may end inside a step, and a run that
/// resumes at a step continues exactly where the uninterrupted run would be.
///
/// The permutation of an epoch is a Feistel network over the smallest even-split power of two that holds all rows,
/// walked until it lands on a row. It needs no memory and no shuffle, however many rows there are.
///
/// # Source
/// Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002 (cycle walking).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    seed: u64,
    n_rows: u64,
    left_bits: u32,
    right_bits: u32,
}

const ROUNDS: u64 = 10;

impl Order {
    /// The order for `n_rows` rows under `seed`.
    ///
    /// # Panics
    /// If `n_rows` is 0; a [`crate::RowSet`] is never empty.
    pub fn new(seed: u64, n_rows: usize) -> Self {
        assert!(n_rows > 0, "an order needs at least one row");
        let bits = (n_rows as u64).next_power_of_two().trailing_zeros().max(2);
        Self { seed, n_rows: n_rows as u64, left_bits: bits / 2, right_bits: bits - bits / 2 }
    }

    /// The `per_step` row indices of `step`, counted from 0.
    pub fn indices(&self, step: u64, per_step: usize) -> Vec<usize> {
        let first = u128::from(step) * per_step as u128;
        (first..first + per_step as u128).map(|position| self.row_at(position)).collect()
    }

    /// The epoch (from 0) that the first row of `step` belongs to.
    pub fn epoch(&self, step: u64, per_step: usize) -> u64 {
        (u128::from(step) * per_step as u128 / u128::from(self.n_rows)) as u64
    }

    fn row_at(&self, position: u128) -> usize {
        let n = u128::from(self.n_rows);
        let key = mix(self.seed ^ mix((position / n) as u64));
        let mut x = (position % n) as u64;
        loop {
            x = self.permute(x, key);
            if x < self.n_rows {
                return x as usize;
            }
        }
    }

    /// A bijection of `0..2^(left_bits + right_bits)`.
    fn permute(&self, x: u64, key: u64) -> u64 {
        let (mut left, mut right) = (x >> self.right_bits, x & mask(self.right_bits));
        let (mut left_bits, mut right_bits) = (self.left_bits, self.right_bits);
        for round in 0..ROUNDS {
            let mixed = left ^ (mix(key ^ mix(right ^ (round << 56))) & mask(left_bits));
            (left, right) = (right, mixed);
            (left_bits, right_bits) = (right_bits, left_bits);
        }
        left << right_bits | right
    }
}

fn mask(bits: u32) -> u64 {
    (1 << bits) - 1
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): every input bit changes every output bit.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Prepares the items of the following steps on a thread while the current one is worked on.
///
/// An iterator: item `n` is what `prepare(first_step + n)` returned. An error, or a panic of `prepare`, comes out at
/// the step it belongs to; after that the iterator ends.
#[derive(Debug)]
pub struct Prefetch<T, E> {
    receiver: Option<Receiver<Result<T, E>>>,
    thread: Option<JoinHandle<()>>,
}

impl<T: Send + 'static, E: From<DataError> + Send + 'static> Prefetch<T, E> {
    /// Starts the thread; it stays at most `ahead` (at least 1) items in front of the consumer.
    pub fn new(first_step: u64, ahead: usize, mut prepare: impl FnMut(u64) -> Result<T, E> + Send + 'static) -> Self {
        let (sender, receiver) = sync_channel(ahead.max(1));
        let thread = std::thread::spawn(move || {
            for step in first_step.. {
                let item = prepare(step);
                let last = item.is_err();
                if sender.send(item).is_err() || last {
                    return;
                }
            }
        });
        Self { receiver: Some(receiver), thread: Some(thread) }
    }
}

impl<T, E: From<DataError>> Iterator for Prefetch<T, E> {
    type Item = Result<T, E>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(Ok(item)) = self.receiver.as_ref().map(Receiver::recv) {
            return Some(item);
        }
        self.receiver = None;
        let panicked = self.thread.take()?.join().is_err();
        panicked.then(|| Err(DataError::Prefetch("panicked").into()))
    }
}

impl<T, E> Drop for Prefetch<T, E> {
    fn drop(&mut self) {
        // The thread stops at its next send once nobody receives.
        self.receiver = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

        #[test]
        fn s08_order_is_a_pure_function_of_seed_and_step(seed: u64, n in 1usize..300, per_step in 1usize..17, step in 0u64..5000) {
            // A fresh value gives what a value that has been used from the start gives.
            let used = Order::new(seed, n);
            let from_start: Vec<_> = (0..=step % 50).map(|s| used.indices(s, per_step)).collect();
            prop_assert_eq!(from_start.last().unwrap(), &Order::new(seed, n).indices(step % 50, per_step));
            // Steps are cut from one sequence, whatever their size.
            let rows = Order::new(seed, n).indices(step, per_step);
            let single: Vec<_> = (0..per_step as u64).flat_map(|i| used.indices(step * per_step as u64 + i, 1)).collect();
            prop_assert_eq!(rows, single);
        }

        #[test]
        fn each_epoch_is_a_fresh_permutation(seed: u64, n in 1usize..400, epoch in 0u64..1000) {
            let order = Order::new(seed, n);
            let mut rows = order.indices(epoch, n);
            let next = order.indices(epoch + 1, n);
            prop_assert!(n < 20 || rows != next);
            prop_assert!(n < 20 || rows != Order::new(seed ^ 1, n).indices(epoch, n));
            rows.sort_unstable();
            prop_assert_eq!(rows, (0..n).collect::<Vec<_>>());
            prop_assert_eq!(order.epoch(epoch, n), epoch);
        }
    }

    #[test]
    fn every_row_is_equally_likely_at_every_place() {
        // χ² over 40 rows × 40 places from 4,000 seeds: 39·39 degrees of freedom, mean 1521, deviation 55.
        let (n, seeds) = (40, 4000u64);
        let mut counts = vec![0u32; n * n];
        for seed in 0..seeds {
            for (place, row) in Order::new(seed, n).indices(0, n).into_iter().enumerate() {
                counts[place * n + row] += 1;
            }
        }
        let expected = seeds as f64 / n as f64;
        let chi2: f64 = counts.iter().map(|&c| (f64::from(c) - expected).powi(2) / expected).sum();
        assert!((1300.0..1800.0).contains(&chi2), "{chi2}");
    }

    #[test]
    fn huge_steps_do_not_overflow() {
        assert!(Order::new(1, 7).indices(u64::MAX, 3).iter().all(|&row| row < 7));
    }

    #[test]
    fn prefetch_hands_over_every_step_in_order_and_then_the_error() {
        let prepare = |step| if step < 7 { Ok(step * 2) } else { Err(DataError::Prefetch("stopped on purpose")) };
        let mut items = Prefetch::new(3, 2, prepare);
        for step in 3..7 {
            assert_eq!(items.next().unwrap().unwrap(), step * 2);
        }
        assert!(items.next().unwrap().unwrap_err().to_string().contains("on purpose"));
        assert!(items.next().is_none());
    }

    #[test]
    fn a_panic_of_the_thread_is_an_error_of_the_step() {
        let mut items = Prefetch::<u64, DataError>::new(0, 1, |step| {
            assert!(step < 1, "a failing test inside a thread prints this, which is fine");
            Ok(step)
        });
        assert_eq!(items.next().unwrap().unwrap(), 0);
        assert!(items.next().unwrap().unwrap_err().to_string().contains("panicked"));
        assert!(items.next().is_none());
    }

    #[test]
    fn dropping_the_consumer_stops_the_thread() {
        let (alive, watch) = std::sync::mpsc::channel::<()>();
        let items = Prefetch::<u64, DataError>::new(0, 1, move |step| {
            let _keep = &alive;
            Ok(step)
        });
        drop(items);
        assert!(watch.recv().is_err(), "the sender lives as long as the thread");
    }
}
