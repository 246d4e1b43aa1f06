//! Hugging Face files: the only place that knows their names, keys and formats.
//!
//! In memory, projections that are computed together are one leaf (`qkv_proj`, `gate_up_proj`); on disk they are the
//! separate tensors that transformers expects, row block by row block.

pub mod config_json;
pub mod folder;
pub mod json;
pub mod names;
mod nf4;
mod stored;
pub mod tensor_file;

pub(crate) use config_json::validate_dimensions;
pub use config_json::{FloatType, generation_config};
pub(crate) use folder::{Checkpoint, Numbers};
pub use folder::{LoadOptions, PackedExperts, SaveOptions, has_packed_experts, read_config};
pub use names::{LeafMap, Part, hf_shapes, leaf_map, split_leaf};
pub(crate) use stored::{decode as decode_experts, encode as encode_experts};
pub use tensor_file::{TensorFile, write_tensors};
