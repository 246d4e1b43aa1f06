"""The demo's training step in eager PyTorch on the CPU: the rival of `perf cpu --only step`.

The same architecture (RMSNorm, rotary embedding, causal attention, SwiGLU, tied head, no biases), the same batch and the
same step: forward, cross-entropy over all but the last position, backward, clipping of the global norm, AdamW with decay
on matrices, everything in f32. Query, key and value are one projection and so are gate and up, attention is
`scaled_dot_product_attention`, the norm `rms_norm`, the optimizer the fused AdamW: what a careful user of eager mode
would write. It trains on random ids, which changes no time, and leaves out the z-loss that our step has.

Needs: torch. Run: python torch_llama_cpu.py [--threads 2] [--seq-len 128 256 512] [--steps 40] [--json FILE]
"""

import argparse
import json
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn

N_LAYERS, N_HEADS, D_HEAD, D_FF, VOCAB, TOKENS = 3, 3, 64, 512, 2048, 2048
D_MODEL = N_HEADS * D_HEAD
EPS, THETA, INIT_STD = 1e-5, 10_000.0, 0.02


def rotate(x, cos, sin):
    """Rotates halves: `x` is [b, n, t, h], `cos` and `sin` are [t, h]."""
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention_norm = nn.Parameter(torch.ones(D_MODEL))
        self.qkv = nn.Linear(D_MODEL, 3 * D_MODEL, bias=False)
        self.output = nn.Linear(D_MODEL, D_MODEL, bias=False)
        self.mlp_norm = nn.Parameter(torch.ones(D_MODEL))
        self.gate_up = nn.Linear(D_MODEL, 2 * D_FF, bias=False)
        self.down = nn.Linear(D_FF, D_MODEL, bias=False)

    def forward(self, x, cos, sin):
        b, t, d = x.shape
        qkv = self.qkv(F.rms_norm(x, (d,), self.attention_norm, EPS))
        q, k, v = (part.view(b, t, N_HEADS, D_HEAD).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
        mixed = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True)
        x = x + self.output(mixed.transpose(1, 2).reshape(b, t, d))
        gate, up = self.gate_up(F.rms_norm(x, (d,), self.mlp_norm, EPS)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class Decoder(nn.Module):
    def __init__(self, seq_len):
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(VOCAB, D_MODEL))
        self.blocks = nn.ModuleList(Block() for _ in range(N_LAYERS))
        self.final_norm = nn.Parameter(torch.ones(D_MODEL))
        for matrix in (p for p in self.parameters() if p.dim() == 2):
            nn.init.normal_(matrix, std=INIT_STD)
        frequency = THETA ** (-torch.arange(0, D_HEAD, 2) / D_HEAD)
        angle = torch.outer(torch.arange(seq_len), frequency).repeat(1, 2)
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def forward(self, ids):
        x = F.embedding(ids, self.embedding)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return F.linear(F.rms_norm(x, (D_MODEL,), self.final_norm, EPS), self.embedding)


def optimizer(model, kind):
    groups = [
        {"params": [p for p in model.parameters() if p.dim() == 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=5e-3, betas=(0.9, 0.95), eps=1e-8, **{kind: True})


def step(model, adamw, ids):
    """Seconds of forward, backward and update."""
    times = [time.perf_counter()]
    # The last position predicts nothing; its row goes through the head as ours does.
    targets = F.pad(ids[:, 1:], (0, 1), value=-100)
    loss = F.cross_entropy(model(ids).view(-1, VOCAB), targets.reshape(-1), ignore_index=-100)
    loss.item()
    times.append(time.perf_counter())
    loss.backward()
    times.append(time.perf_counter())
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    adamw.step()
    adamw.zero_grad(set_to_none=True)
    times.append(time.perf_counter())
    return [after - before for before, after in zip(times, times[1:])]


def measure(seq_len, args):
    torch.manual_seed(1)
    model = Decoder(seq_len)
    adamw = optimizer(model, args.adamw)
    batches = [torch.randint(VOCAB, (TOKENS // seq_len, seq_len)) for _ in range(8)]
    steps = [step(model, adamw, batches[i % len(batches)]) for i in range(args.warmup + args.steps)][args.warmup :]
    seconds = [sum(passes) for passes in steps]
    low, median, high = statistics.quantiles(seconds, n=4)
    forward, backward, update = (1e3 * statistics.median(passes) for passes in zip(*steps))
    return {
        "rows": TOKENS // seq_len,
        "seq_len": seq_len,
        "tokens_per_s": TOKENS / median,
        "spread": (high - low) / median,
        "forward_ms": forward,
        "backward_ms": backward,
        "update_ms": update,
        "n_params": sum(p.numel() for p in model.parameters()),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seq-len", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--warmup", type=int, default=10)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--adamw", choices=["fused", "foreach"], default="fused")
    parser.add_argument("--json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    figures = [measure(seq_len, args) for seq_len in args.seq_len]
    print(f"PyTorch {torch.__version__}, eager, {torch.get_num_threads()} threads, AdamW {args.adamw}")
    for f in figures:
        print(
            f"{f['rows']:>3} x {f['seq_len']:<4} {f['tokens_per_s']:8.0f} tokens/s  spread {100 * f['spread']:4.1f} %  "
            f"forward {f['forward_ms']:6.2f}  backward {f['backward_ms']:6.2f}  update {f['update_ms']:5.2f} ms"
        )
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"torch": torch.__version__, "threads": args.threads, "figures": figures}, file, indent=1)


if __name__ == "__main__":
    main()
