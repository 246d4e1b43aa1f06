//! stage-pretrain
