//! The reference's continuation, batches against single sequences, stops, and refused prompts.

use std::path::{Path, PathBuf};

use kernels_cubecl::Cpu;

use super::*;
use crate::config::ModelConfig;
use crate::hf::TensorFile;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn tiny(max_seq_len: usize) -> Decoder<Cpu> {
    let config = ModelConfig { max_seq_len, init_std: 0.4, ..ModelConfig::from_depth(2, 60) };
    Decoder::init(&config, 5, &Default::default())
}

fn sampled() -> Sampling {
    Sampling { temperature: 1.3, top_k: 40, top_p: 0.95, seed: 9, ..Sampling::greedy(12) }
}

fn values<B: LmBackend, const D: usize>(logits: Tensor<B, D>) -> Vec<f32> {
    host(logits).into_vec().expect("logits are f32")
}

/// Equal up to the rounding of products with other numbers of rows.
fn same_logits(got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len());
    let scale = want.iter().fold(0.0f32, |scale, w| scale.max(w.abs()));
    let worst = std::iter::zip(got, want).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max);
    assert!(worst <= 1e-5 * scale && got.iter().all(|g| g.is_finite()), "differ by {worst}, largest {scale}");
}

/// A prompt of that length.
fn prompt(n: u32) -> Vec<u32> {
    (0..n).map(|i| (i * 7 + n) % 60).collect()
}

#[test]
fn the_references_sequences_and_logits_come_out() {
    for name in ["llama", "llama_tied", "gptoss"] {
        let model = Decoder::<Cpu>::load(&fixture(name), &Default::default()).unwrap();
        let file = TensorFile::open(&fixture(name).join("generate.safetensors")).unwrap();
        let ids = |name| file.read_i64(name).unwrap().into_iter().map(|id| id as u32).collect::<Vec<_>>();
        let (prompt, whole) = (ids("in.input_ids"), ids("out.sequences"));
        let want = file.read_f32("out.step_logits").unwrap();
        let mut got = Vec::new();
        let sampling = Sampling::greedy(whole.len() - prompt.len());
        let watch = &mut |step: Step<'_>| got.extend_from_slice(step.logits);
        let made = generate_watched(&model, &[(0, &prompt)], &sampling, watch).unwrap();
        assert_eq!(made, [Continuation { ids: whole[prompt.len()..].to_vec(), finish: Finish::Length }], "{name}");
        assert_eq!(got.len(), want.len());
        let worst = std::iter::zip(&got, &want).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max);
        assert!(worst <= 2e-5 && got.iter().all(|g| g.is_finite()), "{name}: largest logit difference {worst}");
    }
}

#[test]
fn a_cached_step_equals_whole_rows() {
    let model = tiny(64);
    let ids = prompt(9);
    let rows = crate::rows::Rows::from_segments(1, 9, ids.iter().map(|id| *id as i32).collect(), vec![0; 9]).unwrap();
    let hidden = model.hidden(&rows.to_input(&model.config, &Default::default()), false);
    let whole = values(kernels_cubecl::linear(hidden, model.head()));
    let mut cache = KvCache::new(&model.config, 1, 9, &Default::default());
    let mut from = 0;
    for upto in [4, 5, 9] {
        let logits = values(model.forward_cached(&mut cache, &[&ids[from..upto]]));
        same_logits(&logits, &whole[(upto - 1) * 60..upto * 60]);
        from = upto;
    }
    assert_eq!(cache.lengths(), [9]);
}

#[test]
fn rows_of_unequal_length_take_several_tokens_each() {
    let model = tiny(64);
    let (long, short) = (prompt(11), prompt(7));
    let mut cache = KvCache::new(&model.config, 2, 11, &Default::default());
    // Unequal prompts, then unequal pieces behind them, then a step of one token each.
    for (a, b) in [(0..6, 0..2), (6..8, 2..6), (8..9, 6..7)] {
        let logits = values(model.forward_cached(&mut cache, &[&long[a.clone()], &short[b.clone()]]));
        for (row, ids) in [(0, &long[..a.end]), (1, &short[..b.end])] {
            let mut alone = KvCache::new(&model.config, 1, 11, &Default::default());
            let want = values(model.forward_cached(&mut alone, &[ids]));
            same_logits(&logits[row * 60..(row + 1) * 60], &want);
        }
    }
    assert_eq!(cache.lengths(), [9, 7]);
}

#[test]
fn a_batch_gives_what_single_sequences_give() {
    let model = tiny(40);
    let prompts: Vec<Vec<u32>> = [3, 17, 1, 30, 9].map(prompt).into();
    for sampling in [Sampling::greedy(12), sampled(), Sampling { stop_ids: (0..20).collect(), ..sampled() }] {
        let numbered: Vec<(u64, &[u32])> = (0..).zip(prompts.iter().map(Vec::as_slice)).collect();
        let mut batch_logits = vec![Vec::new(); prompts.len()];
        let watch = &mut |step: Step<'_>| batch_logits[step.sequence as usize].extend_from_slice(step.logits);
        let batch = generate_watched(&model, &numbered, &sampling, watch).unwrap();
        for (sequence, prompt) in &numbered {
            let mut logits = Vec::new();
            let watch = &mut |step: Step<'_>| logits.extend_from_slice(step.logits);
            let single = generate_watched(&model, &[(*sequence, prompt)], &sampling, watch).unwrap();
            assert_eq!(single[0], batch[*sequence as usize], "sequence {sequence}");
            same_logits(&logits, &batch_logits[*sequence as usize]);
        }
        assert_eq!(generate(&model, &prompts, &sampling).unwrap().len(), prompts.len());
        let lengths: std::collections::HashSet<_> = batch.iter().map(|made| made.ids.len()).collect();
        assert!(lengths.len() > 1, "some sequences must end earlier, so that rows leave the cache: {batch:?}");
    }
}

#[test]
fn many_prompts_are_taken_in_turns() {
    let model = tiny(16);
    let prompts: Vec<Vec<u32>> = (0..ROWS_PER_BATCH as u32 + 3).map(|n| prompt(1 + n % 4)).collect();
    let sampling = Sampling { max_new_tokens: 2, ..sampled() };
    let made = generate(&model, &prompts, &sampling).unwrap();
    let last = prompts.len() - 1;
    let alone = generate_watched(&model, &[(last as u64, &prompts[last])], &sampling, &mut |_| ()).unwrap();
    assert_eq!(made[last], alone[0].ids);
    assert_eq!(made.len(), prompts.len());
}

#[test]
fn sequences_end_for_their_reasons() {
    let model = tiny(16);
    let prompt = prompt(10);
    let run = |sampling: &Sampling| generate_watched(&model, &[(0, &prompt)], sampling, &mut |_| ()).unwrap().remove(0);
    let free = run(&Sampling::greedy(100));
    assert_eq!((free.ids.len(), free.finish), (6, Finish::Context));
    assert_eq!(run(&Sampling::greedy(4)), Continuation { ids: free.ids[..4].to_vec(), finish: Finish::Length });
    assert_eq!(run(&Sampling::greedy(0)), Continuation { ids: vec![], finish: Finish::Length });
    let stop = free.ids[2];
    let at = free.ids.iter().position(|id| *id == stop).unwrap();
    let stopped = run(&Sampling { stop_ids: vec![stop], ..Sampling::greedy(100) });
    assert_eq!(stopped, Continuation { ids: free.ids[..at].to_vec(), finish: Finish::Stop(stop) });
}

#[test]
fn bad_requests_are_typed_errors() {
    let model = tiny(16);
    let run = |prompt: Vec<u32>, sampling: &Sampling| generate(&model, &[vec![1], prompt], sampling).unwrap_err();
    let greedy = Sampling::greedy(4);
    assert!(matches!(run(vec![], &greedy), ModelError::PromptLength { sequence: 1, max: 15, got: 0 }));
    assert!(matches!(run(prompt(16), &greedy), ModelError::PromptLength { sequence: 1, max: 15, got: 16 }));
    let outside = run(vec![3, 60], &greedy);
    assert!(
        matches!(outside, ModelError::TokenOutOfRange { row: 1, position: 1, id: 60, vocab_size: 60 }),
        "{outside}"
    );
    let hot = run(vec![3], &Sampling { temperature: f32::NAN, ..greedy.clone() });
    assert!(matches!(hot, ModelError::BadSampling { key: "temperature", .. }), "{hot}");
    let mut broken = model.clone();
    broken.final_norm.gamma = broken.final_norm.gamma.clone() * f32::NAN;
    let error = generate(&broken, &[vec![1, 2]], &greedy).unwrap_err();
    assert!(matches!(error, ModelError::NonFiniteLogits { sequence: 0, position: 2 }), "{error}");
    assert!(generate(&model, &[], &greedy).unwrap().is_empty());
}

#[test]
fn choices_are_scored_under_the_model_itself_and_end_at_the_given_length() {
    let model = tiny(64);
    let prompts: Vec<(u64, Vec<u32>)> = [(70, 3), (7, 5), (900, 9)].map(|(number, n)| (number, prompt(n))).into();
    let numbered: Vec<(u64, &[u32])> = prompts.iter().map(|(number, ids)| (*number, ids.as_slice())).collect();
    let mut logits: std::collections::HashMap<u64, Vec<(Vec<f32>, u32)>> = Default::default();
    let watch = &mut |step: Step<'_>| logits.entry(step.sequence).or_default().push((step.logits.into(), step.token));
    let sampling = Sampling { max_new_tokens: 40, stop_ids: vec![11, 12, 13], ..sampled() };
    let plain = generate_watched(&model, &numbered, &sampling, watch).unwrap();
    let scored = generate_scored(&model, &numbered, &sampling, 1000).unwrap();
    for ((number, _), (plain, scored)) in prompts.iter().zip(plain.iter().zip(&scored)) {
        assert_eq!(*plain, scored.continuation);
        let stop = usize::from(matches!(plain.finish, Finish::Stop(_)));
        assert_eq!(scored.scores.len(), plain.ids.len() + stop);
        for (score, (row, token)) in scored.scores.iter().zip(&logits[number]) {
            // Temperature, top_k and top_p decide the choice, not what the model thought of it.
            let exps: Vec<f64> = row.iter().map(|l| f64::from(*l).exp()).collect();
            let sum: f64 = exps.iter().sum();
            let logprob = (exps[*token as usize] / sum).ln();
            let entropy: f64 = exps.iter().map(|e| -(e / sum) * (e / sum).ln()).sum();
            assert!((f64::from(score.logprob) - logprob).abs() < 1e-5, "{score:?} {logprob}");
            assert!((f64::from(score.entropy) - entropy).abs() < 1e-5, "{score:?} {entropy}");
        }
    }
    assert!(plain.iter().any(|made| matches!(made.finish, Finish::Stop(_))), "a stop token is scored too: {plain:?}");
    let short = generate_scored(&model, &numbered, &Sampling { stop_ids: vec![], ..sampling }, 12).unwrap();
    for ((_, prompt), made) in prompts.iter().zip(&short) {
        assert_eq!((prompt.len() + made.continuation.ids.len(), made.continuation.finish), (12, Finish::Context));
    }
}
