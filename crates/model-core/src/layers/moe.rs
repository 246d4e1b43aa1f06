//! A mixture of experts in the place of the MLP: a router chooses some experts for each token and weighs their outputs.
//!
//! # Source
//! The GPT-OSS model card (OpenAI 2025); its softmax runs over the chosen logits only.

use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};
use kernels_cubecl::{
    Dispatch, ExpertLora, ExpertWeight, LmBackend, Packed, combine, dispatch, gather_tokens, grouped_linear,
    grouped_linear_packed, grouped_lora, linear_bias_f32, route, swiglu_clamped,
};

use crate::config;
use crate::leaves::{LeafReader, NamedLeaf};

/// `y = Σ_j w_j · expert_j(x)` over the experts that the router chose for the token.
#[derive(Clone, Debug)]
pub struct Moe<B: Backend> {
    /// `[n, d_model]`.
    pub router_weight: Tensor<B, 2>,
    /// `[n]`.
    pub router_bias: Tensor<B, 1>,
    /// Gate and up of every expert, gate in the even rows: `[n · 2 · d_ff, d_model]`.
    pub gate_up: ExpertLinear<B>,
    /// `[n · d_model, d_ff]`.
    pub down: ExpertLinear<B>,
    /// Counts, clamp and sigmoid factor.
    pub experts: config::Experts,
}

/// What a router said of every token of a batch.
#[derive(Clone, Debug)]
pub struct Routing<B: Backend> {
    /// `[b · t, n]`, f32 whatever the backend's float type.
    pub logits: Tensor<B, 2>,
    /// The chosen experts, `[b · t, top_k]`.
    pub experts: Tensor<B, 2, Int>,
}

impl<B: LmBackend> Routing<Autodiff<B>> {
    /// The same without the graph.
    pub fn inner(&self) -> Routing<B> {
        Routing { logits: self.logits.clone().inner(), experts: self.experts.clone().inner() }
    }
}

/// One projection of every expert: rows of the weight are the experts one after the other.
#[derive(Clone, Debug)]
pub struct ExpertLinear<B: Backend> {
    /// Name within the experts, for instance `down_proj`.
    pub name: &'static str,
    /// `[n · out, in]`.
    pub weight: ExpertWeight<B>,
    /// `[n · out]`.
    pub bias: Tensor<B, 1>,
    /// A low-rank update of each expert.
    pub adapter: Option<ExpertLora<B>>,
}

impl<B: LmBackend> Moe<B> {
    /// Applies the mixture.
    ///
    /// # Shapes
    /// `x` and the result are `[b, t, d_model]`.
    ///
    /// # Numerics
    /// Router, softmax and the weighted sum in f32.
    pub fn forward(&self, x: Tensor<B, 3>) -> (Tensor<B, 3>, Routing<B>) {
        let [b, t, d] = x.dims();
        let x = x.reshape([b * t, d]);
        let logits = linear_bias_f32(x.clone(), self.router_weight.clone(), self.router_bias.clone());
        let routed = route(logits.clone(), self.experts.top_k);
        let at = dispatch(routed.experts.clone(), self.experts.n);
        let gate_up = self.gate_up.forward(gather_tokens(x, &at), &at);
        let y = self.down.forward(swiglu_clamped(gate_up, self.experts.alpha, self.experts.limit), &at);
        let y = combine(y, routed.weights, &at).reshape([b, t, d]);
        (y, Routing { logits, experts: routed.experts })
    }

    /// Reads in the order of [`Moe::collect`].
    pub(crate) fn from_leaves(experts: config::Experts, leaves: &mut LeafReader<B>) -> Self {
        Moe {
            router_weight: leaves.matrix(),
            router_bias: leaves.vector(),
            gate_up: ExpertLinear::from_leaves("gate_up_proj", leaves),
            down: ExpertLinear::from_leaves("down_proj", leaves),
            experts,
        }
    }

    /// Appends the parameters; `prefix` is the mixture's own name.
    pub(crate) fn collect(&self, prefix: &str, out: &mut Vec<NamedLeaf<B>>) {
        out.push(NamedLeaf::matrix(format!("{prefix}.router.weight"), &self.router_weight));
        out.push(NamedLeaf::vector(format!("{prefix}.router.bias"), &self.router_bias));
        let experts = format!("{prefix}.experts");
        self.gate_up.collect(&experts, out);
        self.down.collect(&experts, out);
    }

    /// The same layer with other values, possibly on another backend; reads in the order of [`Moe::collect`].
    pub(crate) fn rebuild<C: LmBackend>(&self, leaves: &mut LeafReader<C>) -> Moe<C> {
        Moe {
            router_weight: leaves.matrix(),
            router_bias: leaves.vector(),
            gate_up: self.gate_up.rebuild(leaves),
            down: self.down.rebuild(leaves),
            experts: self.experts,
        }
    }
}

impl<B: LmBackend> ExpertLinear<B> {
    /// Applies each expert to its rows.
    ///
    /// # Shapes
    /// `x` is `[m, in]` in the order of the dispatch, the result `[m, out]`.
    pub fn forward(&self, x: Tensor<B, 2>, at: &Dispatch<B>) -> Tensor<B, 2> {
        let bias = self.bias.clone();
        match (&self.adapter, &self.weight) {
            (Some(lora), weight) => grouped_lora(x, weight, Some(bias), lora, at),
            (None, ExpertWeight::Dense(weight)) => grouped_linear(x, weight.clone(), Some(bias), at),
            (None, ExpertWeight::Packed(weight)) => grouped_linear_packed(x, weight, bias, at),
        }
    }

    /// Output rows of all experts and their inputs.
    pub fn dims(&self) -> [usize; 2] {
        self.weight.dims()
    }

    /// The weight, where it is packed.
    pub fn packed(&self) -> Option<&Packed<B>> {
        match &self.weight {
            ExpertWeight::Dense(_) => None,
            ExpertWeight::Packed(weight) => Some(weight),
        }
    }

    fn from_leaves(name: &'static str, leaves: &mut LeafReader<B>) -> Self {
        let weight = match leaves.packed() {
            Some(packed) => ExpertWeight::Packed(packed),
            None => ExpertWeight::Dense(leaves.matrix()),
        };
        ExpertLinear { name, weight, bias: leaves.vector(), adapter: None }
    }

    fn collect(&self, prefix: &str, out: &mut Vec<NamedLeaf<B>>) {
        let name = format!("{prefix}.{}", self.name);
        if let ExpertWeight::Dense(weight) = &self.weight {
            out.push(NamedLeaf::matrix(name.clone(), weight));
        }
        out.push(NamedLeaf::vector(format!("{name}_bias"), &self.bias));
        if let Some(lora) = &self.adapter {
            out.push(NamedLeaf::matrix(format!("{name}.lora_A.weight"), &lora.a));
            out.push(NamedLeaf::matrix(format!("{name}.lora_B.weight"), &lora.b));
        }
    }

    fn rebuild<C: LmBackend>(&self, leaves: &mut LeafReader<C>) -> ExpertLinear<C> {
        let layer = ExpertLinear::from_leaves(self.name, leaves);
        let adapter = self.adapter.as_ref();
        let adapter = adapter.map(|lora| ExpertLora { a: leaves.matrix(), b: leaves.matrix(), scale: lora.scale });
        ExpertLinear { adapter, ..layer }
    }
}
