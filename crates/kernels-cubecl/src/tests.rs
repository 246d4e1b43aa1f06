//! Tests over all ops: the case table on both sets of bodies, threads, recomputation.

use std::sync::Arc;

use burn::backend::Autodiff;
use burn::tensor::{Int, Tensor, TensorData};

use crate::cases::{Check, Fill, numbers, run_all, whole_numbers};
use crate::cpu::with_portable;
use crate::*;

mod experts;

type Graph = Autodiff<Cpu>;

fn assert_all(checks: &[Check], ops: usize) {
    let failed: Vec<String> = checks.iter().filter(|check| check.outcome.is_err()).map(Check::to_string).collect();
    assert!(failed.is_empty(), "{} of {} checks failed:\n{}", failed.len(), checks.len(), failed.join("\n"));
    let mut names: Vec<&str> = checks.iter().map(|check| check.op).collect();
    names.dedup();
    assert_eq!(names.len(), ops, "every op has checks: {names:?}");
}

#[test]
fn slice_kernels_match_the_references() {
    assert_all(&run_all::<Cpu>(&Default::default()), N_OPS);
}

#[test]
fn portable_bodies_match_the_references() {
    assert_all(&with_portable(|| run_all::<Cpu>(&Default::default())), N_OPS);
}

/// Ops with cases.
const N_OPS: usize = 20;

fn tensor<const D: usize>(seed: u64, dims: [usize; D]) -> Tensor<Cpu, D> {
    let values = Fill::Typical.values(seed, dims.iter().product());
    Tensor::from_data(TensorData::new(values, dims), &Default::default())
}

fn ints<const D: usize>(values: Vec<i32>, dims: [usize; D]) -> Tensor<Cpu, D, Int> {
    Tensor::from_data(TensorData::new(values, dims), &Default::default())
}

/// Sizes of the small model below: batch, tokens, width, hidden width, vocabulary.
const B: usize = 2;
const T: usize = 70;
const D: usize = 96;
const F: usize = 200;
const V: usize = 300;
const HEADS: HeadLayout = HeadLayout { n_heads: 6, n_kv_heads: 2, d_head: 16 };

/// Everything of a step of a one-layer model: loss, every gradient and the updated table.
fn model_step(recomputed: bool) -> Vec<Vec<f32>> {
    model_step_on(None, recomputed)
}

/// As [`model_step`], with the blocks' inputs on a shelf.
fn model_step_on(shelf: Option<&Shelf>, recomputed: bool) -> Vec<Vec<f32>> {
    let leaf = |tensor: Tensor<Cpu, 2>| Leaf::Matrix(tensor * 0.1).to_autodiff(true);
    let gain = |seed| Leaf::Vector(tensor::<1>(seed, [D])).to_autodiff(true);
    let table = leaf(tensor(1, [V, D]));
    let sinks = Leaf::Vector(tensor::<1>(2, [HEADS.n_heads])).to_autodiff(true);
    let block_leaves = vec![
        gain(3),
        leaf(tensor(4, [HEADS.width(), D])),
        leaf(tensor(5, [D, HEADS.q_width()])),
        gain(6),
        leaf(tensor(7, [2 * F, D])),
        leaf(tensor(8, [D, F])),
        sinks,
    ];
    let ids = Tensor::<Graph, 2, Int>::from_inner(ints(whole_numbers(9, B * T, V), [B, T]));
    let x = embedding(table.clone().matrix(), ids);
    let (f, mut leaves) = (block(), block_leaves.clone());
    let hidden = match recomputed {
        true => recompute(recompute(x, block_leaves.clone(), shelf, f.clone()), block_leaves, shelf, f),
        false => f(f(x, block_leaves.clone()), block_leaves),
    };
    let targets = Tensor::<Graph, 1, Int>::from_inner(ints(whole_numbers(10, B * T, V), [B * T]));
    let weights = Tensor::from_inner(tensor::<1>(11, [B * T]).abs());
    let rows = hidden.reshape([B * T, D]);
    let head = table.clone().matrix();
    let loss = linear_cross_entropy(rows.clone(), head.clone(), targets.clone(), weights, 1e-3);
    let logprobs = token_logprobs(rows, head, targets);
    let total = loss.loss + logprobs.mean();
    let mut out = vec![numbers(total.clone()), numbers(loss.nll)];
    let grads = total.backward();
    leaves.push(table);
    for leaf in leaves {
        let grad = leaf.grad(&grads).expect("every leaf is tracked");
        out.push(grad.into_data().iter::<f32>().collect());
    }
    out
}

/// A transformer block that uses every op with a backward pass.
fn block() -> Block<Graph> {
    let span = |seed| whole_numbers(seed, B * T, 5);
    let start = (0..B * T).map(|i| (i % T / 30 * 30) as i32).collect();
    let end = (0..B * T).zip(span(20)).map(|(i, cut)| (i % T) as i32 + if cut == 0 { -100 } else { 1 }).collect();
    let spans =
        Spans::<Graph> { start: Tensor::from_inner(ints(start, [B, T])), end: Tensor::from_inner(ints(end, [B, T])) };
    let angles = tensor::<3>(21, [B, T, HEADS.d_head / 2]);
    let (cos, sin) = (Tensor::from_inner(angles.clone().cos()), Tensor::from_inner(angles.sin()));
    Arc::new(move |x: Tensor<Graph, 3>, leaves: Vec<Leaf<Graph>>| {
        let mut leaves = leaves.into_iter();
        let mut next = || leaves.next().expect("the block has seven leaves");
        let qkv = linear(rms_norm(x.clone(), next().vector(), 1e-5), next().matrix());
        let qkv = rope_qkv(qkv, cos.clone(), sin.clone(), HEADS);
        let (out, gain) = (next().matrix(), next().vector());
        let (gate_up, down, sinks) = (next().matrix(), next().matrix(), next().vector());
        let attended = linear(attention(qkv, &spans, Some(sinks), HEADS, 0.25), out);
        let (sum, normed) = add_rms_norm(attended, x, gain, 1e-5);
        sum + linear(swiglu(linear(normed, gate_up)), down)
    })
}

fn assert_same(a: &[Vec<f32>], b: &[Vec<f32>], what: &str) {
    assert_eq!(a.len(), b.len());
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert!(bits(a) == bits(b), "{what}: result {i} differs");
        assert!(a.iter().any(|x| *x != 0.0) && a.iter().all(|x| x.is_finite()), "{what}: result {i} shows nothing");
    }
}

#[test]
fn recomputed_blocks_give_the_same_bits() {
    assert_same(&model_step(true), &model_step(false), "recompute");
}

#[test]
fn offloaded_inputs_come_back_with_the_same_bits() {
    let shelf = Shelf::default();
    assert_same(&model_step_on(Some(&shelf), true), &model_step(false), "offload");
    assert_eq!(shelf.traffic(), Traffic { to_host: 2, to_device: 2 });
    // The same shelf serves the next pass.
    assert_same(&model_step_on(Some(&shelf), true), &model_step(false), "second offload");
    assert_eq!(shelf.traffic(), Traffic { to_host: 4, to_device: 4 });
}

#[test]
fn recomputed_portable_blocks_give_the_same_bits() {
    let (recomputed, plain) = with_portable(|| (model_step(true), model_step(false)));
    assert_same(&recomputed, &plain, "portable recompute");
}

/// The slice kernels of a whole step against the portable bodies: no shape or wiring is wrong on either side.
#[test]
fn slice_kernels_match_the_portable_bodies_in_a_model() {
    let (fast, portable) = (model_step(false), with_portable(|| model_step(false)));
    for (i, (fast, portable)) in fast.iter().zip(&portable).enumerate() {
        let wide: Vec<f64> = portable.iter().copied().map(f64::from).collect();
        let loose = tolerance::Tolerance { element: 1e-3, floor: 1e-4, global: 1e-4 };
        compare::compare(fast, &wide, loose).unwrap_or_else(|mismatch| panic!("result {i}: {mismatch}"));
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads start");
        pool.install(|| (model_step(false), kernel_results()))
    };
    let (one, one_kernels) = on(1);
    for threads in [2, 7] {
        let (many, many_kernels) = on(threads);
        assert_same(&many, &one, "model");
        assert_same(&many_kernels, &one_kernels, "kernels");
    }
}

/// The kernels without a backward pass, on sizes that make several tasks.
fn kernel_results() -> Vec<Vec<f32>> {
    let hyper = AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step: 3, seed: 9 };
    let dims = [301, 401];
    let leaf = |seed| Leaf::Matrix(tensor::<2>(seed, dims));
    let moments = Moments::Full { m: leaf(3), v: Leaf::Matrix(tensor::<2>(4, dims).abs()) };
    let scale = || Tensor::from_floats([0.5], &Default::default());
    let (param, _, moments) = adamw_step(leaf(1), leaf(2), Master::Nearest, moments, scale(), &hyper);
    let Moments::Full { m, v } = moments else { panic!("full moments stay full") };
    let packed = Moments::Packed(PackedMoments::zeros(dims[0] * dims[1], &Default::default()));
    let (packed_param, _, packed) = adamw_step(leaf(1), leaf(2), Master::Nearest, packed, scale(), &hyper);
    let Moments::Packed(packed) = packed else { panic!("packed moments stay packed") };
    let tall = rms_norm(tensor::<2>(5, [5000, 32]), tensor(6, [32]), 1e-5);
    let deep = linear(tensor::<2>(7, [7, 1000]), tensor(8, [2500, 1000]));
    let stats = token_stats(tensor(9, [400, 64]), tensor(10, [1000, 64]), ints(whole_numbers(11, 400, 1000), [400]));
    vec![
        numbers(sum_squares(tensor::<2>(12, dims))),
        numbers(add_assign(tensor::<2>(13, dims), tensor(14, dims))),
        numbers(param.matrix()),
        numbers(m.matrix()),
        numbers(v.matrix()),
        numbers(packed_param.matrix()),
        numbers(packed.v_scale),
        numbers(packed.m.float()),
        numbers(tall),
        numbers(deep),
        numbers(stats.logprob),
        numbers(stats.lse),
    ]
}

/// A row of a product does not depend on the rows beside it: generation in batches equals generation one by one.
#[test]
fn a_row_of_linear_is_the_same_in_every_batch() {
    let (x, w) = (tensor::<2>(1, [100, 300]), tensor::<2>(2, [90, 300]));
    let all = numbers(linear(x.clone(), w.clone()));
    for (first, n) in [(0, 1), (3, 2), (40, 13), (99, 1)] {
        let part = numbers(linear(x.clone().narrow(0, first, n), w.clone()));
        assert!(part == all[first * 90..(first + n) * 90], "rows {first}..{}", first + n);
    }
}

/// What `f` captures may be shared; only tracked input must come in through the arguments.
#[test]
fn recompute_without_anything_tracked_is_plain() {
    let leaves: Vec<Leaf<Graph>> = vec![Leaf::Matrix(tensor(1, [D, D])).to_autodiff(false)];
    let f: Block<Graph> = Arc::new(|x, leaves| linear(x, leaves[0].clone().matrix()));
    let x = Tensor::<Graph, 3>::from_inner(tensor(2, [B, T, D]));
    let plain = f(x.clone(), leaves.clone());
    assert_eq!(numbers(recompute(x, leaves, None, f)), numbers(plain));
}

/// Tracking the input alone, or one leaf alone, gives exactly those gradients.
#[test]
fn recompute_tracks_what_is_tracked() {
    for (x_tracked, w_tracked) in [(true, false), (false, true), (true, true)] {
        let run = |recomputed: bool| {
            let x = Tensor::<Graph, 3>::from_inner(tensor(1, [B, T, D])).set_require_grad(x_tracked);
            let w = Leaf::Matrix(tensor(2, [2 * D, D])).to_autodiff(w_tracked);
            let f: Block<Graph> = Arc::new(|x, leaves| swiglu(linear(x, leaves[0].clone().matrix())));
            let y = match recomputed {
                true => recompute(x.clone(), vec![w.clone()], None, f),
                false => f(x.clone(), vec![w.clone()]),
            };
            let grads = (y.clone() * y).sum().backward();
            let dx = x.grad(&grads).map(numbers);
            let dw = w.grad(&grads).map(|dw| numbers(dw.matrix()));
            assert_eq!((dx.is_some(), dw.is_some()), (x_tracked, w_tracked));
            (dx, dw)
        };
        assert_eq!(run(true), run(false));
    }
}

/// A gradient that reaches a norm's input on two ways is the sum of both, in whatever order they arrive.
#[test]
fn carried_gradients_add_up() {
    let grad = |norm: bool, plain: bool| {
        let x = Tensor::<Graph, 2>::from_inner(tensor(1, [5, D])).require_grad();
        let gamma = Tensor::<Graph, 1>::from_inner(tensor(2, [D]));
        let mut loss = x.clone().sum() * 0.0;
        if norm {
            loss = loss + (rms_norm(x.clone(), gamma, 1e-5).powi_scalar(2)).sum();
        }
        if plain {
            loss = loss + (x.clone() * x.clone()).sum();
        }
        numbers(x.grad(&loss.backward()).expect("x is tracked"))
    };
    let (norm, plain, both) = (grad(true, false), grad(false, true), grad(true, true));
    for i in 0..both.len() {
        let want = norm[i] + plain[i];
        assert!(
            (both[i] - want).abs() <= 1e-5 * want.abs().max(1.0),
            "{i}: {} and {} give {}",
            norm[i],
            plain[i],
            both[i]
        );
    }
}

#[test]
fn the_upstream_gradient_scales_the_head() {
    let dw = |factor: f32| {
        let x = Tensor::<Graph, 2>::from_inner(tensor(1, [9, D]));
        let w = Tensor::<Graph, 2>::from_inner(tensor(2, [V, D])).require_grad();
        let targets = Tensor::from_inner(ints(whole_numbers(3, 9, V), [9]));
        let weights = Tensor::from_inner(tensor::<1>(4, [9]).abs());
        let loss = linear_cross_entropy(x, w.clone(), targets, weights, 0.0).loss * factor;
        numbers(w.grad(&loss.backward()).expect("the head is tracked"))
    };
    let scaled: Vec<f32> = dw(1.0).into_iter().map(|x| x * -0.5).collect();
    assert_eq!(dw(-0.5), scaled);
}
