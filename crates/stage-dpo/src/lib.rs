//! stage-dpo
