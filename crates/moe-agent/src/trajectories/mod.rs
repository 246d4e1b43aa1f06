//! Trajectories: conversations in which a model repairs or writes code with the tools, every call of which was executed.
//!
//! What a model of these conversations thinks is put together from sentences and the facts of the case; what the tools say
//! is what they said. A trajectory is kept only if its last run of the tests passes. `replay` executes a share of them again
//! from scratch and compares every result.

mod bench;
mod change;
mod config;
mod error;
mod feature;
mod fix;
mod generate;
mod lints;
mod random;
mod record;
mod replay;
mod source;
mod state;
mod words;

pub use config::Config;
pub use error::TrajectoryError;
pub use generate::{Manifest, generate};
pub use record::{ExecutedCall, Finished, Kind, Trajectory};
pub use replay::{Difference, Replayed, replay};
pub(crate) use words::short_request;
