//! The layers of a decoder, one file each; a layer lists its parameters and can be rebuilt from such a list.

pub mod attention;
pub mod block;
pub mod linear;
pub mod mlp;
pub mod norm;

pub use attention::Attention;
pub use block::Block;
pub use linear::{Linear, Lora, Segment};
pub use mlp::Mlp;
pub use norm::RmsNorm;
