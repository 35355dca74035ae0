"""A port that others published: fair-esm's ESM2 and esm2quinox, an Equinox model whose layers are stacked and scanned.

Nothing is downloaded but the packages: the model is small, its weights random, equal on both sides. No name of a weight
is given by hand.

    pip install --no-deps --target DIR fair-esm==2.0.0 esm2quinox==0.2.0
    PYTHONPATH=DIR python examples/ports/esm2.py
"""

import esm2quinox
import jax
import numpy as np
import torch
from esm.model.esm2 import ESM2

import parity
from parity.models import Inputs


def main():
    """Compare the pair and print the report."""
    torch.manual_seed(0)
    model = ESM2(num_layers=3, embed_dim=20, attention_heads=2, alphabet="ESM-1b", token_dropout=True).eval()
    port = esm2quinox.ESM2(3, 20, 2, True, key=jax.random.key(0))
    port = parity.map_weights(model, port).load_into_jax(model, port, partial=True)  # the port has no contact head
    tokens = np.random.default_rng(0).integers(4, 24, (2, 9))
    inputs = Inputs(torch={"tokens": tokens, "repr_layers": [3]}, jax=(tokens,))
    print(parity.compare_models(model, port, inputs, name="ESM2"))


if __name__ == "__main__":
    main()
