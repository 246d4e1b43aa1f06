"""Compares `model-core forward --grads` with the fixtures of transformers, in f32 and bf16, on any device.

Usage: fixtures.py MODEL_CORE DEVICE [FOLDER ...]          (needs numpy and safetensors; folders as in crates/model-core/tests/fixtures)

Per case: the largest difference of a logit, the relative difference of the loss, and the largest difference of a gradient over
the tensor's largest. Tolerances: f32 2e-5, 1e-6 and 1e-4; bf16, whose numbers have 8 bits, 2 % of the largest logit, 5e-3 and 4e-2
of the tensor's root mean square times ten. Rows that attend to nothing (padding) are left out. Ends with 1 when one is exceeded.
"""
import pathlib, subprocess, sys, tempfile
import numpy as np
from safetensors.numpy import load_file

program, device, folders = sys.argv[1], sys.argv[2], [pathlib.Path(f) for f in sys.argv[3:]]
root = pathlib.Path(__file__).resolve().parents[2] / "crates/model-core/tests/fixtures"
folders = folders or [root / "llama", root / "llama_tied"]
failed = False
for precision in ["f32"] if device == "cpu" else ["f32", "bf16"]:
    for folder in folders:
        for case in sorted(folder.glob("*.safetensors")):
            if case.name in ("model.safetensors", "generate.safetensors"):
                continue
            want = load_file(case)
            with tempfile.TemporaryDirectory() as scratch:
                out = f"{scratch}/out.safetensors"
                command = [program, "forward", "--model", folder, "--input", case, "--output", out, "--grads", "--device", device, "--precision", precision]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                got = load_file(out)
            seen = want["in.attention_mask"].astype(bool) if "in.attention_mask" in want else np.ones(want["in.input_ids"].shape, bool)
            logits = np.abs(got["out.logits"] - want["out.logits"])[seen].max()
            loss = float(abs(got["out.loss"] - want["out.loss"]).max() / abs(want["out.loss"]).max())
            grads = {}
            for name in (name for name in want if name.startswith("grad.")):
                scale = np.abs(want[name]).max() if precision == "f32" else 10 * np.sqrt((want[name].astype(np.float64) ** 2).mean())
                grads[name] = float(np.abs(got[name] - want[name]).max() / max(scale, 1e-12))
            worst = max(grads, key=grads.get)
            bounds = (2e-5, 1e-6, 1e-4) if precision == "f32" else (2e-2 * np.abs(want["out.logits"][seen]).max(), 5e-3, 4e-2)
            bad = logits > bounds[0] or loss > bounds[1] or grads[worst] > bounds[2]
            failed |= bool(bad)
            print(f"{precision} {folder.name}/{case.stem}: logits {logits:.2e}, loss {loss:.2e}, gradients {grads[worst]:.2e} ({worst}){' MISS' if bad else ''}", flush=True)
sys.exit(failed)
