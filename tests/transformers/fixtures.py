"""Compares `model-core forward --grads` with the fixtures of transformers, in f32 and bf16, on any device.

Usage: fixtures.py MODEL_CORE DEVICE [FOLDER ...]          (folders as in crates/model-core/tests/fixtures; needs numpy, safetensors,
                                                            and for the yardstick of bf16 torch and transformers)

Per case: the largest difference of a logit, the relative difference of the loss, and the largest difference of a gradient over
the tensor's largest. Tolerances in f32: 2e-5, 1e-6 and 1e-4. In bf16 the yardstick is transformers itself in bf16: twice the most
that it differs from its own f32 on the cases `plain` of all folders. Padding is left out. Ends with 1 when a tolerance is exceeded.
"""
import pathlib, subprocess, sys, tempfile
import numpy as np
from safetensors.numpy import load_file

program, device, folders = sys.argv[1], sys.argv[2], [pathlib.Path(f) for f in sys.argv[3:]]
root = pathlib.Path(__file__).resolve().parents[2] / "crates/model-core/tests/fixtures"
folders = folders or [root / "llama", root / "llama_tied", root / "gptoss"]


def ours(folder, case, precision):
    with tempfile.TemporaryDirectory() as scratch:
        out = f"{scratch}/out.safetensors"
        command = [program, "forward", "--model", folder, "--input", case, "--output", out, "--grads", "--device", device, "--precision", precision]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return load_file(out)


def theirs(folder, case):
    """What transformers computes in bf16, in the form of our outputs."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="eager")
    given = {name[3:]: torch.from_numpy(value) for name, value in load_file(case).items() if name.startswith("in.")}
    out = model(**given)
    out.loss.backward()
    found = {"out.logits": out.logits, "out.loss": out.loss} | {f"grad.{n}": p.grad for n, p in model.named_parameters()}
    return {name: value.detach().float().numpy() for name, value in found.items()}


def differences(want, got):
    seen = want["in.attention_mask"].astype(bool) if "in.attention_mask" in want else np.ones(want["in.input_ids"].shape, bool)
    # A NaN is the largest difference of all.
    apart = lambda name: np.nan_to_num(np.abs(got[name] - want[name]), nan=np.inf)
    logits = apart("out.logits")[seen].max()
    loss = float(apart("out.loss").max() / np.abs(want["out.loss"]).max())
    grads = {name: float(apart(name).max() / max(np.abs(want[name]).max(), 1e-12)) for name in want if name.startswith("grad.")}
    worst = max(grads, key=grads.get)
    return float(logits), loss, grads[worst], worst


failed = False
for precision in ["f32"] if device == "cpu" else ["f32", "bf16"]:
    bounds = (2e-5, 1e-6, 1e-4)
    if precision == "bf16":
        yardsticks = []
        for folder in folders:
            plain = folder / "plain.safetensors"
            yardsticks.append(differences(load_file(plain), theirs(folder, plain)))
            print("bf16 {}/plain, transformers: logits {:.2e}, loss {:.2e}, gradients {:.2e} ({})".format(folder.name, *yardsticks[-1]), flush=True)
        bounds = [2 * max(yardstick[i] for yardstick in yardsticks) for i in range(3)]
    for folder in folders:
        for case in sorted(folder.glob("*.safetensors")):
            if case.stem in ("model", "generate"):
                continue
            *found, worst = differences(load_file(case), ours(folder, case, precision))
            bad = not all(value <= bound for value, bound in zip(found, bounds))
            failed |= bad
            print("{} {}/{}: logits {:.2e}, loss {:.2e}, gradients {:.2e} ({}){}".format(precision, folder.name, case.stem, *found, worst, " MISS" if bad else ""), flush=True)
sys.exit(failed)
