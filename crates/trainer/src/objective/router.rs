//! What a mixture of experts adds to a loss, and how evenly its tokens spread.

use burn::backend::Autodiff;
use burn::tensor::Tensor;
use kernels_cubecl::LmBackend;
use model_core::Routing;
use model_core::router::RouterLosses;
use serde::{Deserialize, Serialize};

use super::MetricSum;
use crate::config::require;
use crate::{MicroBatch, TrainError};

/// Weights of the routers' losses beside the mean loss; 0 leaves them out. Only models with experts have them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RouterWeights {
    /// Of the load balancing loss.
    pub balance: f32,
    /// Of the router z-loss.
    pub z: f32,
}

/// The routers' part of a micro-batch.
pub(super) struct RouterSum<B: LmBackend> {
    /// `[1]`, differentiable: the weighted losses times the units; `None` when both weights are 0.
    pub(super) sum: Option<Tensor<Autodiff<B>, 1>>,
    /// `[4]`: what [`metrics`] makes metrics of.
    pub(super) values: Tensor<B, 1>,
}

impl RouterWeights {
    /// No losses of routers.
    pub const NONE: Self = Self { balance: 0.0, z: 0.0 };

    /// Checks the numbers.
    ///
    /// # Errors
    /// The first key out of range.
    pub fn check(&self) -> Result<(), TrainError> {
        for (key, weight) in [("balance", self.balance), ("z", self.z)] {
            require(weight.is_finite() && weight >= 0.0, || {
                format!("key `router.{key}`: expected a finite number of at least 0, got {weight}")
            })?;
        }
        Ok(())
    }

    /// The routers' part of a micro-batch whose loss is a sum over `units`; `None` for a model without experts.
    ///
    /// # Errors
    /// When losses are asked for and there is no router.
    pub(super) fn sum<B: LmBackend>(
        &self,
        routed: &[Routing<Autodiff<B>>],
        batch: &MicroBatch,
        units: f64,
        device: &B::Device,
    ) -> Result<Option<RouterSum<B>>, TrainError> {
        require(*self == Self::NONE || !routed.is_empty(), || {
            "key `router`: expected no weights, since the model has no experts; leave the key out".to_owned()
        })?;
        if *self == Self::NONE {
            let routed: Vec<Routing<B>> = routed.iter().map(Routing::inner).collect();
            let losses = RouterLosses::new(&routed, batch.rows.real_tokens(device));
            return Ok(losses.map(|losses| RouterSum { sum: None, values: values(losses) }));
        }
        let Some(losses) = RouterLosses::new(routed, batch.rows.real_tokens(device)) else { return Ok(None) };
        let sum = losses.balance.clone() * self.balance + losses.z.clone() * self.z;
        let inner = RouterLosses { balance: losses.balance.inner(), z: losses.z.inner(), load: losses.load.inner() };
        Ok(Some(RouterSum { sum: Some(sum * units as f32), values: values(inner) }))
    }
}

/// Both losses, the load of the busiest expert of all blocks over the mean load, and the share of experts without a token.
fn values<B: LmBackend>(losses: RouterLosses<B>) -> Tensor<B, 1> {
    let [_, n] = losses.load.dims();
    let peak = losses.load.clone().max() * n as f32;
    let idle = losses.load.equal_elem(0.0).float().cast(burn::tensor::FloatDType::F32).mean();
    Tensor::cat(vec![losses.balance, losses.z, peak, idle], 0)
}

/// Metrics of the routers' values, of which there are four or, for a model without experts, none; each counts once per
/// micro-batch.
pub(super) fn metrics(values: &[f32]) -> Vec<MetricSum> {
    const NAMES: [&str; 4] = ["router_balance", "router_z", "expert_load_peak", "experts_idle"];
    NAMES.iter().zip(values).map(|(name, value)| MetricSum::new(name, f64::from(*value), 1.0)).collect()
}
