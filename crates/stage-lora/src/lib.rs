//! stage-lora
