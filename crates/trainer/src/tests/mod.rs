//! Tests of the loop as a whole, on a model so small that hundreds of steps take a second.

mod accumulation;
mod defects;
mod finite;
mod liveness;
mod policy;
mod preference;
mod resume;
mod router;
mod run;
mod saving;
mod scaling;
pub(crate) mod tiny;

pub(crate) use tiny::random;
