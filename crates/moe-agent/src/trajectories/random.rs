//! Choices that depend on a seed and a name alone.

use model_core::random::Stream;

/// A row of choices.
#[derive(Debug, Clone)]
pub(super) struct Dice {
    stream: Stream,
    next: u64,
}

impl Dice {
    pub(super) fn new(seed: u64, name: &str) -> Self {
        Self { stream: Stream::new(seed, name), next: 0 }
    }

    /// Whether something of this probability happens.
    pub(super) fn happens(&mut self, probability: f64) -> bool {
        self.next += 1;
        self.stream.uniform(self.next) < probability
    }

    /// One of several.
    pub(super) fn pick<'t, T>(&mut self, from: &'t [T]) -> &'t T {
        self.next += 1;
        &from[(self.stream.bits(self.next) % from.len() as u64) as usize]
    }

    /// The same in another order.
    pub(super) fn shuffle<T>(&mut self, all: &mut [T]) {
        for i in (1..all.len()).rev() {
            self.next += 1;
            all.swap(i, (self.stream.bits(self.next) % (i as u64 + 1)) as usize);
        }
    }
}
