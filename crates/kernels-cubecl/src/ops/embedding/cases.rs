//! Cases of the embedding.

use super::reference;
use crate::LmBackend;
use crate::cases::{Check, Fill, Runner, whole_numbers};
use crate::tolerance::Kind;

/// One case.
#[derive(Clone, Debug)]
pub struct Case {
    /// Short name.
    pub name: &'static str,
    /// Batch and tokens.
    pub rows: [usize; 2],
    /// Height and width of the table.
    pub table: [usize; 2],
    /// Numbers in the table and in the upstream gradient.
    pub fill: Fill,
}

/// The table.
pub fn cases() -> Vec<Case> {
    let case = |name, rows, table, fill| Case { name, rows, table, fill };
    vec![
        case("typical", [2, 33], [100, 64], Fill::Typical),
        case("ragged", [3, 7], [11, 37], Fill::Typical),
        case("many repeats", [4, 300], [3, 16], Fill::Typical),
        case("one, two, three of a kind", [1, 2500], [2000, 8], Fill::Typical),
        case("wide", [2, 5], [7, 1030], Fill::Typical),
        case("size 1", [1, 1], [1, 1], Fill::Typical),
        case("no tokens", [1, 0], [4, 8], Fill::Typical),
        case("zero", [2, 3], [5, 8], Fill::Zero),
        case("huge", [2, 3], [5, 8], Fill::Huge),
        case("nan", [2, 3], [5, 8], Fill::WithNan),
        case("infinite", [2, 3], [5, 8], Fill::WithInfinities),
    ]
}

/// Runs one case forward and backward.
pub fn run_case<B: LmBackend>(case: &Case, runner: &mut Runner<B>) {
    runner.begin(case.name);
    let ([b, t], [v, d]) = (case.rows, case.table);
    let ids = whole_numbers(1, b * t, v);
    let (w, w64) = runner.tracked(case.fill.values(2, v * d), [v, d]);
    let (dy, dy64) = runner.constant(case.fill.values(3, b * t * d), [b, t, d]);
    let y = crate::embedding(w.clone(), runner.ints(ids.clone(), [b, t]));
    runner.check("y", y.clone().inner(), &reference::forward(&w64, &ids, d), Kind::Copy);
    if !runner.differentiates(b * t) {
        return;
    }
    let grads = runner.backward(y, dy.clone());
    let dw = reference::backward(&dy64, &ids, [v, d]);
    runner.check_grad("dw", &w, &grads, &dw, Kind::Reduction);
    let (acc, acc64) = runner.constant(Fill::Typical.values(4, v * d), [v, d]);
    let ids = runner.ints(ids, [b, t]).inner();
    let sum = crate::embedding_backward_acc(dy.inner(), ids, acc.inner());
    let want: Vec<f64> = acc64.iter().zip(dw).map(|(acc, dw)| acc + dw).collect();
    runner.check("dw onto a gradient", sum, &want, Kind::Reduction);
}

/// Runs the table.
pub fn run<B: LmBackend>(device: &B::Device) -> Vec<Check> {
    let mut runner = Runner::<B>::new("embedding", device);
    cases().iter().for_each(|case| run_case(case, &mut runner));
    runner.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finite_difference::assert_gradient;

    #[test]
    fn reference_gradient_matches_finite_differences() {
        let ([v, d], ids) = ([4, 3], [2, 0, 2, 3]);
        let wide = |seed, n| Fill::Typical.values(seed, n).into_iter().map(f64::from).collect::<Vec<_>>();
        let (w, dy) = (wide(1, v * d), wide(2, ids.len() * d));
        assert_gradient(&w, &reference::backward(&dy, &ids, [v, d]), &dy, |w| reference::forward(w, &ids, d));
    }
}
