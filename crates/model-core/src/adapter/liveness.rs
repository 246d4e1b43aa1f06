//! Whether every adapter parameter really trains, and nothing else does.

use std::collections::BTreeMap;

use burn::tensor::TensorData;
use burn::tensor::backend::Backend;

use crate::error::ModelError;
use crate::leaves::NamedLeaf;

/// The sum of squares of every leaf's gradients over some steps, by leaf name.
pub type GradientNorms = BTreeMap<String, f64>;

/// How many names an error lists.
const N_NAMES: usize = 6;

/// Checks a model before and after some training steps: every adapter leaf got a finite gradient that is not zero and
/// changed, and every other leaf is the same bit for bit.
///
/// `before` and `after` are [`crate::Decoder::leaves`] with the adapter attached. Take at least two steps: with B zero,
/// the first gradient of A is zero in any healthy adapter.
///
/// # Errors
/// [`ModelError::AdapterInert`] names the leaves, [`ModelError::NoAdapter`] when there are none.
///
/// # Panics
/// When the two lists are not of the same model.
pub fn check_liveness<B: Backend>(
    before: &[NamedLeaf<B>],
    after: &[NamedLeaf<B>],
    gradients: &GradientNorms,
) -> Result<(), ModelError> {
    let names = |leaves: &[NamedLeaf<B>]| leaves.iter().map(|leaf| leaf.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(before), names(after), "liveness compares one model with itself");
    if !before.iter().any(NamedLeaf::is_adapter) {
        return Err(ModelError::NoAdapter { action: "checking that the adapter trains" });
    }
    let (mut without_gradient, mut still, mut thawed) = (Vec::new(), Vec::new(), Vec::new());
    for (old, new) in std::iter::zip(before, after) {
        let same = data(old).as_bytes() == data(new).as_bytes();
        let gradient = gradients.get(&old.name).copied().unwrap_or(0.0);
        if !old.is_adapter() {
            if !same {
                thawed.push(&*old.name);
            }
            continue;
        }
        if !(gradient.is_finite() && gradient > 0.0) {
            without_gradient.push(&*old.name);
        }
        if same {
            still.push(&*old.name);
        }
    }
    report("expected every adapter leaf to get a finite gradient that is not zero", &without_gradient)?;
    report("expected every adapter leaf to change", &still)?;
    report("expected every leaf outside the adapter to stay", &thawed)
}

fn data<B: Backend>(leaf: &NamedLeaf<B>) -> TensorData {
    leaf.leaf.clone().into_data()
}

fn report(expected: &'static str, names: &[&str]) -> Result<(), ModelError> {
    if names.is_empty() {
        return Ok(());
    }
    let shown = names[..names.len().min(N_NAMES)].join(", ");
    Err(ModelError::AdapterInert { expected, n_leaves: names.len(), names: shown })
}
