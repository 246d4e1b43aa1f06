//! Runs untrusted programs: each in namespaces of its own, under limits, with a list of permitted system calls, as a user
//! that nothing else is.
//!
//! The launcher starts this program again as a helper, hands it a plan over a socket, gives it ids and control groups,
//! and watches the limits. The helper puts the layers up and becomes the command. Nothing is forked from a process with
//! threads, and no other program takes part.
//!
//! It fails closed: a layer that is missing refuses the run and is named, unless the caller listed it and something
//! stands in for it; then the outcome names it.
//!
//! What it does not do: it trusts the kernel; it opens no socket, so a program that listens on its own loopback fails; it
//! caps each file of a writable mount but not all of them together, so scratch folders are the place for what a program
//! builds; and `/proc/self/mountinfo` shows a program the host's paths of its mounts.

mod cgroup;
mod check;
mod collect;
mod error;
mod filter;
mod inside;
mod landlock_rules;
mod launch;
mod message;
mod probe;
mod sys;
mod types;
mod watch;

pub use check::{CheckReport, check};
pub use collect::{Caps, CollectError, collect, collect_without};
pub use error::{Layer, SandboxError};
pub use inside::helper_main;
pub use launch::{Sandbox, system_mounts};
pub use probe::{Finding, probe_main};
pub use types::{Command, End, Limits, Mount, Outcome, Run, Scratch};

/// Argument that makes `eval-rust` the helper of a sandbox.
pub const HELPER: &str = "__launch";

/// Argument that makes `eval-rust` try what a sandbox must refuse, as the command of [`check`].
pub const PROBE: &str = "__probe";
