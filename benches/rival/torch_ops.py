"""The ops of `perf gpu` in PyTorch, to be run in the same call on the same card.

    python3 benches/rival/torch_ops.py > torch-ops.txt
    perf gpu --rival torch-ops.txt

bf16 matrix products and their gradients at the shapes of a 7B model, a matrix product in f32, a copy, and scaled dot-product
attention forward and backward. Medians of five batches of 20 calls, timed with events. TFLOP/s of attention count the causal
half, and five products of the backward pass.
"""

import torch
import torch.nn.functional as F

TOKENS = 8192
SHAPES = [(6144, 4096), (4096, 4096), (22016, 4096), (28672, 4096), (4096, 11008), (4096, 14336)]
PRODUCTS = [(m, n, k) for n, k in SHAPES for m in (TOKENS // 2, TOKENS)] + [(TOKENS // 4, 50304, 4096)]
ATTENTION = [(4, 2048, 128), (1, 8192, 128), (4, 2048, 64)]
HEADS, KV_HEADS = 32, 8
DEVICE = "cuda"


def seconds(call, calls: int = 20, batches: int = 5) -> float:
    """Median time of one call."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    times = []
    for _ in range(batches):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            call()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / calls * 1e-3)
    return sorted(times)[batches // 2]


def report(name: str, time: float, amount: float, unit: str) -> None:
    print(f"{name:<40}{time * 1e6:10.1f} us{amount / time / 1e12:10.2f} {unit}")


def random(*shape: int, grad: bool = False) -> torch.Tensor:
    return (torch.randn(*shape, device=DEVICE, dtype=torch.bfloat16) * 0.5).requires_grad_(grad)


@torch.no_grad()
def products() -> None:
    for m, n, k in PRODUCTS:
        x, w, dy, dw = random(m, k), random(n, k), random(m, n), random(n, k)
        flops = 2 * m * n * k
        report(f"linear y {m}x{k} to {n}", seconds(lambda: F.linear(x, w)), flops, "TFLOP/s")
        report(f"linear dx {m}x{k} to {n}", seconds(lambda: dy @ w), flops, "TFLOP/s")
        report(f"linear dw {m}x{k} to {n}", seconds(lambda: dy.t() @ x), flops, "TFLOP/s")
        report(f"linear dw += {m}x{k} to {n}", seconds(lambda: dw.addmm_(dy.t(), x)), flops, "TFLOP/s")
    x = torch.randn(4096, 4096, device=DEVICE)
    report("linear f32 4096x4096 to 4096", seconds(lambda: F.linear(x, x)), 2 * 4096**3, "TFLOP/s")
    source, target = torch.randn(1 << 28, device=DEVICE), torch.empty(1 << 28, device=DEVICE)
    report("copy 1 GiB f32", seconds(lambda: target.copy_(source)), 2 * 4 * (1 << 28), "TB/s")


@torch.no_grad()
def fp8_products() -> None:
    one = torch.ones((), device=DEVICE)
    for m, n, k in PRODUCTS:
        x, w = (random(*shape).to(torch.float8_e4m3fn) for shape in ((m, k), (n, k)))
        for fast in (True, False):
            call = lambda: torch._scaled_mm(x, w.t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=fast)
            report(f"fp8 {m}x{k} to {n}{' fast' if fast else ''}", seconds(call), 2 * m * n * k, "TFLOP/s")


def attention(rows: int, length: int, d_head: int) -> None:
    q = random(rows, HEADS, length, d_head, grad=True)
    k, v = (random(rows, KV_HEADS, length, d_head, grad=True) for _ in range(2))

    def forward() -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    name = f"attention {rows}x{length}" + (f", head of {d_head}" if d_head != 128 else "")
    flops = 2 * 2 * rows * HEADS * length * length * d_head / 2
    with torch.no_grad():
        report(name, seconds(forward), flops, "TFLOP/s")
    out = forward()
    upstream = torch.randn_like(out)
    backward = seconds(lambda: torch.autograd.grad(out, (q, k, v), upstream, retain_graph=True))
    report(f"{name} backward", backward, 2.5 * flops, "TFLOP/s")


def main() -> None:
    torch.manual_seed(0)
    print(f"PyTorch {torch.__version__}, {torch.cuda.get_device_name()}")
    products()
    fp8_products()
    for case in ATTENTION:
        attention(*case)


if __name__ == "__main__":
    main()
