"""Opens a model folder with transformers, and an adapter with peft, and compares logits with `model-core forward`.

Not part of the test suite, which needs no Python. To run it:

    python3 -m venv VENV && VENV/bin/pip install torch transformers peft safetensors
    cargo build --locked --package model-core
    VENV/bin/python tests/transformers/compare.py --program target/debug/model-core --model runs/demo/lora/final
    VENV/bin/python tests/transformers/compare.py --program target/debug/model-core \
        --model runs/demo/dpo/final --adapter runs/demo/lora/checkpoints/step-200

Prints the largest difference of the logits, whether the greedy token is the same everywhere, and what the tokenizer of
transformers makes of the text; exits with 1 when a logit differs by more than 1e-4.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

TOLERANCE = 1e-4
TEXT = "It is a truth universally acknowledged, that a single man in possession of a good fortune"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", required=True, help="the program model-core")
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--adapter", type=Path)
    args = parser.parse_args()

    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    if args.adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, args.adapter).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    text_ids = tokenizer(TEXT, return_tensors="pt").input_ids
    print(f"tokenizer: {text_ids.shape[1]} ids, text again: {tokenizer.decode(text_ids[0]) == TEXT}")
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": TEXT}], add_generation_prompt=True, return_dict=False
    )
    print(f"chat template: {tokenizer.decode(chat)!r}")

    generator = torch.Generator().manual_seed(1)
    vocab_size = model.config.vocab_size
    ids = torch.randint(0, vocab_size, (4, 96), generator=generator)
    ids[0, : text_ids.shape[1]] = text_ids[0]
    labels = ids.clone()
    labels[:, :5] = -100
    with torch.no_grad():
        out = model(input_ids=ids, labels=labels)

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.safetensors", Path(folder) / "out.safetensors"
        save_file({"in.input_ids": ids, "in.labels": labels}, source)
        command = [args.program, "forward", "--model", args.model, "--input", source, "--output", target]
        command += ["--adapter", args.adapter] if args.adapter else []
        subprocess.run([str(part) for part in command], check=True)
        ours = load_file(target)

    difference = (ours["out.logits"] - out.logits).abs().max().item()
    same = (ours["out.logits"].argmax(-1) == out.logits.argmax(-1)).all().item()
    loss = abs(ours["out.loss"].item() - out.loss.item()) / out.loss.item()
    print(f"logits: largest difference {difference:.3g}, largest logit {out.logits.abs().max().item():.3g}")
    print(f"greedy token the same everywhere: {same}; loss {out.loss.item():.6f}, relative difference {loss:.2g}")
    return 0 if difference <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
