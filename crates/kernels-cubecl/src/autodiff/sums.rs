//! Gradients of parameters, summed in place over backward passes.
//!
//! burn's container of gradients would hold a whole second set of them until the caller adds it up. Here a backward step
//! that reaches a parameter adds to the sum itself: a weight's product accumulates into it, and no second set exists.

use std::any::Any;
use std::cell::RefCell;
use std::collections::HashMap;

use burn::backend::Autodiff;
use burn::backend::autodiff::NodeId;
use burn::tensor::Tensor;
use burn::tensor::ops::FloatTensor;

use super::Gradients;
use crate::{Leaf, LmBackend};

/// The sum of one parameter: nothing yet, or a tensor of the inner backend.
type Sum = Option<Box<dyn Any>>;

thread_local! {
    /// The parameters of the backward pass that this thread runs, by graph node.
    static SUMS: RefCell<HashMap<u64, Sum>> = RefCell::default();
}

/// Forgets the sums of a backward pass, also when it panics.
struct Clear;

impl Drop for Clear {
    fn drop(&mut self) {
        SUMS.take();
    }
}

/// Runs the backward pass of `loss` and adds the gradients of `leaves` to `sums`, in place where a sum has one owner.
///
/// `sums` stands in the order of `leaves`; leaves that are not tracked or took no part leave theirs alone. The first
/// gradient of a leaf becomes its sum and decides its element type.
///
/// # Panics
/// When the two differ in length.
pub fn backward_into<B: LmBackend>(
    loss: Tensor<Autodiff<B>, 1>,
    leaves: &[Leaf<Autodiff<B>>],
    sums: &mut [Option<Leaf<B>>],
) {
    assert_eq!(leaves.len(), sums.len(), "backward_into: one sum per leaf");
    let _clear = Clear;
    let nodes: Vec<Option<u64>> = leaves.iter().map(node_of).collect();
    SUMS.with_borrow_mut(|map| {
        for (node, sum) in nodes.iter().zip(sums.iter_mut()) {
            let Some(node) = *node else { continue };
            let sum = sum.take().map(|leaf| Box::new(leaf.into_primitive()) as Box<dyn Any>);
            map.insert(node, sum);
        }
    });
    let mut rest = loss.backward();
    for ((leaf, node), sum) in leaves.iter().zip(nodes).zip(sums) {
        let Some(node) = node else { continue };
        let mine = SUMS.with_borrow_mut(|map| map.remove(&node).flatten());
        *sum = mine.map(|sum| Leaf::from_primitive(downcast::<B>(sum)));
        // Plain burn ops know nothing of the sums and left theirs in burn's container.
        if let Some(gradient) = leaf.take_grad(&mut rest) {
            let gradient = gradient.into_primitive();
            let total = match sum.take() {
                Some(sum) => B::lm_add_assign(sum.into_primitive(), gradient),
                None => gradient,
            };
            *sum = Some(Leaf::from_primitive(total));
        }
    }
}

/// The graph node of a leaf that wants a gradient.
fn node_of<B: LmBackend>(leaf: &Leaf<Autodiff<B>>) -> Option<u64> {
    let primitive = leaf.clone().into_primitive();
    primitive.is_tracked().then_some(primitive.node.id.value)
}

fn downcast<B: LmBackend>(sum: Box<dyn Any>) -> FloatTensor<B> {
    *sum.downcast().expect("the sums and the graph are of one backend")
}

/// Adds a gradient to the sum of a parameter, or hands it on to burn's container for any other node.
pub(super) fn register<B: LmBackend>(grads: &mut Gradients, node: NodeId, gradient: FloatTensor<B>) {
    accumulate::<B>(grads, node, |sum| match sum {
        Some(sum) => B::lm_add_assign(sum, gradient),
        None => gradient,
    });
}

/// As [`register`], for a gradient that can be computed into the sum.
pub(super) fn accumulate<B: LmBackend>(
    grads: &mut Gradients,
    node: NodeId,
    add: impl FnOnce(Option<FloatTensor<B>>) -> FloatTensor<B>,
) {
    // Taken out while the gradient is computed, so that the sum has one owner and nothing is borrowed meanwhile.
    match SUMS.with_borrow_mut(|map| map.get_mut(&node.value).map(Option::take)) {
        Some(sum) => {
            let sum = add(sum.map(downcast::<B>));
            SUMS.with_borrow_mut(|map| map.insert(node.value, Some(Box::new(sum))));
        }
        None => grads.register::<B>(node, add(None)),
    }
}
