//! model-core
