//! Cases of the output head; the token log-probabilities use the same table.

use super::{IGNORED, Operands, reference};
use crate::LmBackend;
use crate::cases::{Check, Fill, Runner, whole_numbers};
use crate::tolerance::Kind;

/// Which rows take part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Active {
    /// All of them.
    All,
    /// Every third row.
    Some,
    /// None.
    None,
}

/// One case.
#[derive(Clone, Debug)]
pub struct Case {
    /// Short name.
    pub name: &'static str,
    /// Rows, width, vocabulary.
    pub dims: [usize; 3],
    /// Rows that have a target.
    pub active: Active,
    /// Weight of the squared log-sum-exp.
    pub z_loss: f32,
    /// Numbers in `x`.
    pub fill: Fill,
    /// Factor on the head; large ones make probabilities of 0 and 1.
    pub head: f32,
}

impl Case {
    /// `[m, d]`.
    pub fn x(&self) -> Vec<f32> {
        self.fill.values(1, self.dims[0] * self.dims[1])
    }

    /// `[v, d]`.
    pub fn weight(&self) -> Vec<f32> {
        let numbers = Fill::Typical.values(2, self.dims[2] * self.dims[1]);
        numbers.into_iter().map(|x| x * self.head).collect()
    }

    /// `[m]`.
    pub fn targets(&self) -> Vec<i32> {
        let mut targets = whole_numbers(3, self.dims[0], self.dims[2]);
        for (m, target) in targets.iter_mut().enumerate() {
            let active = match self.active {
                Active::All => true,
                Active::Some => m % 3 == 1,
                Active::None => false,
            };
            if !active {
                *target = IGNORED;
            }
        }
        targets
    }

    /// `[m]`: every fifth is 0.
    pub fn weights(&self) -> Vec<f32> {
        (0..self.dims[0]).map(|m| (m % 5) as f32 * 0.5).collect()
    }

    /// Upstream gradient of a number per row, every seventh 0.
    pub fn upstream(&self) -> Vec<f32> {
        let numbers = Fill::Typical.values(4, self.dims[0]);
        numbers.into_iter().enumerate().map(|(m, g)| if m % 7 == 6 { 0.0 } else { g }).collect()
    }

    /// True where gradients are worth comparing: non-finite ones spread as `0·NaN`, and those of logits beyond the range of
    /// the exponential are rounding errors.
    pub fn has_gradient(&self) -> bool {
        matches!(self.fill, Fill::Typical | Fill::Zero | Fill::Tiny)
    }
}

/// The table.
pub fn cases() -> Vec<Case> {
    let case = |name, dims: [usize; 3], active, z_loss| {
        let head = 1.0 / (dims[1] as f32).sqrt();
        Case { name, dims, active, z_loss, fill: Fill::Typical, head }
    };
    let filled = |name, fill| Case { fill, ..case(name, [7, 16, 300], Active::All, 0.0) };
    vec![
        case("typical", [70, 64, 777], Active::All, 0.0),
        case("z-loss", [33, 48, 515], Active::All, 1e-2),
        case("some rows", [50, 32, 256], Active::Some, 1e-4),
        case("two chunks", [530, 4, 9], Active::All, 0.0),
        case("ragged", [13, 7, 257], Active::Some, 0.0),
        case("no target", [6, 8, 20], Active::None, 1e-2),
        case("no rows", [0, 8, 20], Active::All, 0.0),
        case("one token", [5, 8, 1], Active::All, 0.0),
        case("size 1", [2, 1, 1], Active::All, 0.5),
        filled("zero", Fill::Zero),
        filled("huge", Fill::Huge),
        filled("tiny", Fill::Tiny),
        filled("nan", Fill::WithNan),
        Case { head: 3.0, ..case("sharp", [40, 32, 300], Active::All, 1e-3) },
    ]
}

/// Runs one case forward and, with a factor on the loss, backward.
pub fn run_case<B: LmBackend>(case: &Case, runner: &mut Runner<B>) {
    runner.begin(case.name);
    let [m, d, v] = case.dims;
    let (x, x64) = runner.tracked(case.x(), [m, d]);
    let (weight, weight64) = runner.tracked(case.weight(), [v, d]);
    let (weights, weights64) = runner.constant(case.weights(), [m]);
    let targets = case.targets();
    let targets_tensor = runner.ints(targets.clone(), [m]);
    let head = crate::linear_cross_entropy(x.clone(), weight.clone(), targets_tensor, weights, case.z_loss);
    let operands = Operands { x: &x64, weight: &weight64, targets: &targets, d, v };
    let sums = reference::forward(&operands, &weights64, f64::from(case.z_loss));
    runner.check("loss", head.loss.clone().inner(), &[sums.loss], Kind::Product);
    runner.check("nll", head.nll.inner(), &[sums.nll], Kind::Product);
    if !case.has_gradient() {
        return;
    }
    let grads = (head.loss * 0.5).backward();
    let (dx, dw) = reference::backward(&operands, &weights64, f64::from(case.z_loss));
    let half = |x: Vec<f64>| x.into_iter().map(|x| x * 0.5).collect::<Vec<_>>();
    runner.check_grad("dx", &x, &grads, &half(dx), Kind::Product);
    runner.check_grad("dw", &weight, &grads, &half(dw), Kind::Product);
}

/// Runs the table.
pub fn run<B: LmBackend>(device: &B::Device) -> Vec<Check> {
    let mut runner = Runner::<B>::new("linear_cross_entropy", device);
    cases().iter().for_each(|case| run_case(case, &mut runner));
    runner.finish()
}
