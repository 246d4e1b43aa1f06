//! What the case table does not show of the FP8 linear layer.

use std::sync::Arc;

use burn::backend::Autodiff;
use burn::tensor::{Tensor, TensorData};

use crate::cases::{Fill, numbers};
use crate::{Block, Cpu, Fp8, Leaf, backward_into, linear, linear_fp8, recompute};

type Graph = Autodiff<Cpu>;

fn tensor<const D: usize>(seed: u64, dims: [usize; D]) -> Tensor<Cpu, D> {
    let values = Fill::Typical.values(seed, dims.iter().product());
    Tensor::from_data(TensorData::new(values, dims), &Default::default())
}

fn history(values: [f32; 6]) -> Tensor<Cpu, 2> {
    Tensor::from_data(TensorData::new(values.to_vec(), [3, 2]), &Default::default())
}

/// Two layers with a history each.
fn block() -> Block<Graph> {
    Arc::new(|x, leaves| {
        let matrix = |i: usize| leaves[i].clone().matrix();
        let hidden = linear_fp8(x, matrix(0), Some(matrix(1)), Fp8::default());
        linear_fp8(hidden, matrix(2), Some(matrix(3)), Fp8::default())
    })
}

fn leaves() -> Vec<Leaf<Graph>> {
    let known = [history([2.0, 1.0, 0.0, 3.0, 0.5, 0.25]), history([0.0; 6])];
    let [first, second] = known.map(|history| Leaf::Matrix(history).to_autodiff(true));
    let weight = |seed| Leaf::Matrix(tensor(seed, [48, 48])).to_autodiff(true);
    vec![weight(1), first, weight(2), second]
}

/// Output and the gradients of all leaves.
fn step(recomputed: bool) -> Vec<Vec<f32>> {
    let (x, leaves) = (Tensor::<Graph, 3>::from_inner(tensor(3, [2, 16, 48])), leaves());
    let y = match recomputed {
        true => recompute(x, leaves.clone(), None, block()),
        false => block()(x, leaves.clone()),
    };
    let mut out = vec![numbers(y.clone())];
    let grads = (y.clone() * y).sum().backward();
    out.extend(leaves.iter().map(|leaf| numbers(leaf.grad(&grads).expect("every leaf is tracked").matrix())));
    out
}

#[test]
fn recomputed_layers_give_the_same_gradients_and_histories() {
    let (plain, recomputed) = (step(false), step(true));
    assert_eq!(plain, recomputed);
    assert_eq!((plain[2][1], plain[2][3], plain[2][5]), (2.0, 0.0, 0.5), "old entries move on");
    assert!(plain[4].iter().step_by(2).all(|peak| *peak > 0.0), "new peaks are in front: {:?}", plain[4]);
}

/// Gradients that are summed in place are those of the graph, and the next history comes out beside them.
#[test]
fn sums_take_the_gradients_of_weights_alone() {
    let plain = step(false);
    let leaves = leaves();
    let mut sums: Vec<Option<Leaf<Cpu>>> = vec![Some(Leaf::Matrix(tensor(9, [48, 48]))), None, None, None];
    let y = block()(Tensor::from_inner(tensor(3, [2, 16, 48])), leaves.clone());
    backward_into((y.clone() * y).sum(), &leaves, &mut sums);
    let got: Vec<Vec<f32>> = sums.into_iter().map(|sum| numbers(sum.expect("every leaf has a sum").matrix())).collect();
    assert_eq!(got[1..], plain[2..]);
    let before = numbers(tensor::<2>(9, [48, 48]));
    assert!(got[0].iter().zip(&before).zip(&plain[1]).all(|((got, before), dw)| *got == before + dw));
}

/// Eight bits are enough for a layer, and the rounding does something.
#[test]
fn rounding_costs_a_few_percent() {
    let (x, w) = (tensor::<2>(1, [64, 256]), tensor::<2>(2, [32, 256]));
    let exact = linear(x.clone(), w.clone());
    let error = (linear_fp8(x, w, None, Fp8::default()) - exact.clone()).powi_scalar(2).sum().sqrt();
    let share = numbers(error / exact.powi_scalar(2).sum().sqrt())[0];
    assert!(share > 0.005 && share < 0.05, "{share}");
}
