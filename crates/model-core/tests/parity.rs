//! The decoder against transformers: logits, loss and gradients of every fixture case; packing, recomputation, padding, and
//! the routers' losses.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

use std::path::{Path, PathBuf};

use burn::backend::Autodiff;
use burn::tensor::{Int, Tensor, TensorData};
use kernels_cubecl::{Cpu, Leaf, Packed, linear, linear_cross_entropy};
use model_core::hf::names::leaf_values;
use model_core::hf::{TensorFile, leaf_map, split_leaf};
use model_core::router::RouterLosses;
use model_core::{Decoder, LoraConfig, ModelConfig, NamedLeaf, Replay, Routing, Rows};

const MODELS: [&str; 3] = ["llama", "llama_tied", "gptoss"];
const CASES: [&str; 4] = ["plain", "right_pad", "left_pad", "packed"];

/// Bounds of the deviation from transformers: logits absolute, loss relative, gradients relative to the tensor's largest.
const LOGITS: f32 = 2e-5;
const LOSS: f32 = 1e-6;
const GRADIENT: f32 = 1e-4;

type Tracked = Autodiff<Cpu>;

fn fixture(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(model)
}

fn load(model: &str) -> Decoder<Cpu> {
    Decoder::load(&fixture(model), &Default::default()).unwrap()
}

/// One case of a fixture.
struct Case {
    rows: Rows,
    mask: Option<Vec<i64>>,
    labels: Vec<i64>,
    file: TensorFile,
}

impl Case {
    fn open(model: &str, case: &str) -> Self {
        let file = TensorFile::open(&fixture(model).join(format!("{case}.safetensors"))).unwrap();
        let [rows, seq_len] = file.shape("in.input_ids").unwrap()[..] else { panic!("rows and tokens") };
        let ints = |name: &str| file.contains(name).then(|| file.read_i64(name).unwrap());
        let ids = ints("in.input_ids").unwrap().into_iter().map(|id| id as i32).collect();
        let mask = ints("in.attention_mask");
        let positions = ints("in.position_ids");
        let rows = Rows::from_mask_and_positions(rows, seq_len, ids, mask.as_deref(), positions.as_deref()).unwrap();
        Case { rows, mask, labels: ints("in.labels").unwrap(), file }
    }

    /// Whether transformers' values at this token mean anything: those of a query that sees nothing do not. It is one
    /// behind left padding, and in a window it is also one far behind right padding.
    fn is_meaningful(&self, token: usize, config: &ModelConfig) -> bool {
        let row = token / self.rows.seq_len * self.rows.seq_len;
        let Some(mask) = &self.mask else { return true };
        if config.as_gpt_oss().is_some() { mask[token] == 1 } else { mask[row..=token].contains(&1) }
    }
}

fn floats<const D: usize>(tensor: Tensor<Cpu, D>) -> Vec<f32> {
    tensor.into_data().into_vec().unwrap()
}

fn logits(model: &Decoder<Cpu>, rows: &Rows) -> Vec<f32> {
    let input = rows.to_input(&model.config, &Default::default());
    floats(linear(model.hidden(&input, false), model.head()))
}

/// As [`loss_and_grads`] for the leaves of an adapter.
fn adapter_loss_and_grads(model: &Decoder<Cpu>, case: &Case, recompute: bool) -> (f32, Vec<Vec<f32>>) {
    let (loss, grads) = loss_and_grads(model, &case.rows, &case.labels, recompute, 0.0);
    let leaves = model.leaves().into_iter();
    (loss, std::iter::zip(leaves, grads).filter(|(named, _)| named.is_adapter()).map(|(_, grad)| grad).collect())
}

/// Mean loss over the labelled tokens, and `balance` times the load balancing loss, with the gradients by leaf; empty for a
/// leaf that is not trained.
fn loss_and_grads(
    model: &Decoder<Cpu>,
    rows: &Rows,
    labels: &[i64],
    recompute: bool,
    balance: f32,
) -> (f32, Vec<Vec<f32>>) {
    let tracked: Decoder<Tracked> = model.to_autodiff();
    let n_again = if recompute { tracked.blocks.len() } else { 0 };
    let (hidden, routed) =
        tracked.hidden_routed(&rows.to_input(&model.config, &Default::default()), &Replay::first(n_again));
    let [b, t, d] = hidden.dims();
    let shift = |row: &[i64]| row[1..].iter().chain(&[-100]).map(|l| *l as i32).collect::<Vec<_>>();
    let targets: Vec<i32> = labels.chunks(t).flat_map(shift).collect();
    let n = targets.iter().filter(|t| **t != -100).count();
    let device = Default::default();
    let targets = Tensor::<Tracked, 1, Int>::from_data(TensorData::new(targets, [b * t]), &device);
    let weights = Tensor::ones([b * t], &device);
    let loss = linear_cross_entropy(hidden.reshape([b * t, d]), tracked.head(), targets, weights, 0.0).loss / n as f32;
    let loss = match RouterLosses::new(&routed, rows.real_tokens(&device)) {
        Some(router) if balance > 0.0 => loss + router.balance * balance,
        _ => loss,
    };
    let grads = loss.backward();
    let leaves = tracked.leaves().into_iter();
    let of = |named: NamedLeaf<Tracked>| {
        let grad = named.leaf.grad(&grads);
        assert_eq!(grad.is_some(), named.trainable, "{}", named.name);
        grad.map_or_else(Vec::new, leaf_values)
    };
    let grads = leaves.map(of).collect();
    (loss.inner().into_scalar(), grads)
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |most, value| most.max(value.abs()))
}

fn difference(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    assert!(got.iter().all(|v| v.is_finite()));
    std::iter::zip(got, want).fold(0.0, |most, (g, w)| most.max((g - w).abs()))
}

#[test]
fn logits_match_transformers() {
    for name in MODELS {
        let model = load(name);
        for case_name in CASES {
            let case = Case::open(name, case_name);
            let (got, want) = (logits(&model, &case.rows), case.file.read_f32("out.logits").unwrap());
            let v = model.config.vocab_size;
            let tokens: Vec<usize> =
                (0..got.len() / v).filter(|token| case.is_meaningful(*token, &model.config)).collect();
            let worst = tokens
                .iter()
                .map(|token| difference(&got[token * v..][..v], &want[token * v..][..v]))
                .fold(0.0, f32::max);
            println!("{name} {case_name}: logits {worst:.2e} over {} tokens", tokens.len());
            assert!(worst <= LOGITS, "{name} {case_name}: logits differ by {worst:e}");
        }
    }
}

/// Loss and every gradient of all cases in `fixture` against `model`.
fn check_gradients(model: &Decoder<Cpu>, fixture: &str, balance: f32) {
    for case_name in CASES {
        let case = Case::open(fixture, case_name);
        let (loss, grads) = loss_and_grads(model, &case.rows, &case.labels, false, balance);
        let want = case.file.read_f32("out.loss").unwrap()[0];
        let loss_error = (loss - want).abs() / want;
        let mut worst = 0.0f32;
        for (map, grad) in std::iter::zip(leaf_map(&model.config), &grads) {
            for (tensor, shape, got) in split_leaf(&map, grad) {
                let want = case.file.read_weight(&format!("grad.{tensor}"), &shape, false).unwrap();
                let error = difference(&got, &want) / largest(&want);
                assert!(error <= GRADIENT, "{fixture} {case_name} {tensor}: gradient differs by {error:e}");
                worst = worst.max(error);
            }
        }
        println!("{fixture} {case_name}: loss {loss_error:.2e}, gradients {worst:.2e}");
        assert!(loss_error <= LOSS, "{fixture} {case_name}: loss {loss}, want {want}");
    }
}

#[test]
fn loss_and_gradients_match_transformers() {
    for name in MODELS {
        check_gradients(&load(name), name, 0.0);
    }
}

#[test]
fn the_load_balancing_loss_matches_transformers() {
    let model = load("gptoss");
    let coefficient = model.config.experts().unwrap().balance_coef;
    assert_eq!(coefficient, 0.1);
    check_gradients(&model, "gptoss_aux", coefficient);
    for case_name in CASES {
        let case = Case::open("gptoss_aux", case_name);
        let (_, routed) =
            model.hidden_routed(&case.rows.to_input(&model.config, &Default::default()), &Replay::default());
        let losses = RouterLosses::new(&routed, case.rows.real_tokens(&Default::default())).unwrap();
        let (got, want) = (floats(losses.balance)[0], case.file.read_f32("out.aux_loss").unwrap()[0]);
        assert!((got - want).abs() <= LOSS * want, "{case_name}: balance {got}, want {want}");
        check_logits_of_routers(&case, &routed);
    }
}

fn check_logits_of_routers(case: &Case, routed: &[Routing<Cpu>]) {
    for (layer, routing) in routed.iter().enumerate() {
        let (got, want) =
            (floats(routing.logits.clone()), case.file.read_f32(&format!("out.router_logits.{layer}")).unwrap());
        let n = want.len() / case.rows.ids.len();
        for token in (0..case.rows.ids.len()).filter(|token| case.rows.segments[*token] >= 0) {
            let worst = difference(&got[token * n..][..n], &want[token * n..][..n]);
            assert!(worst <= LOGITS, "router {layer} token {token}: {worst:e}");
        }
    }
}

#[test]
fn packed_rows_equal_separate_documents() {
    for name in MODELS {
        let model = load(name);
        let case = Case::open(name, "packed");
        let packed = logits(&model, &case.rows);
        let v = model.config.vocab_size;
        let mut begin = 0;
        for len in [6, 5, 4] {
            let ids = case.rows.ids[begin..begin + len].to_vec();
            let alone = Rows::from_segments(1, len, ids, vec![0; len]).unwrap();
            let worst = difference(&packed[begin * v..(begin + len) * v], &logits(&model, &alone));
            assert!(worst <= LOGITS, "{name} document at {begin}: {worst:e}");
            begin += len;
        }
    }
}

#[test]
fn recomputation_changes_no_bit() {
    for name in MODELS {
        let model = load(name);
        for case_name in CASES {
            let case = Case::open(name, case_name);
            let (loss, grads) = loss_and_grads(&model, &case.rows, &case.labels, false, 0.5);
            let (loss_again, grads_again) = loss_and_grads(&model, &case.rows, &case.labels, true, 0.5);
            assert_eq!(loss.to_bits(), loss_again.to_bits(), "{name} {case_name}");
            for (named, (kept, again)) in std::iter::zip(model.leaves(), std::iter::zip(&grads, &grads_again)) {
                let same = std::iter::zip(kept, again).all(|(k, a)| k.to_bits() == a.to_bits());
                assert!(same, "{name} {case_name} {}: gradients differ by {:e}", named.name, difference(kept, again));
            }
        }
    }
}

#[test]
fn recomputation_drops_the_same_elements() {
    let mut model = load("llama");
    let config = LoraConfig {
        r: 2,
        alpha: 4.0,
        dropout: 0.3,
        rslora: false,
        targets: vec!["q_proj".to_owned(), "down_proj".to_owned()],
        rank_pattern: Default::default(),
    };
    model.attach_lora(&config, 3).unwrap();
    let leaves = model.leaves().into_iter().map(|named| {
        // A fresh B is zero and would hide its segment's dropout.
        let dims = named.leaf.dims();
        let fill = |n: usize| (0..n).map(|i| 0.01 * (i % 7) as f32 - 0.02).collect::<Vec<f32>>();
        if named.is_adapter() {
            Leaf::from_data(TensorData::new(fill(named.leaf.n_elements()), dims), &Default::default())
        } else {
            named.leaf
        }
    });
    let mut model = model.with_leaves(leaves.collect());
    let case = Case::open("llama", "plain");
    let run = |model: &Decoder<Cpu>, recompute| adapter_loss_and_grads(model, &case, recompute);
    let off = run(&model, false);
    model.set_dropout_seed(Some(5));
    let on = run(&model, false);
    assert_eq!(on, run(&model, true));
    assert_ne!(on.0, off.0);
    model.set_dropout_seed(Some(6));
    assert_ne!(on.0, run(&model, true).0);
}

#[test]
fn padding_changes_nothing_for_real_tokens() {
    let model = load("llama");
    let v = model.config.vocab_size;
    let ids = vec![7, 12, 31, 5];
    let alone = logits(&model, &Rows::from_segments(1, 4, ids.clone(), vec![0; 4]).unwrap());
    let padded = Rows::from_segments(1, 7, [ids, vec![3; 3]].concat(), vec![0, 0, 0, 0, -1, -1, -1]).unwrap();
    assert!(difference(&logits(&model, &padded)[..4 * v], &alone) <= LOGITS);
}

/// Packed rows of uneven documents and padding, large enough that kernels take their blocked paths.
fn uneven_rows(vocab_size: usize) -> (Rows, Vec<i64>) {
    let (rows, seq_len) = (3, 133);
    let ids: Vec<i32> = (0..rows * seq_len).map(|i| ((i * 7919 + 13) % vocab_size) as i32).collect();
    let segment = |t: usize| [(0, 40), (1, 41), (2, 120)].iter().find(|(_, end)| t < *end).map_or(-1, |(s, _)| *s);
    let segments: Vec<i32> = (0..rows * seq_len).map(|i| segment(i % seq_len)).collect();
    let labels = std::iter::zip(&ids, &segments).map(|(id, s)| if *s < 0 { -100 } else { i64::from(*id) }).collect();
    (Rows::from_segments(rows, seq_len, ids, segments).unwrap(), labels)
}

#[test]
fn neither_threads_nor_recomputation_change_a_bit() {
    let model = Decoder::<Cpu>::init(&ModelConfig::from_depth(3, 301), 5, &Default::default());
    let (rows, labels) = uneven_rows(301);
    let run = |threads, recompute| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let (loss, grads) = pool.install(|| loss_and_grads(&model, &rows, &labels, recompute, 0.0));
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        (loss.to_bits(), grads.into_iter().map(bits).collect::<Vec<_>>())
    };
    let want = run(1, false);
    for (threads, recompute) in [(1, true), (2, false), (2, true), (7, true)] {
        assert!(run(threads, recompute) == want, "{threads} threads, recompute {recompute}");
    }
}

#[test]
fn a_frozen_leaf_is_not_tracked() {
    let model = load("llama");
    let mut only_norms = |named: &NamedLeaf<Cpu>| named.leaf.to_autodiff(named.name.contains("norm"));
    let frozen = model.map_backend::<Tracked>(&mut only_norms, &mut Packed::to_autodiff);
    let hidden = frozen.hidden(&Case::open("llama", "plain").rows.to_input(&model.config, &Default::default()), true);
    let grads = hidden.sum().backward();
    for named in frozen.leaves() {
        assert_eq!(named.leaf.grad(&grads).is_some(), named.name.contains("norm"), "{}", named.name);
    }
}

#[test]
fn leaves_can_be_replaced_in_order() {
    let model = Decoder::<Cpu>::init(&ModelConfig::from_depth(2, 50), 1, &Default::default());
    let other = Decoder::<Cpu>::init(&ModelConfig::from_depth(2, 50), 2, &Default::default());
    let leaves: Vec<Leaf<Cpu>> = other.leaves().into_iter().map(|named| named.leaf).collect();
    let replaced = model.with_leaves(leaves);
    let rows = Rows::from_segments(1, 3, vec![1, 2, 3], vec![0; 3]).unwrap();
    assert_eq!(logits(&replaced, &rows), logits(&other, &rows));
    assert_ne!(logits(&replaced, &rows), logits(&model, &rows));
}

#[test]
fn decay_is_for_matrices_and_everything_trains_without_an_adapter() {
    for named in [load("llama"), load("gptoss")].iter().flat_map(Decoder::leaves) {
        assert_eq!(named.decay, matches!(named.leaf, Leaf::Matrix(_)), "{}", named.name);
        assert!(named.trainable, "{}", named.name);
    }
}
