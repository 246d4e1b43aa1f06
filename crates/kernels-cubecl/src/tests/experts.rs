//! A whole layer of experts: recomputation, threads, both sets of bodies; and what single ops promise beyond their cases.

use super::*;
use crate::tolerance::Tolerance;

/// Tokens, experts, choices, width of a token and of an expert, rank of the adapters.
const N: usize = 150;
const E: usize = 6;
const K: usize = 2;
const WIDTH: usize = 64;
const INNER: usize = 40;
const RANK: usize = 4;

/// Loss and every gradient of one layer: router, experts, adapters beside frozen MXFP4 experts.
fn layer_step(recomputed: bool) -> Vec<Vec<f32>> {
    let matrix = |seed, dims| Leaf::Matrix(tensor::<2>(seed, dims) * 0.2).to_autodiff(true);
    let vector = |seed, n| Leaf::Vector(tensor::<1>(seed, [n]) * 0.2).to_autodiff(true);
    let leaves = vec![
        matrix(1, [E, WIDTH]),
        vector(2, E),
        matrix(3, [E * 2 * INNER, WIDTH]),
        vector(4, E * 2 * INNER),
        matrix(5, [E * WIDTH, INNER]),
        vector(6, E * WIDTH),
        matrix(7, [E * RANK, WIDTH]),
        matrix(8, [E * 2 * INNER, RANK]),
    ];
    let x = Tensor::<Graph, 3>::from_inner(tensor(10, [2, N / 2, WIDTH])).require_grad();
    let f = layer();
    let y = match recomputed {
        true => recompute(recompute(x.clone(), leaves.clone(), None, f.clone()), leaves.clone(), None, f),
        false => f(f(x.clone(), leaves.clone()), leaves.clone()),
    };
    let dy = Tensor::from_inner(tensor(11, [2, N / 2, WIDTH]));
    let loss = (y * dy).sum();
    let mut out = vec![numbers(loss.clone())];
    let grads = loss.backward();
    out.push(numbers(x.grad(&grads).expect("the input is tracked")));
    for leaf in leaves {
        let grad = leaf.grad(&grads).expect("every leaf is tracked");
        out.push(grad.into_data().iter::<f32>().collect());
    }
    out
}

/// The layer as a block that may run again.
fn layer() -> Block<Graph> {
    let frozen = tensor::<2>(20, [E * 2 * INNER, WIDTH]);
    let (blocks, scales) = quantise_mxfp4(&numbers(frozen)).expect("whole blocks");
    let frozen = Mxfp4::<Graph>::from_bytes(&blocks, &scales, [E * 2 * INNER, WIDTH], &Default::default());
    let frozen = frozen.expect("the lengths fit");
    let weight = ExpertWeight::Packed(Packed::Mxfp4(frozen.clone()));
    let padding = Tensor::<Cpu, 1, Int>::from_data([0, 77], &Default::default());
    Arc::new(move |x: Tensor<Graph, 3>, leaves: Vec<Leaf<Graph>>| {
        let mut leaves = leaves.into_iter();
        let mut next = || leaves.next().expect("the layer has eight leaves");
        let dims = x.dims();
        let rows = rms_norm(x.clone().reshape([N, WIDTH]), Tensor::from_inner(tensor::<1>(21, [WIDTH])), 1e-5);
        let routed = route(linear_bias_f32(rows.clone(), next().matrix(), next().vector()), K);
        let dead = Tensor::<Graph, 2, Int>::from_inner(padding.clone().reshape([1, 2]).expand([N, 2]));
        let ids = Tensor::<Graph, 1, Int>::arange(0..N as i64, &Default::default()).reshape([N, 1]);
        let dead = ids.expand([N, 2]).equal(dead).int().sum_dim(1).greater_elem(0).expand([N, K]);
        let at = dispatch(routed.experts.mask_fill(dead, -1), E);
        let xs = gather_tokens(rows, &at);
        let (up, up_bias, down, down_bias) = (next().matrix(), next().vector(), next().matrix(), next().vector());
        let (a, b) = (next().matrix(), next().matrix());
        let gate_up = grouped_linear(xs.clone(), up, Some(up_bias.clone()), &at)
            + grouped_linear_mxfp4(xs.clone(), &frozen, Some(up_bias), &at) * 0.3
            + grouped_lora(xs, &weight, None, &ExpertLora { a, b, scale: 0.5 }, &at);
        let inner = swiglu_clamped(gate_up, 1.702, 1.0);
        let out = combine(grouped_linear(inner, down, Some(down_bias), &at), routed.weights, &at);
        x + out.reshape(dims)
    })
}

#[test]
fn recomputed_experts_give_the_same_bits() {
    assert_same(&layer_step(true), &layer_step(false), "recompute");
    let (recomputed, plain) = with_portable(|| (layer_step(true), layer_step(false)));
    assert_same(&recomputed, &plain, "portable recompute");
}

#[test]
fn experts_do_not_depend_on_the_number_of_threads() {
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads start");
        pool.install(|| (layer_step(false), large_results()))
    };
    let (one, one_large) = on(1);
    for threads in [2, 7] {
        let (many, many_large) = on(threads);
        assert_same(&many, &one, "layer");
        assert_same(&many_large, &one_large, "large sizes");
    }
}

/// Ops on sizes that make several tasks: few large experts, which run one after the other, and many small ones.
fn large_results() -> Vec<Vec<f32>> {
    let mut out = Vec::new();
    for (n, k, e, d) in [(3000, 1, 2, 60), (2000, 4, 16, 40)] {
        let logits = tensor::<2>(1, [n, e]);
        let routed = route(logits, k);
        let at = dispatch(routed.experts, e);
        let x = Tensor::<Graph, 2>::from_inner(tensor(2, [n, d])).require_grad();
        let w = Leaf::Matrix(tensor::<2>(3, [e * 300, d])).to_autodiff(true);
        let bias = Leaf::Vector(tensor::<1>(4, [e * 300])).to_autodiff(true);
        let at = at.map(Tensor::from_inner);
        let y = grouped_linear(gather_tokens(x.clone(), &at), w.clone().matrix(), Some(bias.clone().vector()), &at);
        let weights = Tensor::<Graph, 2>::from_inner(routed.weights).require_grad();
        let sum = combine(y, weights.clone(), &at);
        out.push(numbers(sum.clone()));
        let grads = (sum.clone() * sum).sum().backward();
        out.push(numbers(x.grad(&grads).expect("tracked")));
        out.push(numbers(weights.grad(&grads).expect("tracked")));
        out.push(numbers(w.grad(&grads).expect("tracked").matrix()));
        out.push(numbers(bias.grad(&grads).expect("tracked").vector()));
    }
    let biased = linear_bias(tensor::<2>(5, [4000, 30]), tensor(6, [600, 30]), tensor(7, [600]));
    out.push(numbers(biased));
    out
}

#[test]
fn expert_kernels_match_the_portable_bodies_in_a_layer() {
    let (fast, portable) = (layer_step(false), with_portable(|| layer_step(false)));
    for (i, (fast, portable)) in fast.iter().zip(&portable).enumerate() {
        let wide: Vec<f64> = portable.iter().copied().map(f64::from).collect();
        let loose = Tolerance { element: 1e-3, floor: 1e-4, global: 1e-4 };
        compare::compare(fast, &wide, loose).unwrap_or_else(|mismatch| panic!("result {i}: {mismatch}"));
    }
}

/// Frozen experts are exactly the plain ones with the decoded weight.
#[test]
fn frozen_experts_are_the_decoded_ones() {
    let (e, o, i) = (5, 40, 96);
    let (blocks, scales) = quantise_mxfp4(&numbers(tensor::<2>(1, [e * o, i]))).expect("whole blocks");
    let frozen = Mxfp4::<Cpu>::from_bytes(&blocks, &scales, [e * o, i], &Default::default()).expect("the lengths fit");
    let at = dispatch(ints(whole_numbers(2, 90, e), [45, 2]), e);
    let (x, bias) = (tensor::<2>(3, [90, i]), tensor::<1>(4, [e * o]));
    let got = grouped_linear_mxfp4(x.clone(), &frozen, Some(bias.clone()), &at);
    assert_eq!(numbers(got), numbers(grouped_linear(x, frozen.decode(), Some(bias), &at)));
}

/// The order of tokens without ties is that of any sort; ties and zeros of both signs go by index, NaN comes first.
#[test]
fn routing_breaks_ties_by_index() {
    let logits = [[0.0f32, -0.0, 1.0, 1.0], [f32::NAN, 3.0, f32::INFINITY, 4.0], [f32::NEG_INFINITY, -1.0, -1.0, -2.0]];
    for portable in [false, true] {
        let run = || route(Tensor::<Cpu, 2>::from_data(logits, &Default::default()), 3);
        let routed = if portable { with_portable(run) } else { run() };
        let experts: Vec<i64> = routed.experts.into_data().iter().collect();
        assert_eq!(experts, [2, 3, 0, 0, 2, 3, 1, 2, 3], "portable: {portable}");
        let weights = numbers(routed.weights);
        assert!(weights[3..6].iter().all(|w| w.is_nan()), "a NaN logit must show: {weights:?}");
        assert!(weights[..3].iter().chain(&weights[6..]).all(|w| w.is_finite()), "{weights:?}");
    }
}

/// Rows that belong to no expert pass nothing on, whatever stands in them.
#[test]
fn masked_slots_give_zeros() {
    let at = dispatch(ints(vec![-1, -1, 0, 1, 7, 1], [3, 2]), 2);
    let x = Tensor::<Cpu, 2>::from_data([[f32::NAN], [2.0], [3.0]], &Default::default());
    let xs = gather_tokens(x, &at);
    assert_eq!(numbers(xs.clone()), [2.0, 2.0, 3.0, 0.0, 0.0, 0.0]);
    let y = grouped_linear(xs, tensor(1, [2, 1]), Some(tensor(2, [2])), &at);
    assert_eq!(numbers(y.clone())[3..], [0.0; 3]);
    let sums = numbers(combine(y, Tensor::ones([3, 2], &Default::default()), &at));
    assert!(sums[0] == 0.0 && sums[1] != 0.0 && sums[2] != 0.0, "{sums:?}");
}
