//! Models of the LLaMA and GPT-OSS families: architecture, layers, Hugging Face files, adapters, chat formats and generation.
//!
//! Start at [`Decoder`]: load one with [`Decoder::load`], make a batch with [`Rows`], call [`Decoder::hidden`], and hand
//! the hidden states with [`Decoder::head`] to one of the losses of `kernels-cubecl`.

pub mod account;
pub mod adapter;
pub mod chat;
pub mod commit;
pub mod config;
pub mod decoder;
pub mod error;
pub mod generate;
pub mod gguf;
pub mod harmony;
pub mod hf;
pub mod init;
pub mod kv_cache;
pub mod layers;
pub mod leaves;
pub mod random;
pub mod rope;
pub mod router;
pub mod rows;
pub mod tokenizer;

pub use adapter::LoraConfig;
pub use chat::{Chat, ChatFormat, ChatToken, Message, Role};
pub use config::{Experts, Family, GptOss, ModelConfig};
pub use decoder::{Decoder, Replay};
pub use error::ModelError;
pub use generate::{Sampling, generate};
pub use harmony::Harmony;
pub use kv_cache::KvCache;
pub use layers::{Linear, Lora, Routing, Segment};
pub use leaves::{LeafReader, NamedLeaf};
pub use rows::{Input, Rows};
pub use tokenizer::Tokenizer;
