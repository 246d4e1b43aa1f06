//! Merging an adapter into the weights, and the proof that nothing changed by it.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, FloatDType, Tensor};
use kernels_cubecl::{LmBackend, linear_f32};

use crate::decoder::Decoder;
use crate::error::ModelError;
use crate::layers::{ExpertLora, ExpertWeight, Linear, Lora, Segment};
use crate::rows::{PADDING, Rows};

/// Hidden rows that become logits at once.
const LOGIT_ROWS: usize = 256;

/// How far a merged model may be from the model with its adapter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MergeBounds {
    /// Largest absolute difference of a logit.
    pub max_abs_logit: f64,
    /// Largest mean KL divergence, in nats.
    pub mean_kl: f64,
    /// Smallest share of positions with the same most likely token.
    pub top1_agreement: f64,
}

impl MergeBounds {
    /// For weights merged and kept in f32.
    pub const F32: Self = Self { max_abs_logit: 1e-3, mean_kl: 1e-6, top1_agreement: 0.999 };
    /// For weights merged and kept in bf16, where every sum is rounded to 8 bits, so that the largest of millions of
    /// differences says little: the divergence decides. It is wide enough for rounding, too narrow for a wrong factor or a
    /// missing update.
    pub const BF16: Self = Self { max_abs_logit: 2.0, mean_kl: 2e-3, top1_agreement: 0.9 };

    /// For experts that were rounded to MXFP4 again: the divergence alone, which the caller says how much of to bear.
    pub fn packed(mean_kl: f64) -> Self {
        Self { max_abs_logit: f64::MAX, mean_kl, top1_agreement: 0.0 }
    }
}

/// What the comparison of a merged model with the model with its adapter found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MergeReport {
    /// Positions compared.
    pub n_tokens: usize,
    /// Largest absolute difference of a logit.
    pub max_abs_logit: f64,
    /// Mean KL divergence of the merged model from the adapted one, in nats.
    pub mean_kl: f64,
    /// Share of positions with the same most likely token.
    pub top1_agreement: f64,
}

impl<B: LmBackend> Decoder<B> {
    /// Adds every update to its weight and takes the adapter off; returns how many updates there were. Packed experts become
    /// weights in the backend's float type.
    ///
    /// # Errors
    /// When no adapter is attached.
    ///
    /// # Numerics
    /// `W + scale · B · A` in f32, rounded once to the type of the weights; dropout has no part in it.
    pub fn merge(&mut self) -> Result<usize, ModelError> {
        let n_merged = self.loras().len();
        if n_merged == 0 {
            return Err(ModelError::NoAdapter { action: "merging the adapter" });
        }
        for (_, linear) in self.linears_mut() {
            if linear.has_adapter() {
                let dtype: FloatDType = linear.weight.dtype().into();
                linear.weight = (linear.weight.clone().cast(FloatDType::F32) + update(linear)).cast(dtype);
                linear.adapters.iter_mut().for_each(|slot| *slot = None);
            }
        }
        for (_, moe) in self.mixtures_mut() {
            let n = moe.experts.n;
            for layer in [&mut moe.gate_up, &mut moe.down] {
                if let Some(lora) = layer.adapter.take() {
                    layer.weight = ExpertWeight::Dense(merged_experts(&layer.weight, &lora, n));
                }
            }
        }
        Ok(n_merged)
    }
}

/// The update of all rows in f32, zero where a segment has no adapter.
///
/// Through the layer's own product, because burn's may round f32 operands on the matrix units.
fn update<B: LmBackend>(layer: &Linear<B>) -> Tensor<B, 2> {
    let [_, columns] = layer.weight.dims();
    let part = |(segment, slot): (&Segment, &Option<Lora<B>>)| match slot {
        Some(lora) => linear_f32(lora.b.clone(), lora.a.clone().transpose()) * lora.scale,
        None => Tensor::zeros([segment.rows, columns], (&layer.weight.device(), DType::F32)),
    };
    Tensor::cat(std::iter::zip(&layer.segments, &layer.adapters).map(part).collect(), 0)
}

/// The weights of all experts with their updates, one expert at a time, so that only one is in f32.
fn merged_experts<B: LmBackend>(weight: &ExpertWeight<B>, lora: &ExpertLora<B>, n: usize) -> Tensor<B, 2> {
    let [rows, r] = [lora.b.dims()[0] / n, lora.a.dims()[0] / n];
    let one = |expert: usize| {
        let base = match weight {
            ExpertWeight::Dense(weight) => weight.clone().narrow(0, expert * rows, rows),
            ExpertWeight::Packed(weight) => weight.rows(expert * rows, rows).decode(),
        };
        let (a, b) = (lora.a.clone().narrow(0, expert * r, r), lora.b.clone().narrow(0, expert * rows, rows));
        let dtype: FloatDType = base.dtype().into();
        (base.cast(FloatDType::F32) + linear_f32(b, a.transpose()) * lora.scale).cast(dtype)
    };
    Tensor::cat((0..n).map(one).collect(), 0)
}

/// Compares the model with its adapter and the merged model on held-out rows.
///
/// # Errors
/// [`ModelError::MergeDrift`] with the first measure that is out of bounds, a NaN included; [`ModelError::NoAdapter`]
/// when `adapted` has none, since the comparison would then prove nothing; [`ModelError::Rows`] when there is no token
/// to compare.
///
/// # Numerics
/// Logits in f32, everything after in f64.
pub fn merge_check<B: LmBackend>(
    adapted: &Decoder<B>,
    merged: &Decoder<B>,
    rows: &[Rows],
    bounds: &MergeBounds,
) -> Result<MergeReport, ModelError> {
    if !adapted.has_adapter() {
        return Err(ModelError::NoAdapter { action: "comparing the merged model with the adapter" });
    }
    merged.refuse_adapter("merged model")?;
    let mut sums = Sums::default();
    for rows in rows {
        rows.check_vocab(&adapted.config)?;
        if rows.segments.iter().all(|segment| *segment == PADDING) {
            continue;
        }
        let (a, b) = (real_hidden(adapted, rows), real_hidden(merged, rows));
        let n_rows = a.dims()[0];
        for from in (0..n_rows).step_by(LOGIT_ROWS) {
            let part = from..(from + LOGIT_ROWS).min(n_rows);
            let logits = |hidden: &Tensor<B, 2>, model: &Decoder<B>| {
                host(linear_f32(hidden.clone().slice(part.clone()), model.head()))
            };
            sums.add(&logits(&a, adapted), &logits(&b, merged), adapted.config.vocab_size);
        }
    }
    let report = sums.report()?;
    report.check(bounds)?;
    Ok(report)
}

/// Hidden states of the tokens that are no padding, `[m, d]`.
fn real_hidden<B: LmBackend>(model: &Decoder<B>, rows: &Rows) -> Tensor<B, 2> {
    let device = model.embedding.device();
    let hidden_btd = model.hidden(&rows.to_input(&model.config, &device), false);
    let [b, t, d] = hidden_btd.dims();
    let real = rows.segments.iter().enumerate().filter(|(_, segment)| **segment != PADDING);
    let index: Vec<i32> = real.map(|(at, _)| at as i32).collect();
    hidden_btd.reshape([b * t, d]).select(0, Tensor::from_ints(index.as_slice(), &device))
}

fn host<B: Backend>(logits: Tensor<B, 2>) -> Vec<f32> {
    logits.into_data().convert::<f32>().into_vec().expect("data converted to f32 is f32")
}

#[derive(Default)]
struct Sums {
    n_tokens: usize,
    max_abs: f64,
    kl: f64,
    n_agreeing: usize,
}

impl Sums {
    fn add(&mut self, adapted: &[f32], merged: &[f32], vocab_size: usize) {
        for (a, b) in std::iter::zip(adapted.chunks(vocab_size), merged.chunks(vocab_size)) {
            let (log_a, log_b) = (log_softmax(a), log_softmax(b));
            for at in 0..vocab_size {
                let difference = (f64::from(a[at]) - f64::from(b[at])).abs();
                // `max` would forget a NaN.
                self.max_abs = if difference > self.max_abs || difference.is_nan() { difference } else { self.max_abs };
                self.kl += log_a[at].exp() * (log_a[at] - log_b[at]);
            }
            self.n_tokens += 1;
            self.n_agreeing += usize::from(argmax(a) == argmax(b));
        }
    }

    fn report(self) -> Result<MergeReport, ModelError> {
        if self.n_tokens == 0 {
            let (expected, got) = ("held-out rows with tokens".to_owned(), "none".to_owned());
            return Err(ModelError::Rows { what: "merge check", expected, got });
        }
        let n = self.n_tokens as f64;
        Ok(MergeReport {
            n_tokens: self.n_tokens,
            max_abs_logit: self.max_abs,
            mean_kl: self.kl / n,
            top1_agreement: self.n_agreeing as f64 / n,
        })
    }
}

impl MergeReport {
    #[expect(clippy::neg_cmp_op_on_partial_ord, reason = "a NaN must be out of bounds")]
    fn check(&self, bounds: &MergeBounds) -> Result<(), ModelError> {
        let drift =
            |measure, expected, got| Err(ModelError::MergeDrift { measure, expected, got, n_tokens: self.n_tokens });
        if !(self.max_abs_logit <= bounds.max_abs_logit) {
            return drift(
                "largest logit difference",
                format!("at most {:e}", bounds.max_abs_logit),
                self.max_abs_logit,
            );
        }
        if !(self.mean_kl <= bounds.mean_kl) {
            return drift("mean KL divergence", format!("at most {:e}", bounds.mean_kl), self.mean_kl);
        }
        if !(self.top1_agreement >= bounds.top1_agreement) {
            return drift("top-1 agreement", format!("at least {}", bounds.top1_agreement), self.top1_agreement);
        }
        Ok(())
    }
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let peak = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|l| (f64::from(*l) - peak).exp()).sum();
    let lse = peak + sum.ln();
    logits.iter().map(|l| f64::from(*l) - lse).collect()
}

fn argmax(logits: &[f32]) -> Option<usize> {
    (0..logits.len()).reduce(|best, at| if logits[at] > logits[best] { at } else { best })
}
