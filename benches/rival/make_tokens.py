"""Token file for the loss curves: Rust sources below a folder, as ids of a byte-level BPE trained on them.

Usage: make_tokens.py SOURCES OUT [tokens] [vocab]        (4,096 x 1,024 tokens in rows of 1,024; needs the package `tokenizers`; writes u16, little-endian)
"""
import array, pathlib, random, sys
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

ROW = 1024
sources, out = pathlib.Path(sys.argv[1]), sys.argv[2]
want, vocab = int(sys.argv[3]) if len(sys.argv) > 3 else 4_194_304, int(sys.argv[4]) if len(sys.argv) > 4 else 32_768
files = sorted(path for path in sources.rglob("*.rs") if 200 < path.stat().st_size < 200_000)
random.Random(0).shuffle(files)
texts, size = [], 0
for path in files:
    try:
        texts.append(path.read_text("utf-8"))
    except UnicodeDecodeError:
        continue
    size += len(texts[-1])
    if size > 5 * want:
        break
tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
trainer = trainers.BpeTrainer(vocab_size=vocab, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<eos>"], show_progress=False)
tokenizer.train_from_iterator(texts, trainer)
ids = array.array("H")
for text in texts:
    ids.extend(tokenizer.encode(text).ids)
    ids.append(0)
    if len(ids) >= want:
        break
assert len(ids) >= want, f"only {len(ids)} tokens below {sources}"
# Rows in random order: a step that is all one file has gradients a hundred times as large as the next one's, and two trainers
# that differ in the last bit part there.
rows = [ids[at : at + ROW] for at in range(0, want, ROW)]
random.Random(0).shuffle(rows)
with open(out, "wb") as file:
    for row in rows:
        row.tofile(file)
print(f"{want} tokens of {len(texts)} files, {size} characters, vocabulary {vocab}")
