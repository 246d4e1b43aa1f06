"""Where the time of one step goes on the device, from the lines of timeline.cpp.

Usage: timeline.py TRACE [END]       (a step ends with the last of a run of kernels named like END; default step_kernel, AdamW)

Per name and per group: calls and time of the median of the last steps, the time in which nothing ran, and the longest gaps.
Kernels that overlap count once in "busy".
"""
import collections, re, sys

trace, end = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "step_kernel"
GROUPS = [
    ("optimizer", r"^step_kernel|squares|parts|clip"),
    ("attention", r"attend|attention|flash|queries|keys|delta|decode"),
    ("products", r"nvjet|gemm|cutlass|xmma|splitK|cublas|gemv"),
    ("copies and fills", r"^copy|^fill"),
]


def group(name):
    return next((group for group, pattern in GROUPS if re.search(pattern, name, re.I)), "element-wise, norms, head")


def busy(events):
    total, until = 0, 0
    for start, stop, *_ in events:
        total += max(0, stop - max(start, until))
        until = max(until, stop)
    return total


rows = []
for line in open(trace, errors="replace"):
    start, stop, stream, name = line.rstrip("\n").split("\t", 3)
    rows.append((int(start), int(stop), stream, re.sub(r"[0-9a-f]{16,}", "", name)[:70]))
rows.sort()
ends = [i for i, row in enumerate(rows) if re.search(end, row[3], re.I)]
lasts = [i for i, after in zip(ends, ends[1:] + [None]) if after is None or rows[after][0] - rows[i][1] > 2_000_000 or after - i > 50]
steps = [rows[a + 1 : b + 1] for a, b in zip(lasts, lasts[1:])]
if not steps:
    sys.exit(f"no two steps that end with {end!r} among {len(rows)} events: {collections.Counter(row[3] for row in rows).most_common(20)}")
steps = sorted(steps[-5:], key=lambda s: s[-1][1] - s[0][0])
step = steps[len(steps) // 2]
span = step[-1][1] - step[0][0]
working = busy(step)
print(f"step of {span / 1e6:.2f} ms, {len(step)} events, busy {working / 1e6:.2f} ms, idle {(span - working) / 1e6:.2f} ms ({100 * (span - working) / span:.2f} %)")
for key in (group, lambda name: name):
    calls, time = collections.Counter(), collections.Counter()
    for start, stop, _, name in step:
        calls[key(name)] += 1
        time[key(name)] += stop - start
    for name, spent in time.most_common(36):
        print(f"| {name} | {calls[name]} | {spent / 1e6:.3f} | {100 * spent / span:.1f} % |")
    print()
gaps, until = [], step[0][0]
for before, row in zip(step, step[1:]):
    until = max(until, before[1])
    gaps.append((row[0] - until, before[3], row[3]))
small = sum(g for g, *_ in gaps if 0 < g < 10_000)
print(f"gaps below 10 us: {small / 1e6:.2f} ms in all; the longest:")
for gap, before, after in sorted(gaps, reverse=True)[:8]:
    print(f"  {gap / 1e3:.1f} us between {before} and {after}")
