//! The CPU backend's overrides: slice kernels for f32, the portable bodies for every other element type.

mod dense;
mod experts;
mod operands;
pub(crate) mod parallel;

use burn::backend::Flex;
use burn::tensor::ops::FloatTensorOps;
use burn::tensor::{DType, Shape, TensorMetadata};
use burn_flex::FlexTensor;

use crate::ops;
use crate::{
    AdamW, CrossEntropyParts, Dispatch, Fp8Rows, Gathered, HeadLayout, Leaf, LmBackend, Master, Moments, Mxfp4,
    Rotation, StatsParts, Stepped, Tracked, portable,
};
use dense::{Dense, int_tensor, tensor, whole_numbers};
use operands::{Head, Rows, SpanValues};

/// True when the slice kernels apply.
fn fast(tensors: &[&FlexTensor]) -> bool {
    !forced::portable() && tensors.iter().all(|tensor| tensor.dtype() == DType::F32)
}

/// Lets tests run the portable bodies on this backend.
mod forced {
    #[cfg(test)]
    thread_local! {
        static PORTABLE: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
    }

    /// True while a test asks for the portable bodies.
    pub(super) fn portable() -> bool {
        #[cfg(test)]
        return PORTABLE.get();
        #[cfg(not(test))]
        false
    }

    /// Runs `f` on the portable bodies.
    #[cfg(test)]
    pub(crate) fn with_portable<T>(f: impl FnOnce() -> T) -> T {
        PORTABLE.set(true);
        let out = f();
        PORTABLE.set(false);
        out
    }
}
#[cfg(test)]
pub(crate) use forced::with_portable;

/// The shape with another last axis.
fn with_last(shape: &Shape, last: usize) -> Shape {
    let mut dims: Vec<usize> = shape.iter().copied().collect();
    if let Some(slot) = dims.last_mut() {
        *slot = last;
    }
    Shape::from(dims)
}

impl LmBackend for Flex {
    type Peaks = ();

    fn lm_linear(x: FlexTensor, weight: FlexTensor) -> FlexTensor {
        if !fast(&[&x, &weight]) {
            return portable::linear::<Self>(x, weight);
        }
        let (x, weight) = (Dense::new(x), Dense::new(weight));
        let ((m, i), (o, _)) = (x.rows(), weight.rows());
        let mut y = vec![0.0; m * o];
        ops::linear::cpu::forward(x.get(), weight.get(), &mut y, [m, i, o]);
        tensor(y, with_last(&x.shape(), o))
    }

    fn lm_linear_dx(dy: FlexTensor, weight: FlexTensor) -> FlexTensor {
        if !fast(&[&dy, &weight]) {
            return portable::linear_dx::<Self>(dy, weight);
        }
        let (dy, weight) = (Dense::new(dy), Dense::new(weight));
        let ((m, o), (_, i)) = (dy.rows(), weight.rows());
        let mut dx = vec![0.0; m * i];
        ops::linear::cpu::backward_x(dy.get(), weight.get(), &mut dx, [m, i, o]);
        tensor(dx, with_last(&dy.shape(), i))
    }

    fn lm_linear_dw(dy: FlexTensor, x: FlexTensor) -> FlexTensor {
        if !fast(&[&dy, &x]) {
            return portable::linear_dw::<Self>(dy, x);
        }
        let (dy, x) = (Dense::new(dy), Dense::new(x));
        let ((m, o), (_, i)) = (dy.rows(), x.rows());
        let mut dw = vec![0.0; o * i];
        ops::linear::cpu::backward_w(dy.get(), x.get(), &mut dw, [m, i, o]);
        tensor(dw, Shape::new([o, i]))
    }

    fn lm_rms_norm_fwd(x: FlexTensor, gamma: FlexTensor, eps: f32, _: Option<&()>) -> (FlexTensor, FlexTensor) {
        if !fast(&[&x, &gamma]) {
            return portable::rms_norm_fwd::<Self>(x, gamma, eps);
        }
        let (x, gamma) = (Dense::new(x), Dense::new(gamma));
        let (m, d) = x.rows();
        let (mut y, mut rstd) = (vec![0.0; m * d], vec![0.0; m]);
        ops::rms_norm::cpu::forward(x.get(), gamma.get(), eps, &mut y, &mut rstd);
        (tensor(y, x.shape()), tensor(rstd, Shape::new([m])))
    }

    fn lm_rms_norm_bwd(
        dy: FlexTensor,
        x: FlexTensor,
        gamma: FlexTensor,
        rstd: FlexTensor,
        carry: Option<FlexTensor>,
        _: Option<&()>,
    ) -> (FlexTensor, FlexTensor) {
        if !fast(&[&dy, &x, &gamma, &rstd]) || !carry.iter().all(|carry| fast(&[carry])) {
            return portable::rms_norm_bwd::<Self>(dy, x, gamma, rstd, carry);
        }
        let [dy, x, gamma, rstd] = [dy, x, gamma, rstd].map(Dense::new);
        let saved = ops::rms_norm::cpu::Saved { x: x.get(), gamma: gamma.get(), rstd: rstd.get() };
        let (shape, carried) = (x.shape(), carry.is_some());
        let dx = match carry {
            Some(carry) => Dense::new(carry),
            None => Dense::new(tensor(vec![0.0; shape.num_elements()], shape)),
        };
        let mut dgamma = Vec::new();
        let dx = dx.update(|dx| dgamma = ops::rms_norm::cpu::backward(dy.get(), saved, dx, carried));
        (dx, tensor(dgamma, gamma.shape()))
    }

    fn lm_add_rms_norm_fwd(
        x: FlexTensor,
        residual: FlexTensor,
        gamma: FlexTensor,
        eps: f32,
        _: Option<&()>,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        if !fast(&[&x, &residual, &gamma]) {
            let sum = <Self as FloatTensorOps<Self>>::float_add(x, residual);
            let (y, rstd) = portable::rms_norm_fwd::<Self>(sum.clone(), gamma, eps);
            return (sum, y, rstd);
        }
        let [x, residual, gamma] = [x, residual, gamma].map(Dense::new);
        let ((m, d), shape) = (x.rows(), x.shape());
        let (mut y, mut rstd) = (vec![0.0; m * d], vec![0.0; m]);
        let sum = x.update(|x| {
            ops::rms_norm::cpu::add_forward(x, residual.get(), gamma.get(), eps, &mut y, &mut rstd);
        });
        (sum, tensor(y, shape), tensor(rstd, Shape::new([m])))
    }

    fn lm_rope_qkv(
        qkv: FlexTensor,
        cos: FlexTensor,
        sin: FlexTensor,
        heads: HeadLayout,
        rotation: Rotation,
        _: Option<&()>,
    ) -> FlexTensor {
        if !fast(&[&qkv, &cos, &sin]) {
            return portable::rope_qkv::<Self>(qkv, cos, sin, heads, rotation);
        }
        let [qkv, cos, sin] = [qkv, cos, sin].map(Dense::new);
        qkv.update(|qkv| ops::rope_qkv::cpu::rotate(qkv, cos.get(), sin.get(), heads, rotation))
    }

    fn lm_attention_fwd(
        qkv: FlexTensor,
        start: FlexTensor,
        end: FlexTensor,
        sinks: Option<FlexTensor>,
        heads: HeadLayout,
        scale: f32,
        _peaks: Option<&()>,
    ) -> (FlexTensor, FlexTensor) {
        if !fast(&[&qkv]) || !sinks.iter().all(|sinks| fast(&[sinks])) {
            return portable::attention_fwd::<Self>(qkv, start, end, sinks, heads, scale);
        }
        let spans = SpanValues::new(&start, &end, sinks);
        let qkv = Dense::new(qkv);
        let problem = spans.problem(qkv.shape()[1], heads, scale);
        let ops::attention::cpu::Forward { out, lse } = ops::attention::cpu::forward(qkv.get(), &problem);
        let (b, t) = (problem.b, problem.t);
        (tensor(out, Shape::new([b, t, heads.q_width()])), tensor(lse, Shape::new([b, heads.n_heads, t])))
    }

    fn lm_attention_bwd(
        dout: FlexTensor,
        qkv: FlexTensor,
        out: FlexTensor,
        lse: FlexTensor,
        start: FlexTensor,
        end: FlexTensor,
        sinks: Option<FlexTensor>,
        heads: HeadLayout,
        scale: f32,
    ) -> (FlexTensor, Option<FlexTensor>) {
        if !fast(&[&dout, &qkv, &out, &lse]) || !sinks.iter().all(|sinks| fast(&[sinks])) {
            return portable::attention_bwd::<Self>(dout, qkv, out, lse, start, end, sinks, heads, scale);
        }
        let spans = SpanValues::new(&start, &end, sinks);
        let [dout, qkv, out, lse] = [dout, qkv, out, lse].map(Dense::new);
        let problem = spans.problem(qkv.shape()[1], heads, scale);
        let grad = ops::attention::cpu::backward(dout.get(), qkv.get(), out.get(), lse.get(), &problem);
        (tensor(grad.dqkv, qkv.shape()), grad.dsinks.map(|dsinks| tensor(dsinks, Shape::new([heads.n_heads]))))
    }

    fn lm_attention_cached(
        q: FlexTensor,
        k: FlexTensor,
        v: FlexTensor,
        start: FlexTensor,
        end: FlexTensor,
        sinks: Option<FlexTensor>,
        heads: HeadLayout,
        scale: f32,
    ) -> FlexTensor {
        if !fast(&[&q, &k, &v]) || !sinks.iter().all(|sinks| fast(&[sinks])) {
            return portable::attention_cached::<Self>(q, k, v, start, end, sinks, heads, scale);
        }
        let spans = SpanValues::new(&start, &end, sinks);
        let q = Dense::new(q);
        // A cache is a view of a longer buffer; its rows may lie apart, and are read where they are.
        let [k, v] = [k, v].map(Rows::new);
        let problem = spans.problem(k.len(), heads, scale);
        let rows = |data, t: usize, width| ops::attention::Rows::contiguous(data, t, width);
        let operands =
            ops::attention::Operands { q: rows(q.get(), problem.t, heads.q_width()), k: k.get(), v: v.get() };
        tensor(ops::attention::cpu::forward_cached(&operands, &problem), q.shape())
    }

    fn lm_swiglu(gate_up: FlexTensor, _: Gathered<()>) -> FlexTensor {
        if !fast(&[&gate_up]) {
            return portable::swiglu::<Self>(gate_up);
        }
        let gate_up = Dense::new(gate_up);
        let (m, width) = gate_up.rows();
        let mut y = vec![0.0; m * width / 2];
        ops::swiglu::cpu::forward(gate_up.get(), &mut y, width / 2);
        tensor(y, with_last(&gate_up.shape(), width / 2))
    }

    fn lm_swiglu_bwd(dy: FlexTensor, gate_up: FlexTensor, _: Option<&()>) -> FlexTensor {
        if !fast(&[&dy, &gate_up]) {
            return portable::swiglu_bwd::<Self>(dy, gate_up);
        }
        let [dy, gate_up] = [dy, gate_up].map(Dense::new);
        let f = gate_up.rows().1 / 2;
        gate_up.update(|gate_up| ops::swiglu::cpu::backward(dy.get(), gate_up, f))
    }

    fn lm_embedding(weight: FlexTensor, ids: FlexTensor) -> FlexTensor {
        if !fast(&[&weight]) {
            return portable::embedding::<Self>(weight, ids);
        }
        let (weight, shape) = (Dense::new(weight), ids.shape());
        let d = weight.rows().1;
        let mut y = vec![0.0; shape.num_elements() * d];
        ops::embedding::cpu::forward(weight.get(), &whole_numbers(&ids), &mut y, d);
        tensor(y, Shape::new([shape[0], shape[1], d]))
    }

    fn lm_embedding_bwd(dy: FlexTensor, ids: FlexTensor, n_rows: usize) -> FlexTensor {
        if !fast(&[&dy]) {
            return portable::embedding_bwd::<Self>(dy, ids, n_rows);
        }
        let dy = Dense::new(dy);
        let d = dy.rows().1;
        let mut dw = vec![0.0; n_rows * d];
        ops::embedding::cpu::backward(dy.get(), &whole_numbers(&ids), &mut dw, d);
        tensor(dw, Shape::new([n_rows, d]))
    }

    fn lm_linear_cross_entropy_fwd(
        x: FlexTensor,
        weight: FlexTensor,
        targets: FlexTensor,
        weights: FlexTensor,
        z_loss: f32,
        want: Tracked,
    ) -> CrossEntropyParts<Self> {
        if !fast(&[&x, &weight, &weights]) {
            return portable::linear_cross_entropy_fwd::<Self>(x, weight, targets, weights, z_loss, want);
        }
        let (head, weights) = (Head::new(x, weight, &targets), Dense::new(weights));
        let result = ops::linear_cross_entropy::cpu::forward_backward(&head.operands(), weights.get(), z_loss, want);
        let result = result.unwrap_or_else(|error| panic!("{error}"));
        let one = |x: f64| tensor(vec![x as f32], Shape::new([1]));
        CrossEntropyParts {
            loss: one(result.sums.loss),
            nll: one(result.sums.nll),
            dx: result.dx.map(|dx| tensor(dx, head.x.shape())),
            dw: result.dw.map(|dw| tensor(dw, head.weight.shape())),
        }
    }

    fn lm_token_logprobs_bwd(
        dlogprob: FlexTensor,
        x: FlexTensor,
        weight: FlexTensor,
        targets: FlexTensor,
        lse: FlexTensor,
        want: Tracked,
    ) -> (Option<FlexTensor>, Option<FlexTensor>) {
        if !fast(&[&dlogprob, &x, &weight, &lse]) {
            return portable::token_logprobs_bwd::<Self>(dlogprob, x, weight, targets, lse, want);
        }
        let (head, dlogprob, lse) = (Head::new(x, weight, &targets), Dense::new(dlogprob), Dense::new(lse));
        let result = ops::token_logprobs::cpu::backward(dlogprob.get(), &head.operands(), lse.get(), want);
        let result = result.unwrap_or_else(|error| panic!("{error}"));
        let (x_shape, w_shape) = (head.x.shape(), head.weight.shape());
        (result.dx.map(|dx| tensor(dx, x_shape)), result.dw.map(|dw| tensor(dw, w_shape)))
    }

    fn lm_token_stats(x: FlexTensor, weight: FlexTensor, targets: FlexTensor) -> StatsParts<Self> {
        if !fast(&[&x, &weight]) {
            return portable::token_stats::<Self>(x, weight, targets);
        }
        let head = Head::new(x, weight, &targets);
        let stats = ops::token_logprobs::cpu::forward(&head.operands()).unwrap_or_else(|error| panic!("{error}"));
        let rows = Shape::new([stats.lse.len()]);
        (tensor(stats.logprob, rows.clone()), tensor(stats.lse, rows.clone()), int_tensor(stats.argmax, rows))
    }

    fn lm_sum_squares(x: FlexTensor) -> FlexTensor {
        if !fast(&[&x]) {
            return portable::sum_squares::<Self>(x);
        }
        let sum = ops::sum_squares::cpu::forward(Dense::new(x).get());
        tensor(vec![sum as f32], Shape::new([1]))
    }

    fn lm_sum_squares_into(parts: FlexTensor, index: usize, x: FlexTensor) -> FlexTensor {
        let sum = Self::lm_sum_squares(x);
        if !fast(&[&parts, &sum]) {
            return portable::sum_squares_into::<Self>(parts, index, sum);
        }
        let sum = Dense::new(sum).get()[0];
        Dense::new(parts).update(|parts| parts[index * ops::sum_squares::SUM_PARTS] = sum)
    }

    fn lm_adamw_step(
        param: FlexTensor,
        grad: FlexTensor,
        (master, moments): (Master<Self>, Moments<Self>),
        scale: FlexTensor,
        hyper: &AdamW,
        _gather: bool,
    ) -> Stepped<Self> {
        let stepped = |(param, master, moments)| Stepped { param, master, moments, peaks: None };
        let (m, v) = match (&master, moments) {
            (Master::Nearest, Moments::Full { m, v }) => (m.into_primitive(), v.into_primitive()),
            (_, packed) => return stepped(portable::adamw_step::<Self>(param, grad, master, packed, scale, hyper)),
        };
        let full = |m, v| Moments::Full { m: Leaf::from_primitive(m), v: Leaf::from_primitive(v) };
        if !fast(&[&param, &grad, &m, &v, &scale]) {
            return stepped(portable::adamw_step::<Self>(param, grad, master, full(m, v), scale, hyper));
        }
        let (grad, scale) = (Dense::new(grad), Dense::new(scale).get()[0]);
        let [mut param, mut m, mut v] = [param, m, v].map(|tensor| Dense::new(tensor).into_own());
        ops::adamw::cpu::step(param.storage_mut(), grad.get(), m.storage_mut(), v.storage_mut(), scale, hyper);
        stepped((param, master, full(m, v)))
    }

    fn lm_add_assign(acc: FlexTensor, x: FlexTensor) -> FlexTensor {
        if !fast(&[&acc, &x]) {
            return <Self as FloatTensorOps<Self>>::float_add(acc, x);
        }
        let x = Dense::new(x);
        Dense::new(acc).update(|acc| ops::accumulate::cpu::add_assign(acc, x.get()))
    }

    fn lm_scale(x: FlexTensor, factor: FlexTensor) -> FlexTensor {
        if !fast(&[&x, &factor]) {
            return portable::scale::<Self>(x, factor);
        }
        match Dense::new(factor).get()[0] {
            1.0 => x,
            factor => Dense::new(x).update(|x| ops::accumulate::cpu::scale(x, factor)),
        }
    }

    fn lm_linear_bias(x: FlexTensor, weight: FlexTensor, bias: FlexTensor) -> FlexTensor {
        match fast(&[&x, &weight, &bias]) {
            true => experts::linear_bias(x, weight, bias),
            false => portable::linear_bias::<Self>(x.clone(), weight, bias, x.dtype()),
        }
    }

    fn lm_linear_bias_f32(x: FlexTensor, weight: FlexTensor, bias: FlexTensor) -> FlexTensor {
        match fast(&[&x, &weight, &bias]) {
            true => experts::linear_bias(x, weight, bias),
            false => portable::linear_bias::<Self>(x, weight, bias, DType::F32),
        }
    }

    fn lm_bias_grad(dy: FlexTensor, dtype: DType) -> FlexTensor {
        match fast(&[&dy]) {
            true => experts::bias_grad(dy, dtype),
            false => portable::bias_grad::<Self>(dy, dtype),
        }
    }

    fn lm_route(logits: FlexTensor, top_k: usize) -> (FlexTensor, FlexTensor) {
        match fast(&[&logits]) {
            true => experts::route(logits, top_k),
            false => portable::route::<Self>(logits, top_k),
        }
    }

    fn lm_route_bwd(
        dweights: FlexTensor,
        weights: FlexTensor,
        experts: FlexTensor,
        n_experts: usize,
        dtype: DType,
    ) -> FlexTensor {
        match fast(&[&dweights, &weights]) {
            true => experts::route_bwd(dweights, weights, &experts, n_experts, dtype),
            false => portable::route_bwd::<Self>(dweights, weights, experts, n_experts, dtype),
        }
    }

    fn lm_dispatch(experts: FlexTensor, n_experts: usize) -> Dispatch<Self> {
        match fast(&[]) {
            true => experts::dispatch(&experts, n_experts),
            false => portable::dispatch::<Self>(experts, n_experts),
        }
    }

    fn lm_gather_tokens(x: FlexTensor, at: &Dispatch<Self>) -> FlexTensor {
        match fast(&[&x]) {
            true => experts::gather_tokens(x, at),
            false => portable::gather_tokens::<Self>(x, at),
        }
    }

    fn lm_gather_tokens_bwd(dy: FlexTensor, at: &Dispatch<Self>, n: usize) -> FlexTensor {
        match fast(&[&dy]) {
            true => experts::gather_tokens_bwd(dy, at, n),
            false => portable::gather_tokens_bwd::<Self>(dy, at, n),
        }
    }

    fn lm_combine(y: FlexTensor, weights: FlexTensor, at: &Dispatch<Self>) -> FlexTensor {
        match fast(&[&y, &weights]) {
            true => experts::combine(y, weights, at),
            false => portable::combine::<Self>(y, weights, at),
        }
    }

    fn lm_combine_bwd(
        dout: FlexTensor,
        y: FlexTensor,
        weights: FlexTensor,
        at: &Dispatch<Self>,
        want: Tracked,
    ) -> (Option<FlexTensor>, Option<FlexTensor>) {
        match fast(&[&dout, &y, &weights]) {
            true => experts::combine_bwd(dout, y, weights, at, want),
            false => portable::combine_bwd::<Self>(dout, y, weights, at, want),
        }
    }

    fn lm_swiglu_clamped(gate_up: FlexTensor, alpha: f32, limit: f32) -> FlexTensor {
        match fast(&[&gate_up]) {
            true => experts::swiglu_clamped(gate_up, alpha, limit),
            false => portable::swiglu_clamped::<Self>(gate_up, alpha, limit),
        }
    }

    fn lm_swiglu_clamped_bwd(dy: FlexTensor, gate_up: FlexTensor, alpha: f32, limit: f32) -> FlexTensor {
        match fast(&[&dy, &gate_up]) {
            true => experts::swiglu_clamped_bwd(dy, gate_up, alpha, limit),
            false => portable::swiglu_clamped_bwd::<Self>(dy, gate_up, alpha, limit),
        }
    }

    fn lm_grouped_linear(
        x: FlexTensor,
        weight: FlexTensor,
        bias: Option<FlexTensor>,
        offsets: FlexTensor,
    ) -> FlexTensor {
        match experts::all_fast(&[&x, &weight], bias.as_ref()) {
            true => experts::grouped(x, weight, bias, &offsets),
            false => portable::grouped_linear::<Self>(x, weight, bias, offsets),
        }
    }

    fn lm_grouped_linear_dx(dy: FlexTensor, weight: FlexTensor, offsets: FlexTensor) -> FlexTensor {
        match fast(&[&dy, &weight]) {
            true => experts::grouped_dx(dy, weight, &offsets),
            false => portable::grouped_linear_dx::<Self>(dy, weight, offsets),
        }
    }

    fn lm_grouped_linear_dw(dy: FlexTensor, x: FlexTensor, offsets: FlexTensor) -> FlexTensor {
        match fast(&[&dy, &x]) {
            true => experts::grouped_dw(dy, x, &offsets),
            false => portable::grouped_linear_dw::<Self>(dy, x, offsets),
        }
    }

    fn lm_grouped_linear_dw_acc(dy: FlexTensor, x: FlexTensor, offsets: FlexTensor, acc: FlexTensor) -> FlexTensor {
        match fast(&[&dy, &x, &acc]) {
            true => experts::grouped_dw_acc(dy, x, &offsets, acc),
            false => Self::lm_add_assign(acc, Self::lm_grouped_linear_dw(dy, x, offsets)),
        }
    }

    fn lm_grouped_bias_grad(dy: FlexTensor, offsets: FlexTensor, dtype: DType) -> FlexTensor {
        match fast(&[&dy]) {
            true => experts::grouped_bias_grad(dy, &offsets, dtype),
            false => portable::grouped_bias_grad::<Self>(dy, offsets, dtype),
        }
    }

    fn lm_fp8_decode(matrix: &Fp8Rows<Self>, dtype: DType) -> FlexTensor {
        match fast(&[]) {
            true => experts::fp8_decode(matrix, dtype),
            false => portable::fp8_decode::<Self>(matrix, dtype),
        }
    }

    fn lm_mxfp4_decode(matrix: &Mxfp4<Self>, dtype: DType) -> FlexTensor {
        match fast(&[]) {
            true => experts::mxfp4_decode(matrix, dtype),
            false => portable::mxfp4_decode::<Self>(matrix, dtype),
        }
    }

    fn lm_grouped_mxfp4(
        x: FlexTensor,
        weight: &Mxfp4<Self>,
        bias: Option<FlexTensor>,
        offsets: FlexTensor,
    ) -> FlexTensor {
        match experts::all_fast(&[&x], bias.as_ref()) {
            true => experts::grouped_mxfp4(x, weight, bias, &offsets),
            false => portable::grouped_mxfp4::<Self>(x, weight, bias, offsets),
        }
    }

    fn lm_grouped_mxfp4_dx(dy: FlexTensor, weight: &Mxfp4<Self>, offsets: FlexTensor) -> FlexTensor {
        match fast(&[&dy]) {
            true => experts::grouped_mxfp4_dx(dy, weight, &offsets),
            false => portable::grouped_mxfp4_dx::<Self>(dy, weight, offsets),
        }
    }
}
