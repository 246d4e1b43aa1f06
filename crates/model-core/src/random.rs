//! Counter-based random numbers: value `i` of a stream is a pure function of (seed, name, i).
//!
//! Nothing here has a state, so a stream can be read in any order by any number of threads and gives the same values.
//!
//! # Source
//! The mixing function is the finaliser of SplitMix64 (Steele, Lea, Flood 2014) applied to a keyed counter; normal values
//! come from the transform of Box and Muller (1958).

use rayon::prelude::*;

/// Distance between two counters, an odd constant close to 2^64 divided by the golden ratio.
const STRIDE: u64 = 0x9E37_79B9_7F4A_7C15;

/// Values per parallel piece; even, so that pairs of normal values never straddle pieces.
const PIECE: usize = 1 << 14;

/// One stream of random numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    key: u64,
    mask: u64,
}

impl Stream {
    /// The stream called `name` under `seed`.
    pub fn new(seed: u64, name: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes()).update(name.as_bytes());
        let digest = hasher.finalize();
        let word = |i: usize| {
            let bytes = digest.as_bytes()[8 * i..8 * i + 8].try_into().expect("a BLAKE3 digest has 32 bytes");
            u64::from_le_bytes(bytes)
        };
        Stream { key: word(0), mask: word(1) }
    }

    /// 64 uniform bits.
    pub fn bits(&self, index: u64) -> u64 {
        mix(mix(self.key.wrapping_add(index.wrapping_mul(STRIDE))) ^ self.mask)
    }

    /// A uniform value in [0, 1).
    pub fn uniform(&self, index: u64) -> f64 {
        (self.bits(index) >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// `len` values of N(0, std²).
    pub fn normals(&self, len: usize, std: f32) -> Vec<f32> {
        let mut out = vec![0.0; len];
        out.par_chunks_mut(PIECE).enumerate().for_each(|(piece, chunk)| {
            for (pair, values) in chunk.chunks_mut(2).enumerate() {
                let normal = self.normal_pair((piece * PIECE / 2 + pair) as u64);
                for (value, normal) in values.iter_mut().zip(normal) {
                    *value = (normal * f64::from(std)) as f32;
                }
            }
        });
        out
    }

    /// `len` values uniform in [-bound, bound).
    pub fn uniforms(&self, len: usize, bound: f32) -> Vec<f32> {
        let mut out = vec![0.0; len];
        out.par_chunks_mut(PIECE).enumerate().for_each(|(piece, chunk)| {
            for (i, value) in chunk.iter_mut().enumerate() {
                let u = self.uniform((piece * PIECE + i) as u64);
                *value = ((2.0 * u - 1.0) * f64::from(bound)) as f32;
            }
        });
        out
    }

    /// `len` factors of inverted dropout: 0 with probability `p`, else `1 / (1 - p)`.
    pub fn dropout_mask(&self, len: usize, p: f32) -> Vec<f32> {
        let keep = 1.0 / (1.0 - p);
        let mut out = vec![0.0; len];
        out.par_chunks_mut(PIECE).enumerate().for_each(|(piece, chunk)| {
            for (i, value) in chunk.iter_mut().enumerate() {
                let dropped = self.uniform((piece * PIECE + i) as u64) < f64::from(p);
                *value = if dropped { 0.0 } else { keep };
            }
        });
        out
    }

    fn normal_pair(&self, pair: u64) -> [f64; 2] {
        let radius = (-2.0 * (1.0 - self.uniform(2 * pair)).ln()).sqrt();
        let angle = 2.0 * std::f64::consts::PI * self.uniform(2 * pair + 1);
        [radius * angle.cos(), radius * angle.sin()]
    }
}

fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(values: &[f32]) -> (f64, f64) {
        let n = values.len() as f64;
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
        let variance = values.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / n;
        (mean, variance.sqrt())
    }

    #[test]
    fn normals_have_the_asked_moments() {
        let (mean, std) = moments(&Stream::new(3, "w").normals(200_000, 0.02));
        assert!(mean.abs() < 2e-4 && (std - 0.02).abs() < 2e-4, "mean {mean}, std {std}");
    }

    #[test]
    fn uniforms_stay_inside_their_bound() {
        let values = Stream::new(3, "w").uniforms(200_000, 0.5);
        let (mean, std) = moments(&values);
        assert!(values.iter().all(|v| v.abs() <= 0.5));
        assert!(mean.abs() < 3e-3 && (std - 0.5 / 3f64.sqrt()).abs() < 3e-3, "mean {mean}, std {std}");
    }

    #[test]
    fn dropout_masks_keep_the_mean() {
        let mask = Stream::new(9, "x").dropout_mask(100_000, 0.25);
        let dropped = mask.iter().filter(|v| **v == 0.0).count() as f64 / 100_000.0;
        let (mean, _) = moments(&mask);
        assert!((dropped - 0.25).abs() < 0.01 && (mean - 1.0).abs() < 0.01, "dropped {dropped}, mean {mean}");
    }

    #[test]
    fn seed_and_name_both_change_the_stream() {
        let first = Stream::new(1, "a").normals(8, 1.0);
        assert_eq!(first, Stream::new(1, "a").normals(8, 1.0));
        assert_ne!(first, Stream::new(2, "a").normals(8, 1.0));
        assert_ne!(first, Stream::new(1, "b").normals(8, 1.0));
    }

    #[test]
    fn values_do_not_depend_on_the_number_of_threads() {
        let make = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| Stream::new(5, "w").normals(3 * PIECE + 7, 1.0))
        };
        assert_eq!(make(1), make(7));
    }
}
