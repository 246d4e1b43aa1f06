//! Numbers that only depend on a seed.

/// SplitMix64.
pub(crate) struct Random(u64);

impl Random {
    /// A generator of its own for every name, moved by `FIREBRICK_SEED` where it is set.
    pub(crate) fn new(name: &str) -> Self {
        let seed: u64 = std::env::var("FIREBRICK_SEED").map_or(0, |text| text.parse().unwrap());
        Self(name.bytes().fold(seed, |state, byte| state.wrapping_mul(0x100_0000_01b3) ^ u64::from(byte)))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number in [0, 1).
    pub(crate) fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[test]
fn shares_are_shares_and_repeat() {
    let draw = || {
        let mut random = Random::new("x");
        (0..100).map(|_| random.share()).collect::<Vec<f64>>()
    };
    assert!(draw() == draw() && draw().iter().all(|share| (0.0..1.0).contains(share)));
    assert_ne!(draw()[0], Random::new("y").share());
}
