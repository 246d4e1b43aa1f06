//! Passes over a small model with and without offloaded inputs: loss and gradients must be the same bit for bit.

use anyhow::Result;
use kernels_cubecl::{Leaf, LmBackend, Shelf, Traffic, backward_into};
use model_core::{Decoder, ModelConfig, Replay, Rows};
use trainer::MicroBatch;
use trainer::objective::{NextToken, Objective, RouterWeights};

use crate::train::random_model;

/// Blocks of the model.
const BLOCKS: usize = 12;
/// Passes whose gradients are summed, as the micro-batches of a step.
const PASSES: usize = 3;
const VOCAB: usize = 512;
/// Blocks that are offloaded: none, all, all again with the memory that is pinned by then, some, none.
const OFFLOADED: [usize; 5] = [0, BLOCKS, BLOCKS, 5, 0];

/// The bytes of a loss or a gradient, with a name.
type Named = (String, Vec<u8>);

/// Compares the passes on rows of `seq` tokens; gives the number of comparisons and what missed.
pub(super) fn compare<B: LmBackend>(seq: usize, device: &B::Device) -> (usize, Vec<String>) {
    let config = ModelConfig { n_layers: BLOCKS, max_seq_len: seq, ..ModelConfig::from_depth(4, VOCAB) };
    let model = random_model::<B>(&config, device);
    let (mut checks, mut misses) = (0, Vec::new());
    let mut want: Option<Vec<Named>> = None;
    for offloaded in OFFLOADED {
        let got = match passes(&model, seq, offloaded, device) {
            Ok((got, moved)) => {
                checks += 1;
                let expected = Traffic { to_host: offloaded * PASSES, to_device: offloaded * PASSES };
                if moved != expected {
                    misses.push(format!("offload of {offloaded}: {moved:?} were moved, expected {expected:?}"));
                }
                got
            }
            Err(error) => {
                misses.push(format!("offload of {offloaded}: {error}"));
                continue;
            }
        };
        let want = want.get_or_insert_with(|| got.clone());
        for ((name, got), (_, want)) in got.iter().zip(want.iter()) {
            checks += 1;
            if got != want {
                let bytes = got.iter().zip(want).filter(|(got, want)| got != want).count();
                misses.push(format!("offload of {offloaded}: {name} differs in {bytes} of {} bytes", want.len()));
            }
        }
    }
    (checks, misses)
}

/// The losses of all passes and the sums of the gradients, and how many inputs were moved.
fn passes<B: LmBackend>(
    model: &Decoder<B>,
    seq: usize,
    offloaded: usize,
    device: &B::Device,
) -> Result<(Vec<Named>, Traffic)> {
    let tracked = model.to_autodiff();
    let (names, leaves): (Vec<String>, Vec<Leaf<_>>) = tracked.leaves().into_iter().map(|n| (n.name, n.leaf)).unzip();
    let mut sums = vec![None; leaves.len()];
    let mut losses = Vec::new();
    let shelf = Shelf::default();
    for pass in 0..PASSES {
        let ids = (0..2 * seq).map(|i| ((i * i + 7 * i * (pass + 1) + 3) % VOCAB) as i32).collect();
        let rows = Rows::from_segments(2, seq, ids, vec![0; 2 * seq])?;
        let batch = MicroBatch { rows, weights: vec![1.0; 2 * seq], pairs: Vec::new(), samples: Vec::new() };
        let replay = Replay { blocks: BLOCKS, offloaded, shelf: shelf.clone() };
        let loss = NextToken { z_loss: 1e-4, router: RouterWeights::NONE }.loss(&tracked, &batch, &replay, device)?;
        losses.push(loss.sum.clone().inner());
        backward_into(loss.sum, &leaves, &mut sums);
    }
    let losses = losses.into_iter().enumerate().map(|(i, loss)| (format!("loss {i}"), loss.into_data()));
    let sums = names.into_iter().zip(sums).filter_map(|(name, sum)| Some((name, sum?.into_data())));
    let bytes = losses.chain(sums).map(|(name, data)| (name, data.as_bytes().to_vec())).collect();
    Ok((bytes, shelf.traffic()))
}
