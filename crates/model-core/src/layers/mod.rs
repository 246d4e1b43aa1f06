//! The layers of a decoder, one file each; a layer lists its parameters and can be rebuilt from such a list.

pub mod attention;
pub mod block;
pub mod feed_forward;
pub mod linear;
pub mod mlp;
pub mod moe;
pub mod norm;

pub use attention::{Attention, Normed};
pub use block::Block;
pub use feed_forward::FeedForward;
pub use kernels_cubecl::{ExpertLora, ExpertWeight};
pub use linear::{Linear, Lora, Segment};
pub use mlp::Mlp;
pub use moe::{ExpertLinear, Moe, Routing};
pub use norm::RmsNorm;
