//! stage-sft
