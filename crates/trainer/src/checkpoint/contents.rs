//! The tensors that a checkpoint holds: on the device, on their way, and on the host.

use burn::tensor::{Tensor, TensorData};
use kernels_cubecl::{Cpu, HostCopy, KernelError, Leaf, LmBackend, Packed, Piece};
use model_core::Decoder;

use super::parts::ModelFiles;
use crate::optim::hollow;
use crate::scaling::Scaling;
use crate::train::Parts;

/// Tensors of a checkpoint, in one order.
pub(super) struct Contents<T> {
    /// The model's leaves in their order; nothing for those of a frozen base.
    leaves: Vec<Option<T>>,
    /// The optimizer's state with its names in the file.
    optimizer: Vec<(String, T)>,
    /// FP8 histories.
    histories: Vec<T>,
}

impl<T> Contents<T> {
    /// All tensors.
    pub(super) fn all(&self) -> impl Iterator<Item = &T> {
        let optimizer = self.optimizer.iter().map(|(_, tensor)| tensor);
        self.leaves.iter().flatten().chain(optimizer).chain(&self.histories)
    }

    fn try_map<U, E>(self, f: impl Fn(T) -> Result<U, E>) -> Result<Contents<U>, E> {
        let leaf = |leaf: Option<T>| leaf.map(&f).transpose();
        let state = |(name, tensor)| f(tensor).map(|tensor| (name, tensor));
        Ok(Contents {
            leaves: self.leaves.into_iter().map(leaf).collect::<Result<_, E>>()?,
            optimizer: self.optimizer.into_iter().map(state).collect::<Result<_, E>>()?,
            histories: self.histories.into_iter().map(&f).collect::<Result<_, E>>()?,
        })
    }
}

impl<B: LmBackend> Contents<Piece<B>> {
    /// What a checkpoint holds of the parts.
    pub(super) fn of(parts: &Parts<B>, files: &ModelFiles) -> Self {
        let whole = matches!(files, ModelFiles::Full);
        let leaves = parts.model.leaves().into_iter();
        Self {
            leaves: leaves.map(|named| (whole || named.trainable).then_some(Piece::Float(named.leaf))).collect(),
            optimizer: parts.optimizer.pieces(&parts.model),
            histories: parts.scaling.histories.iter().cloned().map(|h| Piece::Float(Leaf::Matrix(h))).collect(),
        }
    }

    /// Begins to copy everything.
    pub(super) fn copy(self) -> Contents<HostCopy> {
        let copies: Result<_, std::convert::Infallible> = self.try_map(|piece| Ok(piece.copy()));
        let Ok(copies) = copies;
        copies
    }
}

/// A checkpoint's contents on the host.
pub(super) struct Arrived {
    /// The model; hollow where it is frozen.
    pub(super) model: Decoder<Cpu>,
    /// The optimizer's state with its names in the file.
    pub(super) optimizer: Vec<(String, TensorData)>,
    /// What FP8 products scale by.
    pub(super) scaling: Scaling<Cpu>,
}

/// The model without its values, to be filled on the host.
pub(super) fn frame<B: LmBackend>(model: &Decoder<B>) -> Decoder<Cpu> {
    // Packed weights never train, so that a whole model has none.
    let packed = &mut |_: &Packed<B>| Packed::empty(&Default::default());
    model.map_backend(&mut |named| hollow::<B, Cpu>(&named.leaf, &Default::default()), packed)
}

impl Contents<HostCopy> {
    /// Waits for everything; the values stay in the memory that they were copied to.
    pub(super) fn wait(self, frame: &Decoder<Cpu>) -> Result<Arrived, KernelError> {
        let Contents { leaves, optimizer, histories } = self.try_map(HostCopy::wait)?;
        let filled = leaves.into_iter().zip(frame.leaves());
        let filled = filled.map(|(data, hollow)| data.map_or(hollow.leaf, on_host));
        let model = frame.with_leaves(filled.collect());
        let histories = histories.into_iter().map(|history| on_host(history).matrix()).collect();
        Ok(Arrived { model, optimizer, scaling: Scaling { histories } })
    }
}

/// The values as a leaf, in their element type.
fn on_host(data: TensorData) -> Leaf<Cpu> {
    let (device, dtype) = (Default::default(), data.dtype);
    match data.shape.len() {
        1 => Leaf::Vector(Tensor::from_data(data, (&device, dtype))),
        _ => Leaf::Matrix(Tensor::from_data(data, (&device, dtype))),
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::DType;

    use super::*;
    use crate::TrainConfig;
    use crate::config::MomentsKind;
    use crate::tests::tiny::{config, model, parts};

    #[test]
    fn values_keep_their_bits_and_their_type() {
        for data in
            [TensorData::from([1.5f32, -0.0, 3e-45]), TensorData::from([[1.5f32], [-2.0]]).convert_dtype(DType::BF16)]
        {
            assert_eq!(on_host(data.clone()).into_data(), data);
        }
    }

    /// A copy of a run is the run, and of a frozen model it has only what trains.
    #[test]
    fn a_copy_has_what_a_checkpoint_holds() {
        let parts = parts(model(), &TrainConfig { moments: MomentsKind::Packed, ..config(1) });
        let contents = Contents::of(&parts, &ModelFiles::Full);
        let bytes: usize = contents.all().map(Piece::n_bytes).sum();
        let n = parts.model.leaves().iter().map(|named| named.leaf.n_elements()).sum::<usize>();
        assert!(bytes > 6 * n && bytes < 8 * n, "{bytes} bytes for {n} parameters with moments of two bytes");
        let arrived = contents.copy().wait(&frame(&parts.model)).unwrap();
        assert_eq!(arrived.optimizer.len(), 4 * parts.model.leaves().len());
        for (got, want) in arrived.model.leaves().into_iter().zip(parts.model.leaves()) {
            assert_eq!((got.name, got.leaf.into_data()), (want.name, want.leaf.into_data()));
        }
    }
}
