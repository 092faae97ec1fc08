"""Writes data/wordpiece.json: what the Python package `tokenizers` makes of many texts.

Usage: python wordpiece.py MODEL_DIR OUTPUT.json

MODEL_DIR holds tokenizer.json of an uncased BERT model (MiniLM's here). The texts, but for a few,
are not stored: tests/io/wordpiece_test.cpp draws the same ones, and compares CRC-32s of the words
(UTF-8, each followed by a zero byte, each text by a one) and of the ids (four bytes each, lowest
first, each text by four bytes 255). Made with tokenizers 0.23.3.
"""

import json
import struct
import sys
import zlib

import tokenizers
from tokenizers import Tokenizer, normalizers, pre_tokenizers

model, output = sys.argv[1:]
tokenizer = Tokenizer.from_file(f"{model}/tokenizer.json")
tokenizer.no_padding()
split = pre_tokenizers.BertPreTokenizer().pre_tokenize_str
MODES = [(lower, strip) for lower in (True, False) for strip in (True, False)]


def normalizer(lower, strip):
    return normalizers.BertNormalizer(lowercase=lower, strip_accents=strip)


NORMALIZERS = [normalizer(*mode) for mode in MODES]


class Random:
    """SplitMix64 (Steele, Lea and Flood 2014)."""

    def __init__(self, seed):
        self.state = seed

    def below(self, bound):
        mask = (1 << 64) - 1
        self.state = (self.state + 0x9E3779B97F4A7C15) & mask
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return (z ^ (z >> 31)) % bound


def ids_of(text, max_length=None, lower=True, strip=True):
    tokenizer.normalizer = normalizer(lower, strip)
    tokenizer.no_truncation() if max_length is None else tokenizer.enable_truncation(max_length)
    return tokenizer.encode(text).ids


def sums(texts, max_length):
    """A CRC-32 of the words in each mode, and one of the ids."""
    words = [0] * len(MODES)
    ids = 0
    tokenizer.normalizer = NORMALIZERS[0]
    tokenizer.enable_truncation(max_length)
    for text in texts:
        for i, normalize in enumerate(NORMALIZERS):
            cut = split(normalize.normalize_str(text))
            row = b"".join(word.encode() + b"\0" for word, _ in cut) + b"\1"
            words[i] = zlib.crc32(row, words[i])
        row = tokenizer.encode(text).ids
        ids = zlib.crc32(struct.pack(f"<{len(row)}I", *row) + b"\xff" * 4, ids)
    return words + [ids]


def code_point_block(first):
    """Each code point of the block inside a word, alone, and twice after a capital with a mark."""
    codes = [c for c in range(first, first + 0x1000) if not 0xD800 <= c <= 0xDFFF]
    return [f"a{chr(c)}b {chr(c)} E\u0301{chr(c)}{chr(c)}" for c in codes]


def random_text(random, pool):
    text = ""
    for _ in range(1 + random.below(24)):
        if random.below(8) == 0:
            text += pool["inserts"][random.below(len(pool["inserts"]))]
        else:
            first, last = pool["ranges"][random.below(len(pool["ranges"]))]
            text += chr(first + random.below(last - first + 1))
    return text


def random_bytes(random):
    row = bytes(
        [0x61 + random.below(8), 0x80 + random.below(128), 0xE0 + random.below(24), 0x20][
            random.below(4)
        ]
        for _ in range(1 + random.below(40))
    )
    return row.decode("utf-8", errors="replace")


SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[mask]", "[CLS", "[", "]", "##", " "]
POOLS = {
    # Scripts that the vocabulary has, so that ids differ.
    "scripts": {
        "ranges": [
            [0x20, 0x7E], [0x61, 0x7A], [0x61, 0x7A], [0xA0, 0x24F], [0x300, 0x36F], [0x370, 0x52F],
            [0x591, 0x6FF], [0x900, 0xDFF], [0xE00, 0xFFF], [0x1100, 0x11FF], [0x1E00, 0x1FFF],
            [0x2000, 0x206F], [0x20A0, 0x22FF], [0x3000, 0x30FF], [0x4E00, 0x9FFF],
            [0xAC00, 0xD7A3], [0xF900, 0xFAFF], [0xFE00, 0xFFFF], [0x1F300, 0x1FAFF],
            [0x2F800, 0x2FA1F], [0xE000, 0xE0FF],
        ],
        "inserts": SPECIALS + ["\t", "\r\n", "\0", "\x7f", "\u0085", "\u200b", "\ufffd", "İ", "ß"],
    },
    # Combining marks of many classes, kept and removed, after letters: their order.
    "marks": {
        "ranges": [
            [0x61, 0x7A], [0x300, 0x36F], [0x591, 0x5C7], [0x8D0, 0x903], [0x93A, 0x94F],
            [0xCBC, 0xCD6], [0xF71, 0xF84], [0x1B34, 0x1B44], [0x1BAA, 0x1BF3], [0x1DF0, 0x1DFF],
            [0x302A, 0x302F], [0x1134B, 0x1134D], [0x1D157, 0x1D172], [0x1D1BB, 0x1D1C0],
            [0x1E000, 0x1E02A], [0x1E944, 0x1E94A],
        ],
        "inserts": ["\u00e9", "\u0344", "\u0958", "\u1b44", "\ua953", "\U0001d165", "\u3099", " "],
    },
    "all": {"ranges": [[0, 0xD7FF], [0xE000, 0x1FFFF], [0x20000, 0x10FFFF]], "inserts": SPECIALS},
}

CASES = [
    "", " ", "Hello, world!", "unaffable", "don't stop-believing: it's 5.30 o'clock (really?)",
    "The Zürich café's naïve résumé — “quoted” … £5 ≠ €7", "İstanbul ΟΔΟΣ ß ẞ Ǆ ﬁ",
    "Привет, мир! Ёлка", "नमस्ते दुनिया", "สวัสดีชาวโลก", "שָׁלוֹם עולם", "مرحبا بالعالم",
    "你好，世界。豈更 𠀀𪜀", "こんにちは カタカナ ガ", "한국어 띄어쓰기", "😀👍🏽 #1️⃣",
    "a\u0301\u0323e\u200db \u00a0c\u3000d\u2028e", "tab\tnew\nline\rnull\0del\x7fnel\u0085bom\ufeff",
    "x[SEP]y [[MASK]] [cls] [PAD][UNK] [CLS", "foo[MASK]\u0301 bar", "##ing ing [unused1]",
    "a" * 100, "a" * 101, "\u0301" * 200 + "word", "supercalifragilisticexpialidocious",
    "&lt;b&gt; http://www.example.com/a_b?c=d&e=f user@example.org", "\U0001d15e\U0001d160 \u0cca",
]
cases = []
for text in CASES:
    cases.append({"text": text, "ids": ids_of(text)})
for lower, strip in MODES[1:]:
    for text in CASES[4:15]:
        cases.append(
            {"text": text, "lower": lower, "strip": strip, "ids": ids_of(text, None, lower, strip)}
        )
for text in (CASES[2], CASES[3], CASES[18]):
    for max_length in range(2, 9):
        cases.append({"text": text, "max_length": max_length, "ids": ids_of(text, max_length)})

max_length, chunk = 24, 500
oracle = {
    "tokenizers": tokenizers.__version__,
    "modes": MODES,
    "cases": cases,
    "max_length": max_length,
    "code_points": [
        sums(code_point_block(first), max_length) for first in range(0, 0x110000, 0x1000)
    ],
    "chunk": chunk,
    "pools": [],
    "bytes": {"seed": 10, "sums": []},
}
for seed, pool in enumerate(POOLS.values()):
    random = Random(seed)
    rows = [sums([random_text(random, pool) for _ in range(chunk)], max_length) for _ in range(20)]
    oracle["pools"].append({"seed": seed, **pool, "sums": rows})
random = Random(oracle["bytes"]["seed"])
for _ in range(10):
    oracle["bytes"]["sums"].append(sums([random_bytes(random) for _ in range(chunk)], max_length))

text = json.dumps(oracle, ensure_ascii=True, separators=(",", ":"))
with open(output, "w", encoding="utf-8") as file:
    file.write(text.replace('},{"text"', '},\n{"text"').replace("],[", "],\n[") + "\n")
