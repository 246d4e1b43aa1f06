//! Rotary position embedding: inverse frequencies of the four published variants, and their cosine and sine tables.
//!
//! # Numerics
//! Frequencies and angles are f32, in the order of operations of transformers, because a frequency that differs in its
//! last bit turns into a visible angle at position 100,000. Powers, cosines and sines are computed in f64 and rounded
//! once. All tables are made on the host.
//!
//! # Source
//! RoFormer (Su et al. 2021) for the rotation; position interpolation (Chen et al. 2023) for `linear`; YaRN (Peng et al.
//! 2023, sections 3.2 to 3.4) for `yarn`; the Llama 3.1 model card for `llama3`.

/// How positions turn into angles.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the geometric series of wavelengths.
    pub theta: f64,
    /// What was done to reach a longer context.
    pub scaling: RopeScaling,
}

/// The published ways to stretch rotary embeddings.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Plain rotary embedding.
    Default,
    /// All frequencies divided by `factor`.
    Linear {
        /// How much longer the context became.
        factor: f64,
    },
    /// Llama 3.1: long wavelengths divided, short ones kept, a linear blend between.
    Llama3 {
        /// How much longer the context became.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context before stretching.
        original_max_position: usize,
    },
    /// YaRN: a ramp over dimensions between interpolation and extrapolation, and a sharper attention.
    Yarn(Yarn),
}

/// Parameters of YaRN.
#[derive(Clone, Debug, PartialEq)]
pub struct Yarn {
    /// How much longer the context became.
    pub factor: f64,
    /// Context before stretching.
    pub original_max_position: usize,
    /// Factor on cosine and sine; derived from `factor` where absent.
    pub attention_factor: Option<f64>,
    /// Numerator of the derived attention factor, together with `mscale_all_dim`.
    pub mscale: Option<f64>,
    /// Denominator of the derived attention factor.
    pub mscale_all_dim: Option<f64>,
    /// Rotations over the original context above which a dimension is kept.
    pub beta_fast: f64,
    /// Rotations over the original context below which a dimension is divided.
    pub beta_slow: f64,
    /// Whether the ramp's ends are rounded outwards to whole dimensions.
    pub truncate: bool,
}

impl Rope {
    /// Plain rotary embedding with base `theta`.
    pub fn plain(theta: f64) -> Self {
        Rope { theta, scaling: RopeScaling::Default }
    }

    /// Inverse frequencies of the `d_head / 2` rotated pairs.
    pub fn inv_freq(&self, d_head: usize) -> Vec<f32> {
        let wavelength_base = self.pair_powers(d_head);
        match &self.scaling {
            RopeScaling::Default => wavelength_base.iter().map(|p| 1.0 / p).collect(),
            RopeScaling::Linear { factor } => wavelength_base.iter().map(|p| (1.0 / p) / *factor as f32).collect(),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position } => {
                let band = (*low_freq_factor, *high_freq_factor);
                let one = |p: &f32| llama3_frequency(1.0 / p, *factor, band, *original_max_position as f64);
                wavelength_base.iter().map(one).collect()
            }
            RopeScaling::Yarn(yarn) => yarn.inv_freq(&wavelength_base, self.theta),
        }
    }

    /// Factor on every cosine and sine: 1 except for YaRN.
    pub fn attention_factor(&self) -> f32 {
        match &self.scaling {
            RopeScaling::Yarn(yarn) => yarn.attention_factor() as f32,
            _ => 1.0,
        }
    }

    /// Cosines and sines of `positions`, each `[positions.len(), d_head / 2]` row by row.
    pub fn table(&self, d_head: usize, positions: &[i32]) -> (Vec<f32>, Vec<f32>) {
        let inv_freq = self.inv_freq(d_head);
        let factor = self.attention_factor();
        let n = positions.len() * inv_freq.len();
        let (mut cos, mut sin) = (Vec::with_capacity(n), Vec::with_capacity(n));
        for position in positions {
            for frequency in &inv_freq {
                let angle = f64::from(*position as f32 * frequency);
                cos.push(angle.cos() as f32 * factor);
                sin.push(angle.sin() as f32 * factor);
            }
        }
        (cos, sin)
    }

    /// `theta^(2i / d_head)` for every pair `i`, the exponent rounded to f32 first.
    fn pair_powers(&self, d_head: usize) -> Vec<f32> {
        let power = |i: usize| self.theta.powf(f64::from((2 * i) as f32 / d_head as f32)) as f32;
        (0..d_head / 2).map(power).collect()
    }
}

/// One frequency of the `llama3` variant; `band` is (low, high) frequency factor.
fn llama3_frequency(frequency: f32, factor: f64, band: (f64, f64), original: f64) -> f32 {
    let (low, high) = band;
    let wavelength = (2.0 * std::f64::consts::PI) as f32 / frequency;
    if wavelength > (original / low) as f32 {
        return frequency / factor as f32;
    }
    if wavelength < (original / high) as f32 {
        return frequency;
    }
    let smooth = (original as f32 / wavelength - low as f32) / (high - low) as f32;
    (1.0 - smooth) * frequency / factor as f32 + smooth * frequency
}

impl Yarn {
    /// Factor on cosine and sine, which sharpens attention by its square.
    fn attention_factor(&self) -> f64 {
        let magnitude = |scale: f64| if self.factor <= 1.0 { 1.0 } else { 0.1 * scale * self.factor.ln() + 1.0 };
        match (self.attention_factor, self.mscale, self.mscale_all_dim) {
            (Some(given), _, _) => given,
            (None, Some(over), Some(under)) if over != 0.0 && under != 0.0 => magnitude(over) / magnitude(under),
            _ => magnitude(1.0),
        }
    }

    /// The dimension whose pair turns `rotations` times over the original context.
    fn correction_dim(&self, rotations: f64, d_head: usize, theta: f64) -> f64 {
        let ratio = self.original_max_position as f64 / (rotations * 2.0 * std::f64::consts::PI);
        (d_head as f64 * ratio.ln()) / (2.0 * theta.ln())
    }

    /// First and last pair of the ramp between keeping and dividing.
    fn correction_range(&self, d_head: usize, theta: f64) -> (f64, f64) {
        let mut low = self.correction_dim(self.beta_fast, d_head, theta);
        let mut high = self.correction_dim(self.beta_slow, d_head, theta);
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low.max(0.0), high.min((d_head - 1) as f64))
    }

    fn inv_freq(&self, wavelength_base: &[f32], theta: f64) -> Vec<f32> {
        let (low, mut high) = self.correction_range(2 * wavelength_base.len(), theta);
        if low == high {
            high += 0.001; // keeps the ramp's slope finite
        }
        let one = |(i, power): (usize, &f32)| {
            let ramp = ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
            let keep = 1.0 - ramp;
            let divided = 1.0 / (self.factor as f32 * power);
            divided * (1.0 - keep) + (1.0 / power) * keep
        };
        wavelength_base.iter().enumerate().map(one).collect()
    }
}

#[cfg(test)]
mod tests;
