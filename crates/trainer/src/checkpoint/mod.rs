//! Checkpoints: committed whole or not at all, verified when read, never deleted when bad.
//!
//! A save writes `step-N.tmp-<nonce>`, hashes and syncs every file, writes `manifest.json`, syncs it and the folders,
//! renames to `step-N` and syncs the parent. Only then are older checkpoints removed, and only after the new one was
//! read back. Loading goes from the newest down to the first whose every hash holds; a bad one is renamed to
//! `step-N.bad-<i>`, so that somebody can look at it.
//!
//! The loop does not wait for it: the copy to the host is made beside the next step where the device can do that, the protocol
//! runs on a thread of its own, one save at a time, and only the last save of a run is waited for.

mod contents;
mod disk;
mod manifest;
mod parts;
mod store;

pub(crate) use parts::copy_companions;

pub use disk::{Disk, Hook, Operation};
pub use manifest::{FileEntry, Identity, MANIFEST, Manifest};
pub use parts::{CheckpointWriter, Checkpointer, ModelFiles, load_parts};
pub use store::CheckpointStore;

#[cfg(test)]
mod tests;
