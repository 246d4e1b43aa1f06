"""Draws loss curves as SVG, running means of ten steps, and prints how they differ at the end.

Usage: plot_curves.py OUT.svg NAME=CURVE.json ...        (files of `perf curve` and torch_curve.py; the first is the yardstick)
"""
import json, sys

WIDTH, HEIGHT, LEFT, BOTTOM, MEAN, LAST = 900, 480, 60, 40, 10, 20
COLOURS = ["#000000", "#d62728", "#1f77b4", "#2ca02c", "#ff7f0e", "#9467bd", "#8c564b"]
out, named = sys.argv[1], [argument.split("=", 1) for argument in sys.argv[2:]]
curves = {name: json.load(open(path))["losses"] for name, path in named}
smooth = {n: [sum(c[max(0, i - MEAN + 1) : i + 1]) / min(i + 1, MEAN) for i in range(len(c))] for n, c in curves.items()}
steps = max(map(len, curves.values()))
low, high = min(min(c) for c in smooth.values()), max(max(c) for c in smooth.values())
low, high = int(low * 2) / 2, int(high * 2 + 1) / 2
x = lambda step: LEFT + (WIDTH - LEFT - 10) * step / steps
y = lambda loss: 10 + (HEIGHT - BOTTOM - 10) * (high - loss) / (high - low)
parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="13">', f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>']
loss = low
while loss <= high:
    parts.append(f'<path d="M{LEFT} {y(loss):.1f}H{WIDTH - 10}" stroke="#ddd"/><text x="{LEFT - 8}" y="{y(loss) + 4:.1f}" text-anchor="end">{loss:g}</text>')
    loss += 1
for step in range(0, steps + 1, 100):
    parts.append(f'<text x="{x(step):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{step}</text>')
parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 6}" text-anchor="middle">step</text>')
yardstick = curves[named[0][0]]
for (name, curve), colour in zip(smooth.items(), COLOURS):
    points = " ".join(f"{x(i + 1):.1f},{y(loss):.1f}" for i, loss in enumerate(curve))
    parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.3"/>')
for at, ((name, _), colour) in enumerate(zip(smooth.items(), COLOURS)):
    last, base = (sum(c[-LAST:]) / LAST for c in (curves[name], yardstick))
    label = f"{name}: {last:.4f} ({100 * (last / base - 1):+.2f} %)"
    print(label)
    parts.append(f'<text x="{WIDTH - 20}" y="{30 + 18 * at}" text-anchor="end" fill="{colour}">{label}</text>')
open(out, "w").write("\n".join(parts + ["</svg>\n"]))
