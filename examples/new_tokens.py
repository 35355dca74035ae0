"""New tokens: the vocabulary of a GPT-2 with a tied head grows, and only the new rows learn.

A small GPT-2 learns real sentences byte by byte. Then the commonest words become tokens of their own. Their rows of the
embedding, which is the head too, are trained with weight decay. Every other number of the model keeps its bits, and the
optimizer keeps state for the new rows alone.

    python examples/new_tokens.py [--figure FILE]
"""

import argparse
import collections
import csv
import re
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from maskedlinear_torch import assert_frozen, rows, train_new_tokens

SENTENCES = Path(__file__).parent / "minilm" / "pairs.tsv"
BYTES = 128
WORDS = 40
LENGTH = 32
BATCH = 16


def text():
    """Return the sentences as one text, in ASCII."""
    with SENTENCES.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        sentences = [sentence for row in rows for sentence in (row["first"], row["second"])]
    return "\n".join(sentences).encode("ascii", "ignore").decode()


def new_words(text):
    """Return the words that save most tokens."""
    counts = collections.Counter(re.findall("[a-z]{3,}", text))
    return sorted(counts, key=lambda word: -counts[word] * (len(word) - 1))[:WORDS]


def encode(text, words=()):
    """Return token numbers: bytes, and from BYTES on the words."""
    number = {word: BYTES + i for i, word in enumerate(words)}
    parts = re.findall("[a-z]{3,}|.|\n", text)
    return torch.tensor([n for part in parts for n in ([number[part]] if part in number else part.encode())])


def train(model, tokens, optimizer, steps):
    """Train on random pieces of the text and return the loss of each step."""
    draw_piece, losses = torch.Generator().manual_seed(0), []
    for _ in range(steps):
        starts = torch.randint(len(tokens) - LENGTH, (BATCH,), generator=draw_piece)
        batch = torch.stack([tokens[start : start + LENGTH] for start in starts.tolist()])
        optimizer.zero_grad()
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def bits_per_character(model, tokens, characters):
    """Return how many bits the model needs for a character of a text."""
    with torch.no_grad():
        pieces = tokens[: len(tokens) // LENGTH * LENGTH].view(-1, LENGTH)
        nats = model(input_ids=pieces, labels=pieces).loss.item() * len(tokens)
    return nats / characters / torch.log(torch.tensor(2.0)).item()


def run(steps=200):
    """Train a model of bytes, let its vocabulary grow, and train the new tokens.

    Returns:
        The losses; bits per character of text held back, of bytes alone, and of words before and after; how many
        numbers learn, how many are in the optimizer, and how many were proved frozen.
    """
    torch.manual_seed(0)
    whole = text()
    cut = len(whole) * 9 // 10
    words = new_words(whole[:cut])
    config = GPT2Config(
        vocab_size=BYTES, bos_token_id=0, eos_token_id=0, n_positions=LENGTH, n_embd=64, n_layer=2, n_head=4,
        attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    train(model, encode(whole[:cut]), torch.optim.AdamW(model.parameters(), lr=0.003), 2 * steps)
    in_bytes = bits_per_character(model, encode(whole[cut:]), len(whole) - cut)

    model.resize_token_embeddings(BYTES + WORDS)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train_new_tokens(model, first=BYTES)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=0.01, weight_decay=0.1)
    held_back = encode(whole[cut:], words)
    result = {"bytes": in_bytes, "before": bits_per_character(model, held_back, len(whole) - cut)}
    result["losses"] = train(model, encode(whole[:cut], words), optimizer, steps)
    result["after"] = bits_per_character(model, held_back, len(whole) - cut)
    trained = dict.fromkeys(("transformer.wte.weight", "lm_head.weight"), rows(range(BYTES, BYTES + WORDS)))
    result["frozen"] = assert_frozen(before, model.state_dict(), trained)
    result["numbers"] = sum(value.numel() for value in learning)
    moments = [value for state in optimizer.state.values() for value in state.values() if value.dim()]
    result["numbers in the optimizer"] = sum(value.numel() for value in moments)
    result["tied"] = torch.equal(model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    return result


def draw(result, file):
    """Draw the loss over the steps."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 3), layout="constrained")
    axes.plot(result["losses"])
    axes.set(xlabel="steps on the new tokens' rows", ylabel="loss for each token")
    figure.savefig(file)
    pyplot.close(figure)


def main(arguments=None):
    """Run, print what came of it, and draw if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figure", metavar="FILE")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the products are too small for more
    result = run()
    bits = f"{result['bytes']:.2f} in bytes; with words {result['before']:.2f} before, {result['after']:.2f} after"
    print(f"bits for a character, held back: {bits}")
    print(f"numbers that learn: {result['numbers']}; in the optimizer: {result['numbers in the optimizer']}")
    print(f"numbers that kept every bit: {result['frozen']}; embedding and head tied: {result['tied']}")
    if asked.figure:
        draw(result, asked.figure)


if __name__ == "__main__":
    main()
