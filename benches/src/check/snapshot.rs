//! Copies of tensors for the host while the device works and then changes the tensors in place: each must have the values of the
//! moment when it was begun, bit for bit.

use std::time::Duration;

use burn::tensor::{DType, Distribution, Int, Tensor, TensorData};
use kernels_cubecl::{HostCopy, HostReserve, Leaf, LmBackend, Piece, add_assign, linear};

/// Products between the beginning and the end of the copies: none, so that all of them are left to the end; some; so many that
/// none is left.
const PRODUCTS: [usize; 3] = [0, 3, 60];
/// Rounds with the memory of the one before.
const ROUNDS: usize = 2;

/// The tensors that are copied: large ones, small ones, and words.
struct State<B: LmBackend> {
    matrices: Vec<Tensor<B, 2>>,
    gains: Tensor<B, 1>,
    moments: Tensor<B, 2>,
    words: Tensor<B, 1, Int>,
}

impl<B: LmBackend> State<B> {
    fn new(n: usize, device: &B::Device) -> Self {
        let normal = Distribution::Normal(0.0, 1.0);
        let words: Vec<i32> = (0..n * n + 3).map(|i| (i as i32).wrapping_mul(0x9e37_79b1_u32 as i32)).collect();
        let moments: Vec<f32> = (0..n * n).map(|i| (i as f32).sin()).collect();
        Self {
            matrices: (0..3).map(|i| add(Tensor::random([n, n + 8 * i], normal, device))).collect(),
            gains: add(Tensor::random([n + 1], normal, device)),
            moments: add(Tensor::from_data(TensorData::new(moments, [n, n]), (device, DType::F32))),
            words: Tensor::from_data(TensorData::new(words, [n * n + 3]), (device, DType::I32)),
        }
    }

    fn pieces(&self) -> Vec<(&'static str, Piece<B>)> {
        let float = |leaf| Piece::Float(leaf);
        let mut pieces: Vec<_> =
            self.matrices.iter().map(|matrix| ("matrix", float(Leaf::Matrix(matrix.clone())))).collect();
        pieces.push(("gains", float(Leaf::Vector(self.gains.clone()))));
        pieces.push(("moments", float(Leaf::Matrix(self.moments.clone()))));
        pieces.push(("words", Piece::Int(self.words.clone())));
        pieces
    }

    /// The values, read while the loop waits.
    fn read(&self) -> Vec<TensorData> {
        let mut values: Vec<_> = self.matrices.iter().map(|matrix| matrix.to_data()).collect();
        values.extend([self.gains.to_data(), self.moments.to_data(), self.words.to_data()]);
        values
    }

    /// Changes every float in place, as an update of the optimizer does; the words get other memory, and theirs is free.
    fn change(self) -> Self {
        let Self { matrices, gains, moments, words } = self;
        let words = words.add_scalar(1);
        Self { matrices: matrices.into_iter().map(add).collect(), gains: add(gains), moments: add(moments), words }
    }
}

/// Twice a tensor, in its memory; dense in any case.
fn add<B: LmBackend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    let other = x.clone().mul_scalar(1.0);
    add_assign(x, other)
}

/// Compares copies of tensors of about `n · n` elements; gives the number of comparisons and what missed.
pub(super) fn compare<B: LmBackend>(n: usize, device: &B::Device) -> (usize, Vec<String>) {
    let mut state = State::<B>::new(n, device);
    let sizes: Vec<usize> = state.pieces().iter().map(|(_, piece)| piece.n_bytes()).collect();
    let (mut checks, mut misses) = (1, Vec::new());
    let beside = match B::lm_reserve_host(device, &sizes, 1 << 32) {
        HostReserve::Unneeded => false,
        HostReserve::Begun => true,
        HostReserve::TooMuch => {
            misses.push(format!("{sizes:?} bytes to pin were taken for more than 4 GiB"));
            false
        }
    };
    for products in PRODUCTS.into_iter().cycle().take(ROUNDS * PRODUCTS.len()) {
        let want = state.read();
        let (names, copies): (Vec<_>, Vec<HostCopy>) =
            state.pieces().into_iter().map(|(name, piece)| (name, piece.copy())).unzip();
        let n_beside = copies.iter().filter(|copy| !copy.is_here()).count();
        checks += 1;
        if n_beside != if beside { copies.len() } else { 0 } {
            misses
                .push(format!("{products} products: {n_beside} of {} copies were made beside the work", copies.len()));
        }
        // Whoever waits does so from the beginning, as the thread that writes a checkpoint.
        let waiting = std::thread::spawn(move || copies.into_iter().map(HostCopy::wait).collect::<Vec<_>>());
        let result = work::<B>(n, products, device);
        B::lm_end_copies(device);
        state = state.change();
        let changed = state.read();
        drop(result);
        let Ok(copies) = waiting.join() else {
            misses.push(format!("{products} products: the thread that waits panicked"));
            continue;
        };
        for (i, (name, got)) in names.into_iter().zip(copies).enumerate() {
            checks += 1;
            match got {
                Ok(got) if got == want[i] && got != changed[i] => {}
                Ok(got) if got == want[i] => misses.push(format!("{products} products: {name} {i} did not change")),
                Ok(_) => misses.push(format!("{products} products: {name} {i} differs from the values of its moment")),
                Err(error) => misses.push(format!("{products} products: {name} {i}: {error}")),
            }
        }
    }
    (checks, misses)
}

/// Work beside the copies, with a tensor that is parked meanwhile.
fn work<B: LmBackend>(n: usize, products: usize, device: &B::Device) -> Tensor<B, 2> {
    let x = Tensor::<B, 2>::random([n, n], Distribution::Normal(0.0, 1.0), device);
    let mut parked = B::lm_park(x.clone().reshape([1, n, n]));
    let mut y = x.clone();
    for _ in 0..products {
        y = linear(y, x.clone()).mul_scalar(1.0 / n as f32);
    }
    parked.leave();
    std::thread::sleep(Duration::from_millis(1));
    y + parked.take().reshape([n, n])
}
