//! Dispatch by its definition: plain loops, sums in f64.

/// Slots in the order of their experts.
#[derive(Clone, Debug)]
pub struct Sorted {
    /// Slot of each sorted row.
    pub slot: Vec<usize>,
    /// Sorted row of each slot.
    pub position: Vec<usize>,
    /// First row of each expert, and the end of the last one.
    pub offsets: Vec<usize>,
    /// Choices of a token.
    pub k: usize,
}

impl Sorted {
    /// Sorts the slots of `experts [n, k]`.
    pub fn new(experts: &[i32], k: usize, n_experts: usize) -> Self {
        let key = |slot: usize| usize::try_from(experts[slot]).map_or(n_experts, |expert| expert.min(n_experts));
        let mut slot: Vec<usize> = (0..experts.len()).collect();
        slot.sort_by_key(|&slot| (key(slot), slot));
        let mut position = vec![0; slot.len()];
        for (row, &slot) in slot.iter().enumerate() {
            position[slot] = row;
        }
        let before = |expert: usize| (0..experts.len()).filter(|&slot| key(slot) < expert).count();
        let offsets = (0..=n_experts).map(before).collect();
        Self { slot, position, offsets, k }
    }

    /// Rows that belong to an expert.
    pub fn n_live(&self) -> usize {
        self.offsets.last().copied().unwrap_or(0)
    }

    /// `xs [n·k, d]` from `x [n, d]`.
    pub fn gather(&self, x: &[f64], d: usize) -> Vec<f64> {
        let mut out = vec![0.0; self.slot.len() * d];
        for row in 0..self.n_live() {
            let token = self.slot[row] / self.k;
            out[row * d..(row + 1) * d].copy_from_slice(&x[token * d..(token + 1) * d]);
        }
        out
    }

    /// Gradient of `x [n, d]`.
    pub fn gather_backward(&self, dy: &[f64], d: usize) -> Vec<f64> {
        let mut dx = vec![0.0; self.slot.len() / self.k * d];
        for row in 0..self.n_live() {
            for c in 0..d {
                dx[self.slot[row] / self.k * d + c] += dy[row * d + c];
            }
        }
        dx
    }

    /// `out [n, d]` from `y [n·k, d]` and `weights [n, k]`.
    pub fn combine(&self, y: &[f64], weights: &[f64], d: usize) -> Vec<f64> {
        let mut out = vec![0.0; self.slot.len() / self.k * d];
        for row in 0..self.n_live() {
            for c in 0..d {
                out[self.slot[row] / self.k * d + c] += weights[self.slot[row]] * y[row * d + c];
            }
        }
        out
    }

    /// `(dy, dweights)`.
    pub fn combine_backward(&self, dout: &[f64], y: &[f64], weights: &[f64], d: usize) -> (Vec<f64>, Vec<f64>) {
        let (mut dy, mut dweights) = (vec![0.0; y.len()], vec![0.0; weights.len()]);
        for row in 0..self.n_live() {
            let slot = self.slot[row];
            for c in 0..d {
                let upstream = dout[slot / self.k * d + c];
                dy[row * d + c] = weights[slot] * upstream;
                dweights[slot] += y[row * d + c] * upstream;
            }
        }
        (dy, dweights)
    }
}
