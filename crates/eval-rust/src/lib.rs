//! eval-rust
