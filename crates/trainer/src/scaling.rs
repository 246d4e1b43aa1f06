//! Delayed scaling of FP8 products: the peaks of earlier passes, which the scales of the next pass come from.
//!
//! Every projection of the blocks has a history of the passes before. A micro-batch is one pass: it takes its scales from the
//! history and hands the history on to the next micro-batch with its own peaks in front. Nothing is read on the way. A step that
//! is left out leaves the history as it was.

use std::path::Path;

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use kernels_cubecl::LmBackend;
use model_core::hf::tensor_file::Values;
use model_core::hf::{FloatType, TensorFile, write_tensors};
use model_core::{Decoder, ModelConfig};

use crate::{TrainConfig, TrainError};

/// Rows of a history: input, weight, gradient of the output.
const ROWS: usize = 3;
/// Projections of a block.
const PROJECTIONS: usize = 4;
/// Name of the one tensor in the file.
const TENSOR: &str = "fp8.histories";

/// The histories of all projections; none unless the run scales with delay.
#[derive(Clone, Debug)]
pub struct Scaling<B: Backend> {
    /// `[3, n]` in f32 each, the newest pass in column 0, in the order of [`Decoder::linears`].
    pub histories: Vec<Tensor<B, 2>>,
}

impl<B: LmBackend> Scaling<B> {
    /// Before the first pass: zeros, which know nothing, so that this pass scales by its own peaks.
    pub fn new(model: &Decoder<B>, config: &TrainConfig, device: &B::Device) -> Self {
        let zeros = |n| Tensor::zeros([ROWS, n], (device, DType::F32));
        let n_histories = config.history().map_or(0, |_| model.linears().len());
        Self { histories: (0..n_histories).filter_map(|_| config.history().map(zeros)).collect() }
    }

    /// Writes the histories as one tensor `[projections, 3, n]`.
    ///
    /// # Errors
    /// As [`write_tensors`].
    pub(crate) fn save(&self, path: &Path) -> Result<(), TrainError> {
        let n = self.histories.first().map_or(0, |history| history.dims()[1]);
        let mut values: Vec<f32> = Vec::with_capacity(self.histories.len() * ROWS * n);
        for history in &self.histories {
            values.extend(history.to_data().convert::<f32>().iter::<f32>());
        }
        let dims = vec![self.histories.len(), ROWS, n];
        Ok(write_tensors(path, vec![(TENSOR.to_owned(), dims, Values::Float(&values))], FloatType::F32)?)
    }

    /// Reads what [`Scaling::save`] wrote for the same model and configuration.
    ///
    /// # Errors
    /// A file that is missing, or whose histories are those of other projections or of another length.
    pub(crate) fn load(
        model: &Decoder<B>,
        config: &TrainConfig,
        path: &Path,
        device: &B::Device,
    ) -> Result<Self, TrainError> {
        let Some(n) = config.history() else { return Ok(Self { histories: Vec::new() }) };
        let n_histories = model.linears().len();
        let values = TensorFile::open(path)?.read_weight(TENSOR, &[n_histories, ROWS, n], false)?;
        let history = |row: &[f32]| Tensor::from_data(TensorData::new(row.to_vec(), [ROWS, n]), (device, DType::F32));
        Ok(Self { histories: values.chunks_exact(ROWS * n).map(history).collect() })
    }
}

/// Bytes of the histories of a model on the device: those of the step's start, which stay until it is known to be finite, and
/// those of two passes.
pub(crate) fn planned_bytes(model: &ModelConfig, config: &TrainConfig) -> u64 {
    let one = |n| (4 * PROJECTIONS * model.n_layers * ROWS * n) as u64;
    3 * config.history().map_or(0, one)
}
