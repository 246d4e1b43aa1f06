//! Keys and values of tokens already seen, and the decoder's step that uses them.
//!
//! Every row of the cache begins with its own first token, whatever the other rows hold, so a row's keys lie where they
//! would lie alone and a batch computes what single sequences compute.

use burn::tensor::backend::Backend;
use burn::tensor::{Bool, IndexingUpdateOp, Int, Tensor, TensorData};
use kernels_cubecl::{LmBackend, Spans, attention_cached, linear_f32};

use crate::config::ModelConfig;
use crate::decoder::Decoder;
use crate::layers::Attention;
use crate::rows::{PADDING, Rows, windowed};

/// Keys and values of one layer, `[b, capacity, kv_width]` each; zero where no token is.
#[derive(Debug)]
struct LayerCache<B: Backend> {
    keys: Tensor<B, 3>,
    values: Tensor<B, 3>,
}

/// Where new tokens go in the stores of all layers.
enum Places<B: Backend> {
    /// Behind as many old tokens in every row; with a mask `[b, t]` of what is padding, where there is any.
    Block { from: usize, padding: Option<Tensor<B, 2, Bool>> },
    /// Token `of[i]` of the batch, counted through all rows, becomes number `to[i]` of the store, counted likewise.
    Scattered { of: Tensor<B, 1, Int>, to: Tensor<B, 1, Int> },
}

/// The cache of a batch of sequences.
#[derive(Debug)]
pub struct KvCache<B: Backend> {
    layers: Vec<LayerCache<B>>,
    lengths: Vec<usize>,
    capacity: usize,
    device: B::Device,
}

impl<B: LmBackend> KvCache<B> {
    /// An empty cache for `rows` sequences of at most `capacity` tokens.
    ///
    /// # Panics
    /// When `rows` or `capacity` is 0.
    pub fn new(config: &ModelConfig, rows: usize, capacity: usize, device: &B::Device) -> Self {
        assert!(rows > 0 && capacity > 0, "cache of {rows} rows of {capacity} tokens");
        let zeros = || Tensor::zeros([rows, capacity, config.heads().kv_width()], device);
        let layers = (0..config.n_layers).map(|_| LayerCache { keys: zeros(), values: zeros() }).collect();
        Self { layers, lengths: vec![0; rows], capacity, device: device.clone() }
    }

    /// Tokens seen so far by each sequence.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Keeps these rows, in this order, and forgets the others.
    pub fn keep_rows(&mut self, rows: &[usize]) {
        if rows.iter().copied().eq(0..self.lengths.len()) {
            return;
        }
        let index: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
        let index = Tensor::<B, 1, Int>::from_data(TensorData::new(index, [rows.len()]), &self.device);
        for layer in &mut self.layers {
            layer.keys = layer.keys.clone().select(0, index.clone());
            layer.values = layer.values.clone().select(0, index.clone());
        }
        self.lengths = rows.iter().map(|&row| self.lengths[row]).collect();
    }

    /// The new tokens as padded rows, each at its own positions.
    fn rows(&self, new_tokens: &[&[u32]]) -> Rows {
        let seq_len = new_tokens.iter().map(|ids| ids.len()).max().unwrap_or(0);
        let (mut ids, mut positions, mut segments) = (Vec::new(), Vec::new(), Vec::new());
        for (row, &length) in std::iter::zip(new_tokens, &self.lengths) {
            for at in 0..seq_len {
                let token = row.get(at);
                ids.push(token.map_or(0, |&id| id as i32));
                positions.push(token.map_or(0, |_| (length + at) as i32));
                segments.push(if token.is_some() { 0 } else { PADDING });
            }
        }
        Rows { rows: new_tokens.len(), seq_len, ids, positions, segments }
    }

    /// Where the new tokens go.
    fn places(&self, rows: &Rows) -> Places<B> {
        let from = self.lengths[0];
        if self.lengths.iter().all(|length| *length == from) {
            let mask: Vec<bool> = rows.segments.iter().map(|segment| *segment == PADDING).collect();
            let padded = mask.contains(&true);
            let tensor = || Tensor::from_data(TensorData::new(mask, [rows.rows, rows.seq_len]), &self.device);
            return Places::Block { from, padding: padded.then(tensor) };
        }
        let real: Vec<usize> = (0..rows.ids.len()).filter(|&at| rows.segments[at] != PADDING).collect();
        let to = |&at: &usize| {
            let (row, at) = (at / rows.seq_len, at % rows.seq_len);
            (row * self.capacity + self.lengths[row] + at) as i32
        };
        let tensor = |values: Vec<i32>| Tensor::from_data(TensorData::new(values, [real.len()]), &self.device);
        Places::Scattered {
            of: tensor(real.iter().map(|&at| at as i32).collect()),
            to: tensor(real.iter().map(to).collect()),
        }
    }

    /// A query sees everything up to itself, or the last `window` of that; padding sees nothing.
    fn spans(&self, rows: &Rows, window: Option<usize>) -> Spans<B> {
        let end = |at: usize| {
            if rows.segments[at] == PADDING {
                0
            } else {
                (self.lengths[at / rows.seq_len] + at % rows.seq_len + 1) as i32
            }
        };
        let ends: Vec<i32> = (0..rows.ids.len()).map(end).collect();
        let starts = windowed(&vec![0; ends.len()], &ends, window.unwrap_or(usize::MAX));
        let tensor = |values| Tensor::from_data(TensorData::new(values, [rows.rows, rows.seq_len]), &self.device);
        Spans { start: tensor(starts), end: tensor(ends) }
    }
}

impl<B: LmBackend> LayerCache<B> {
    /// Writes new keys and values behind the old ones.
    fn append(&mut self, keys: Tensor<B, 3>, values: Tensor<B, 3>, places: &Places<B>) {
        put(&mut self.keys, keys, places);
        put(&mut self.values, values, places);
    }
}

/// The store is taken out of its place, so that it is owned alone and written in place.
///
/// Rows of unequal length take one call for all of them: each new token is added to the zeros at its place, which is as
/// good as written. So padding leaves zeros.
fn put<B: LmBackend>(store: &mut Tensor<B, 3>, new: Tensor<B, 3>, places: &Places<B>) {
    let ([rows, n_new, width], [_, capacity, _]) = (new.dims(), store.dims());
    let empty = Tensor::empty([1, 1, 1], &new.device());
    let filled = std::mem::replace(store, empty);
    *store = match places {
        Places::Block { from, padding } => {
            let new = match padding {
                Some(mask) => new.mask_fill(mask.clone().unsqueeze_dim::<3>(2).expand([rows, n_new, width]), 0.0),
                None => new,
            };
            filled.slice_assign([0..rows, *from..from + n_new, 0..width], new)
        }
        Places::Scattered { of, to } => {
            let tokens = new.reshape([rows * n_new, width]).select(0, of.clone());
            let flat = filled.reshape([rows * capacity, width]);
            flat.select_assign(0, to.clone(), tokens, IndexingUpdateOp::Add).reshape([rows, capacity, width])
        }
    };
}

impl<B: LmBackend> Decoder<B> {
    /// Runs new tokens of every cached sequence and returns the logits of what follows the last of them.
    ///
    /// # Shapes
    /// `[b, vocab_size]`.
    ///
    /// # Numerics
    /// f32 whatever the backend's float type: in bf16 the best tokens would often be equal.
    ///
    /// # Panics
    /// When the number of rows differs from the cache's, a row is empty, or the tokens do not fit into the cache.
    pub fn forward_cached(&self, cache: &mut KvCache<B>, new_tokens: &[&[u32]]) -> Tensor<B, 2> {
        let n_rows = cache.lengths.len();
        assert_eq!(new_tokens.len(), n_rows, "rows of new tokens and rows of the cache");
        assert!(new_tokens.iter().all(|ids| !ids.is_empty()), "every cached sequence needs a new token");
        let rows = cache.rows(new_tokens);
        let longest = cache.lengths.iter().max().map_or(0, |length| length + rows.seq_len);
        assert!(longest <= cache.capacity, "{longest} tokens in a cache of {}", cache.capacity);

        let mut input = rows.to_input::<B>(&self.config, &cache.device);
        input.spans = cache.spans(&rows, None);
        input.sliding = self.config.as_gpt_oss().map(|gpt_oss| cache.spans(&rows, Some(gpt_oss.window)));
        let places = cache.places(&rows);
        let hidden_btd = self.hidden_with(input.ids_bt.clone(), |layer, attention, x| {
            let qkv = attention.project(x, input.cos.clone(), input.sin.clone());
            attend(attention, qkv, &mut cache.layers[layer], &places, input.spans_of(attention))
        });
        for (length, ids) in std::iter::zip(&mut cache.lengths, new_tokens) {
            *length += ids.len();
        }
        linear_f32(last_rows(hidden_btd, new_tokens), self.head())
    }
}

/// Attention of new queries over the cached keys and their own.
fn attend<B: LmBackend>(
    attention: &Attention<B>,
    qkv: Tensor<B, 3>,
    layer: &mut LayerCache<B>,
    places: &Places<B>,
    spans: &Spans<B>,
) -> Tensor<B, 3> {
    let heads = attention.heads;
    let (q, kv) = (heads.q_width(), heads.kv_width());
    let [b, t, _] = qkv.dims();
    let part = |from: usize, width: usize| qkv.clone().slice([0..b, 0..t, from..from + width]);
    layer.append(part(q, kv), part(q + kv, kv), places);
    let (keys, values) = (layer.keys.clone(), layer.values.clone());
    let mixed = attention_cached(part(0, q), keys, values, spans, attention.sinks.clone(), heads, attention.scale);
    attention.output.forward(mixed)
}

/// The hidden state of every row's last real token, `[b, d_model]`.
fn last_rows<B: LmBackend>(hidden_btd: Tensor<B, 3>, new_tokens: &[&[u32]]) -> Tensor<B, 2> {
    let [b, t, d] = hidden_btd.dims();
    let last: Vec<i32> = new_tokens.iter().enumerate().map(|(row, ids)| (row * t + ids.len() - 1) as i32).collect();
    let index = Tensor::<B, 1, Int>::from_data(TensorData::new(last, [b]), &hidden_btd.device());
    hidden_btd.reshape([b * t, d]).select(0, index)
}
