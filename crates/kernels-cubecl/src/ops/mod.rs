//! One folder per op: maths and shapes in `mod.rs`, the f64 definition in `reference.rs`, the CPU kernel in `cpu.rs`, cases in `cases.rs`.

pub mod adamw;
