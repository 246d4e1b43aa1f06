//! Text generation: batches of prompts in, continuations out.

use burn::tensor::{Tensor, TensorData};
use kernels_cubecl::LmBackend;
use rayon::prelude::*;

use crate::decoder::Decoder;
use crate::error::ModelError;
use crate::kv_cache::KvCache;

mod sample;

pub use sample::Sampling;

/// Sequences decoded together; more prompts are taken in turns, which changes no result.
pub const ROWS_PER_BATCH: usize = 64;

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The model chose this stop token, which is not among the ids.
    Stop(u32),
    /// `max_new_tokens` were made.
    Length,
    /// The model's context is full.
    Context,
}

/// One continuation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Continuation {
    /// The new tokens, without the prompt and without the stop token.
    pub ids: Vec<u32>,
    /// Why there are no more.
    pub finish: Finish,
}

/// What the model thought of a token that was chosen, whatever temperature and limits it was chosen under.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    /// Its log-probability.
    pub logprob: f32,
    /// Entropy of the choice, in nats.
    pub entropy: f32,
}

/// One continuation with what the model thought of each choice.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// The continuation.
    pub continuation: Continuation,
    /// One for each new token, and one for the stop token where there is one.
    pub scores: Vec<Score>,
}

/// One chosen token, for those who watch.
#[derive(Debug)]
pub struct Step<'a> {
    /// Number of the sequence.
    pub sequence: u64,
    /// Position that the token takes in its sequence.
    pub position: usize,
    /// The logits it was chosen from.
    pub logits: &'a [f32],
    /// The token.
    pub token: u32,
    /// What the model thought of it, where that was asked for.
    pub score: Option<Score>,
}

/// Continues every prompt; the result for a prompt is what it would be alone, prompts count as sequences 0, 1, 2, ….
///
/// # Errors
/// As [`generate_watched`].
///
/// # Numerics
/// "Alone" holds for the choices as long as the backend's products of one row and of many rows round alike, or no two
/// tokens are closer than that rounding.
pub fn generate<B: LmBackend>(
    model: &Decoder<B>,
    prompts: &[Vec<u32>],
    sampling: &Sampling,
) -> Result<Vec<Vec<u32>>, ModelError> {
    let numbered: Vec<(u64, &[u32])> = (0..).zip(prompts.iter().map(Vec::as_slice)).collect();
    let made = generate_watched(model, &numbered, sampling, &mut |_| ())?;
    Ok(made.into_iter().map(|continuation| continuation.ids).collect())
}

/// Continues numbered prompts and shows every step; a sampled choice is a function of (seed, number, position).
///
/// # Errors
/// When the sampling settings are out of range, a prompt is empty, leaves no room in the model's context or has an id
/// without embedding, or the logits are not finite.
pub fn generate_watched<B: LmBackend>(
    model: &Decoder<B>,
    prompts: &[(u64, &[u32])],
    sampling: &Sampling,
    watch: &mut dyn FnMut(Step<'_>),
) -> Result<Vec<Continuation>, ModelError> {
    let limits = Limits { context: model.config.max_seq_len, scored: false };
    generate_within(model, prompts, sampling, limits, watch)
}

/// As [`generate_watched`], with the model's log-probability of every choice, for sequences of at most `max_len` tokens, the
/// prompt included, or of the model's context where that is shorter.
///
/// # Errors
/// As [`generate_watched`].
///
/// # Numerics
/// Log-probabilities in f64 over the logits, kept in f32: those of the decoding with a cache, whose products are rounded in
/// another order than those of a forward pass over whole rows.
pub fn generate_scored<B: LmBackend>(
    model: &Decoder<B>,
    prompts: &[(u64, &[u32])],
    sampling: &Sampling,
    max_len: usize,
) -> Result<Vec<Scored>, ModelError> {
    let places: std::collections::HashMap<u64, usize> =
        prompts.iter().enumerate().map(|(place, (sequence, _))| (*sequence, place)).collect();
    assert_eq!(places.len(), prompts.len(), "every prompt has a number of its own");
    let mut scores = vec![Vec::new(); prompts.len()];
    let limits = Limits { context: max_len.min(model.config.max_seq_len), scored: true };
    let watch = &mut |step: Step<'_>| scores[places[&step.sequence]].extend(step.score);
    let made = generate_within(model, prompts, sampling, limits, watch)?;
    Ok(made.into_iter().zip(scores).map(|(continuation, scores)| Scored { continuation, scores }).collect())
}

/// How far sequences may grow, and whether choices are scored.
#[derive(Clone, Copy)]
struct Limits {
    context: usize,
    scored: bool,
}

fn generate_within<B: LmBackend>(
    model: &Decoder<B>,
    prompts: &[(u64, &[u32])],
    sampling: &Sampling,
    limits: Limits,
    watch: &mut dyn FnMut(Step<'_>),
) -> Result<Vec<Continuation>, ModelError> {
    sampling.check()?;
    prompts.iter().try_for_each(|(sequence, prompt)| check_prompt(model, *sequence, prompt, limits.context))?;
    let mut done = Vec::with_capacity(prompts.len());
    for batch in prompts.chunks(ROWS_PER_BATCH) {
        done.extend(continue_batch(model, batch, sampling, limits, watch)?);
    }
    Ok(done)
}

fn check_prompt<B: LmBackend>(
    model: &Decoder<B>,
    sequence: u64,
    prompt: &[u32],
    context: usize,
) -> Result<(), ModelError> {
    let max = context.saturating_sub(1);
    if prompt.is_empty() || prompt.len() > max {
        return Err(ModelError::PromptLength { sequence, max, got: prompt.len() });
    }
    let vocab_size = model.config.vocab_size;
    match prompt.iter().position(|id| *id as usize >= vocab_size) {
        None => Ok(()),
        Some(position) => {
            let (row, id) = (sequence as usize, i64::from(prompt[position]));
            Err(ModelError::TokenOutOfRange { row, position, id, vocab_size })
        }
    }
}

/// A sequence that is still growing.
struct Running<'a> {
    index: usize,
    sequence: u64,
    prompt: &'a [u32],
    /// The token chosen last, `None` before the first.
    last: Option<u32>,
    n_tokens: usize,
}

impl Running<'_> {
    /// The tokens that the cache has not seen.
    fn unseen(&self) -> &[u32] {
        self.last.as_ref().map_or(self.prompt, std::slice::from_ref)
    }
}

fn continue_batch<B: LmBackend>(
    model: &Decoder<B>,
    prompts: &[(u64, &[u32])],
    sampling: &Sampling,
    limits: Limits,
    watch: &mut dyn FnMut(Step<'_>),
) -> Result<Vec<Continuation>, ModelError> {
    let mut made = vec![Continuation { ids: Vec::new(), finish: Finish::Length }; prompts.len()];
    if sampling.max_new_tokens == 0 {
        return Ok(made);
    }
    let mut running = Vec::with_capacity(prompts.len());
    for (index, &(sequence, prompt)) in prompts.iter().enumerate() {
        running.push(Running { index, sequence, prompt, last: None, n_tokens: prompt.len() });
    }
    let longest = running.iter().map(|sequence| sequence.n_tokens).max().unwrap_or(0);
    let capacity = longest.saturating_add(sampling.max_new_tokens).min(limits.context);
    let mut cache = KvCache::new(&model.config, prompts.len(), capacity, &model.embedding.device());
    while !running.is_empty() {
        let unseen: Vec<&[u32]> = running.iter().map(Running::unseen).collect();
        let data = host(model.forward_cached(&mut cache, &unseen));
        let logits = data.as_slice::<f32>().expect("logits are f32");
        let rows = logits.par_chunks(model.config.vocab_size);
        let choose = |(sequence, row): (&Running<'_>, &[f32])| {
            let token = sampling.choose(row, sequence.sequence, sequence.n_tokens)?;
            Ok((token, limits.scored.then(|| score(row, token))))
        };
        let chosen: Vec<Result<(u32, Option<Score>), ModelError>> = running.par_iter().zip(rows).map(choose).collect();
        let (mut kept, mut going) = (Vec::new(), Vec::new());
        let rows = logits.chunks(model.config.vocab_size).zip(chosen);
        for (row, (mut sequence, (logits, choice))) in running.into_iter().zip(rows).enumerate() {
            let (number, position, (token, score)) = (sequence.sequence, sequence.n_tokens, choice?);
            watch(Step { sequence: number, position, logits, token, score });
            let continuation = &mut made[sequence.index];
            match advance(&mut sequence, token, continuation, sampling, limits.context) {
                Some(finish) => continuation.finish = finish,
                None => {
                    kept.push(row);
                    going.push(sequence);
                }
            }
        }
        running = going;
        if !running.is_empty() {
            cache.keep_rows(&kept);
        }
    }
    Ok(made)
}

/// What the logits say of a token.
fn score(logits: &[f32], token: u32) -> Score {
    let peak = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let (mut sum, mut weighted) = (0.0, 0.0);
    for &logit in logits.iter().filter(|logit| **logit > f32::NEG_INFINITY) {
        let below = f64::from(logit) - peak;
        let weight = below.exp();
        sum += weight;
        weighted += weight * below;
    }
    let logprob = f64::from(logits[token as usize]) - peak - sum.ln();
    Score { logprob: logprob as f32, entropy: (sum.ln() - weighted / sum) as f32 }
}

/// Takes the token in; returns why the sequence ends, if it does.
fn advance(
    sequence: &mut Running<'_>,
    token: u32,
    made: &mut Continuation,
    sampling: &Sampling,
    context: usize,
) -> Option<Finish> {
    if sampling.stop_ids.contains(&token) {
        return Some(Finish::Stop(token));
    }
    made.ids.push(token);
    sequence.last = Some(token);
    sequence.n_tokens += 1;
    if made.ids.len() == sampling.max_new_tokens {
        Some(Finish::Length)
    } else if sequence.n_tokens == context {
        Some(Finish::Context)
    } else {
        None
    }
}

/// The values, row after row, where the device put them: a copy into a vector takes as long as the choice itself.
fn host<B: LmBackend, const D: usize>(logits: Tensor<B, D>) -> TensorData {
    logits.into_data().convert::<f32>()
}

#[cfg(test)]
mod tests;
