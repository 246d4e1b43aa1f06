//! gates-eval
