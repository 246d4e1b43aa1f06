"""Losses of PyTorch on the rows and from the weights of `perf curve`.

Usage: torch_curve.py MODEL TOKENS OUT [bf16|fp8|f32] [steps] [batch] [seq]
f32 weights and moments under autocast (bf16), the same with dynamically scaled FP8 products in the blocks (fp8), or f32
throughout (f32, without tf32). Learning rate, clipping and decay are those of `perf curve`.
"""
import array, glob, json, math, sys, torch, torch.nn as nn, torch.nn.functional as F
from safetensors.torch import load_file

folder, tokens, out = sys.argv[1:4]
mode = sys.argv[4] if len(sys.argv) > 4 else "bf16"
steps, batch, seq = (int(sys.argv[i]) if len(sys.argv) > i else d for i, d in ((5, 500), (6, 8), (7, 1024)))
dev = "cuda"
cfg = json.load(open(f"{folder}/config.json"))
n_layers, d, heads, kv = cfg["num_hidden_layers"], cfg["hidden_size"], cfg["num_attention_heads"], cfg["num_key_value_heads"]
head, eps, theta = cfg.get("head_dim") or d // heads, cfg["rms_norm_eps"], cfg.get("rope_theta") or cfg["rope_parameters"]["rope_theta"]
params = {}
for shard in sorted(glob.glob(f"{folder}/model*.safetensors")):
    params |= {name: nn.Parameter(value.to(dev, torch.float32)) for name, value in load_file(shard).items()}
lm_head = params.get("lm_head.weight", params["model.embed_tokens.weight"])
angle = torch.outer(torch.arange(seq).float(), 1.0 / theta ** (torch.arange(0, head, 2).float() / head)).to(dev)
cos, sin = (torch.cat((t, t), -1) for t in (angle.cos(), angle.sin()))


def q8(t, dtype):
    largest = torch.finfo(dtype).max
    scale = largest / t.abs().max().float().clamp(min=1e-12)
    return (t.float() * scale).clamp(-largest, largest).to(dtype), 1 / scale


class Product8(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        x, w = x.bfloat16(), w.bfloat16()
        ctx.save_for_backward(x, w)
        (a, sa), (b, sb) = q8(x, torch.float8_e4m3fn), q8(w, torch.float8_e4m3fn)
        return torch._scaled_mm(a, b.t(), scale_a=sa, scale_b=sb, out_dtype=torch.bfloat16, use_fast_accum=True)

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        (g8, sg), (w8, sw), (x8, sx) = q8(g.contiguous(), torch.float8_e5m2), q8(w, torch.float8_e4m3fn), q8(x, torch.float8_e4m3fn)
        dx = torch._scaled_mm(g8, w8.t().contiguous().t(), scale_a=sg, scale_b=sw, out_dtype=torch.bfloat16)
        dw = torch._scaled_mm(g8.t().contiguous(), x8.t().contiguous().t(), scale_a=sg, scale_b=sx, out_dtype=torch.bfloat16)
        return dx, dw.float()


def linear(x, w):
    if mode != "fp8":
        return F.linear(x, w)
    return Product8.apply(x.reshape(-1, x.shape[-1]), w).reshape(*x.shape[:-1], -1)


def norm(x, w):
    return F.rms_norm(x.float(), (x.shape[-1],), w, eps)


def turn(x):
    a, b = x.float().chunk(2, -1)
    return (x.float() * cos + torch.cat((-b, a), -1) * sin).to(x.dtype)


def forward(ids):
    x = F.embedding(ids, params["model.embed_tokens.weight"])
    for i in range(n_layers):
        p = lambda name: params[f"model.layers.{i}.{name}.weight"]
        h = norm(x, p("input_layernorm"))
        q, k, v = (linear(h, p(f"self_attn.{n}_proj")).view(*ids.shape, -1, head).transpose(1, 2) for n in "qkv")
        a = F.scaled_dot_product_attention(turn(q), turn(k), v, is_causal=True, enable_gqa=True)
        x = x + linear(a.transpose(1, 2).reshape(*ids.shape, heads * head), p("self_attn.o_proj"))
        h = norm(x, p("post_attention_layernorm"))
        x = x + linear(F.silu(linear(h, p("mlp.gate_proj"))) * linear(h, p("mlp.up_proj")), p("mlp.down_proj"))
    logits = F.linear(norm(x, params["model.norm.weight"]), lm_head)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


ids = array.array("H")
ids.frombytes(open(tokens, "rb").read())
ids = torch.tensor(ids[: steps * batch * seq], dtype=torch.long).view(steps, batch, seq)
groups = [{"params": [p for p in params.values() if p.dim() == dim], "weight_decay": decay} for dim, decay in ((2, 0.1), (1, 0.0))]
opt = torch.optim.AdamW(groups, lr=3e-4, betas=(0.9, 0.95), eps=1e-8, fused=True)
warmup, losses = steps // 10, []
compiled = torch.compile(forward)
for step in range(steps):
    # Kept equal to the schedule of the trainer: linear warm-up, then a cosine down to a tenth.
    lr = 3e-4 * (step + 1) / warmup if step < warmup else 3e-5 + 0.5 * (3e-4 - 3e-5) * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
    for group in opt.param_groups:
        group["lr"] = lr
    with torch.autocast("cuda", torch.bfloat16, enabled=mode != "f32"):
        loss = compiled(ids[step].to(dev))
    loss.backward()
    torch.nn.utils.clip_grad_norm_(params.values(), 1.0)
    opt.step()
    opt.zero_grad(set_to_none=True)
    losses.append(loss.detach())
losses = torch.stack(losses).tolist()
json.dump({"impl": "torch", "precision": mode, "batch": batch, "seq": seq, "losses": losses}, open(out, "w"))
print(f"torch {mode}: first {losses[0]:.5f}, mean of the last 20 {sum(losses[-20:]) / 20:.5f}")
