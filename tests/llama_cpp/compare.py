"""Runs exported GGUF files in llama.cpp and compares what it says with transformers.

Not part of the test suite, which needs no Python. To run it:

    python3 -m venv VENV && VENV/bin/pip install torch transformers safetensors gguf xllamacpp
    cargo build --locked --package model-core
    VENV/bin/python tests/llama_cpp/compare.py target/debug/model-core

For a small LLaMA (grouped heads; Llama 3's frequencies) and a small GPT-OSS with random weights, in every type: the tensors as the
Python package reads and decodes them beside transformers' own, the ids of a text, and log-probabilities after prompts of ids, some
longer than the window, over the whole vocabulary. llama.cpp always rounds the ends of YaRN's ramp, so transformers is told to do so
too; the line `as it is` has the difference without. Ends with 1 when a difference is larger than the bound of its type.
"""
import json, pathlib, subprocess, sys, tempfile, urllib.request
import numpy as np
import torch
import xllamacpp
from gguf import GGUFReader, dequantize
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, GptOssConfig, GptOssForCausalLM, LlamaConfig, LlamaForCausalLM

PROGRAM = sys.argv[1]
VOCAB = 352
TEXT = "It's a truth universally acknowledged, that 12345 naïve men\n\n  possess a good fortune  "
# Mean difference of a log-probability. In f32 it is rounding and order of summation alone; elsewhere llama.cpp also rounds what it
# multiplies the weights with, and a router may choose another expert.
BOUNDS = {"f32": 2e-5, "f16": 0.01, "bf16": 0.06, "q8_0": 0.2, "mxfp4": 0.6}
# Of a weight over the largest of its tensor.
WEIGHTS = {"f32": 0, "f16": 5e-4, "bf16": 4e-3, "q8_0": 5e-3, "mxfp4": 0.26}


def tokenizer(folder):
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator([TEXT] * 3, trainers.BpeTrainer(vocab_size=VOCAB - 10, initial_alphabet=alphabet, show_progress=False, special_tokens=["<|endoftext|>"]))
    made.save(str(folder / "tokenizer.json"))
    return made


def llama():
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, hidden_size=128, intermediate_size=352, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, rms_norm_eps=1e-5, tie_word_embeddings=False, bos_token_id=None, eos_token_id=0, pad_token_id=None, rope_parameters=rope, attn_implementation="eager"))


def gpt_oss():
    rope = {"rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False, "original_max_position_embeddings": 4096}
    return GptOssForCausalLM(GptOssConfig(vocab_size=VOCAB, hidden_size=128, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=64, num_local_experts=6, num_experts_per_tok=2, sliding_window=128, max_position_embeddings=131072, rms_norm_eps=1e-5, tie_word_embeddings=False, attention_bias=True, swiglu_limit=7.0, bos_token_id=None, eos_token_id=0, pad_token_id=None, rope_parameters=rope, attn_implementation="eager", experts_implementation="eager"))


def randomize(model):
    torch.manual_seed(3)
    with torch.no_grad():
        for name, p in model.named_parameters():
            r = torch.randn(p.shape)
            wide = p.shape[-2] if "experts" in name and p.dim() == 3 else p.shape[-1]
            p.copy_(1 + 0.2 * r if "norm" in name else r if p.dim() == 1 else 0.2 * r if name.endswith("bias") else r * 1.5 / wide**0.5)


def names(model):
    """The tensors of GGUF, made of transformers' own."""
    heads = model.config.num_attention_heads, model.config.num_key_value_heads
    rotated = lambda w, n: w.reshape(n, 2, w.shape[0] // n // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)
    oss, out = "GptOss" in type(model).__name__, {}
    plain = {"self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.sinks": "attn_sinks.weight", "input_layernorm": "attn_norm", "post_attention_layernorm": "post_attention_norm" if oss else "ffn_norm", "mlp.router": "ffn_gate_inp", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k"}
    for name, p in model.named_parameters():
        w = p.detach().numpy()
        if not name.startswith("model.layers."):
            out[{"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}[name]] = w
            continue
        _, _, layer, part = name.split(".", 3)
        block, kind = f"blk.{layer}.", "bias" if part.endswith("bias") else "weight"
        if "experts" in part:
            w = w if kind == "bias" else w.swapaxes(1, 2)
            pieces = {"gate": w[:, 0::2], "up": w[:, 1::2]} if "gate_up" in part else {"down": w}
            out |= {f"{block}ffn_{piece}_exps.{kind}": value for piece, value in pieces.items()}
            continue
        if not oss and ("q_proj" in part or "k_proj" in part):
            w = rotated(w, heads["k_proj" in part])
        stem = plain[part.rsplit(".", 1)[0] if part.endswith((".weight", ".bias")) else part]
        out[block + (stem if stem.endswith(".weight") else f"{stem}.{kind}")] = w
    return out


def check_tensors(path, model, kind):
    want, worst = names(model), 0.0
    tensors = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    assert set(tensors) - {"rope_freqs.weight"} == set(want), set(tensors) ^ set(want)
    for name, tensor in tensors.items():
        if name == "rope_freqs.weight":
            continue
        got = dequantize(tensor.data, tensor.tensor_type)
        assert got.shape == want[name].shape, (name, got.shape, want[name].shape)
        worst = max(worst, float(np.abs(got - want[name]).max() / np.abs(want[name]).max()))
    assert worst <= WEIGHTS[kind], (kind, worst)
    return len(tensors), worst


def serve(path):
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.warmup = str(path), 512, 1, False
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cpuparams.n_threads = 2
    return xllamacpp.Server(params)


def logprobs(server, ids):
    answer = server.handle_completions({"prompt": ids, "n_predict": 1, "n_probs": VOCAB, "temperature": -1.0, "cache_prompt": False})
    found = np.full(VOCAB, np.nan)
    for top in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
        found[top["id"]] = top["logprob"]
    return found


def reference(model, prompts):
    with torch.no_grad():
        return [torch.log_softmax(model(torch.tensor([ids])).logits[0, -1].double(), -1).numpy() for ids in prompts]


def main():
    rng, failed = np.random.default_rng(5), False
    prompts = [rng.integers(1, VOCAB, n).tolist() for n in (1, 7, 60, 200, 300)]
    for make, kinds in ((llama, ["f32", "f16", "bf16", "q8_0"]), (gpt_oss, ["f32", "f16", "bf16", "q8_0", "mxfp4"])):
        with tempfile.TemporaryDirectory() as scratch:
            folder = pathlib.Path(scratch) / make.__name__
            model = make().eval()
            randomize(model)
            model.save_pretrained(folder)
            encoded = tokenizer(folder).encode(TEXT).ids
            as_it_is = want = reference(model, prompts)
            if make is gpt_oss:
                model.config.rope_parameters["truncate"] = True
                rounded = AutoModelForCausalLM.from_pretrained(folder, config=model.config, attn_implementation="eager", experts_implementation="eager").eval()
                want = reference(rounded, prompts)
            for kind in kinds:
                path = pathlib.Path(scratch) / f"{kind}.gguf"
                subprocess.run([PROGRAM, "export", "--model", folder, "--out", path, "--format", "gguf", "--type", kind], check=True, stdout=subprocess.DEVNULL)
                n, worst = check_tensors(path, model, kind)
                server = serve(path)
                got = [logprobs(server, ids) for ids in prompts]
                with urllib.request.urlopen(urllib.request.Request(server.listening_address + "/tokenize", json.dumps({"content": TEXT, "add_special": True}).encode(), {"Content-Type": "application/json"})) as reply:
                    same_ids = json.load(reply)["tokens"] == encoded
                apart = np.nan_to_num(np.abs(np.array(got) - np.array(want)), nan=np.inf)
                top = sum(int(g.argmax() == w.argmax()) for g, w in zip(got, want))
                bad = not (apart.mean() <= BOUNDS[kind] and same_ids)
                failed |= bad
                print(f"{make.__name__} {kind}: {n} tensors, weights {worst:.1e}, ids alike {same_ids}, log-probabilities {apart.mean():.1e} (largest {apart.max():.1e}), same top {top}/{len(prompts)}{' MISS' if bad else ''}", flush=True)
                if make is gpt_oss and kind == "f32":
                    print(f"{make.__name__} {kind} as it is: log-probabilities {max(np.abs(g - w).max() for g, w in zip(got, as_it_is)):.1e}")
                del server
    sys.exit(failed)


main()
