//! Checkpoints: committed whole or not at all, verified when read, never deleted when bad.
//!
//! A save writes `step-N.tmp-<pid>`, hashes every file, writes `manifest.json`, syncs files and folders, renames to
//! `step-N` and syncs the parent. Only then are older checkpoints removed, and only after the new one was read back.
//! Loading goes from the newest down to the first whose every hash holds; a bad one is renamed to `*.bad`, so that
//! somebody can look at it.

mod manifest;
mod store;

pub use manifest::{FileEntry, Identity, Manifest};
pub use store::{CheckpointStore, Checkpointer, ModelFiles, load_parts};

#[cfg(test)]
mod tests;
