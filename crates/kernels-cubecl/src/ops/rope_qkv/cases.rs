//! Cases of the rotary embedding.

use super::reference;
use crate::cases::{Check, Fill, Runner};
use crate::tolerance::Kind;
use crate::{HeadLayout, LmBackend};

/// One case.
#[derive(Clone, Debug)]
pub struct Case {
    /// Short name.
    pub name: &'static str,
    /// Batch and tokens.
    pub rows: [usize; 2],
    /// Heads of a row.
    pub heads: HeadLayout,
    /// Numbers in `qkv`.
    pub fill: Fill,
}

/// The table.
pub fn cases() -> Vec<Case> {
    let case = |name, rows, [n_heads, n_kv_heads, d_head]: [usize; 3], fill| Case {
        name,
        rows,
        heads: HeadLayout { n_heads, n_kv_heads, d_head },
        fill,
    };
    vec![
        case("typical", [2, 33], [4, 2, 64], Fill::Typical),
        case("ragged", [3, 7], [6, 3, 22], Fill::Typical),
        case("one kv head", [2, 5], [5, 1, 16], Fill::Typical),
        case("many rows", [4, 200], [2, 2, 8], Fill::Typical),
        case("size 1", [1, 1], [1, 1, 2], Fill::Typical),
        case("no tokens", [2, 0], [2, 1, 4], Fill::Typical),
        case("zero", [2, 3], [2, 1, 8], Fill::Zero),
        case("huge", [2, 3], [2, 1, 8], Fill::Huge),
        case("nan", [2, 3], [2, 1, 8], Fill::WithNan),
        case("infinite", [2, 3], [2, 1, 8], Fill::WithInfinities),
    ]
}

/// Runs one case forward and backward.
pub fn run_case<B: LmBackend>(case: &Case, runner: &mut Runner<B>) {
    runner.begin(case.name);
    let ([b, t], heads) = (case.rows, case.heads);
    let (width, half) = (heads.width(), heads.d_head / 2);
    let (qkv, qkv64) = runner.tracked(case.fill.values(1, b * t * width), [b, t, width]);
    let (dy, dy64) = runner.constant(Fill::Typical.values(2, b * t * width), [b, t, width]);
    let angles = Fill::Typical.values(3, b * t * half);
    // Not quite rotations, so that a backward pass with the inverse in place of the transpose fails.
    let (cos, cos64) = runner.constant(angles.iter().map(|x| 1.25 * x.cos()).collect(), [b, t, half]);
    let (sin, sin64) = runner.constant(angles.iter().map(|x| 1.25 * x.sin()).collect(), [b, t, half]);
    let y = crate::rope_qkv(qkv.clone(), cos, sin, heads);
    runner.check("y", y.clone().inner(), &reference::forward(&qkv64, [&cos64, &sin64], heads), Kind::Elementwise);
    if !runner.differentiates(b * t) {
        return;
    }
    let grads = runner.backward(y, dy);
    runner.check_grad("dqkv", &qkv, &grads, &reference::backward(&dy64, [&cos64, &sin64], heads), Kind::Elementwise);
}

/// Runs the table.
pub fn run<B: LmBackend>(device: &B::Device) -> Vec<Check> {
    let mut runner = Runner::<B>::new("rope_qkv", device);
    cases().iter().for_each(|case| run_case(case, &mut runner));
    runner.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finite_difference::assert_gradient;

    #[test]
    fn reference_gradient_matches_finite_differences() {
        let (m, heads) = (2, HeadLayout { n_heads: 2, n_kv_heads: 1, d_head: 4 });
        let wide = |seed, n| Fill::Typical.values(seed, n).into_iter().map(f64::from).collect::<Vec<_>>();
        let (qkv, dy) = (wide(1, m * heads.width()), wide(2, m * heads.width()));
        let (cos, sin) = (wide(3, m * 2), wide(4, m * 2));
        let dqkv = reference::backward(&dy, [&cos, &sin], heads);
        assert_gradient(&qkv, &dqkv, &dy, |qkv| reference::forward(qkv, [&cos, &sin], heads));
    }

    /// Position 0 is not turned, and the value heads never are.
    #[test]
    fn value_heads_and_angle_zero_stay() {
        let heads = HeadLayout { n_heads: 1, n_kv_heads: 1, d_head: 2 };
        let y = reference::forward(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [&[0.0], &[1.0]], heads);
        assert_eq!(y, [-2.0, 1.0, -4.0, 3.0, 5.0, 6.0]);
        let x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        assert_eq!(reference::forward(&x, [&[1.0], &[0.0]], heads), x);
    }
}
