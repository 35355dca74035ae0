"""Write pairs.tsv: what two libraries say in one sentence about the same function.

    python extract_pairs.py > pairs.tsv

Real sentences that mean the same and share few words: the first sentences of docstrings of NumPy, SciPy, JAX and
PyTorch (BSD-3-Clause, BSD-3-Clause, Apache-2.0, BSD-3-Clause), for functions of one name. Columns: name, first,
second, where each is from.
"""

import inspect
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import scipy
import scipy.special
import torch

NUMPY, SCIPY = f"numpy {np.__version__}", f"scipy {scipy.__version__}"
JAX, TORCH = f"jax {jax.__version__}", f"torch {torch.__version__.split('+')[0]}"
SOURCES = [
    (torch, TORCH, np, NUMPY),
    (torch.Tensor, TORCH, np, NUMPY),
    (torch.linalg, TORCH, np.linalg, NUMPY),
    (torch.fft, TORCH, np.fft, NUMPY),
    (torch.special, TORCH, scipy.special, SCIPY),
    (torch.nn.functional, TORCH, jax.nn, JAX),
    (jnp, JAX, np, NUMPY),
    (jnp.linalg, JAX, np.linalg, NUMPY),
    (jnp.fft, JAX, np.fft, NUMPY),
    (jax.lax, JAX, np, NUMPY),
    (jax.scipy.special, JAX, scipy.special, SCIPY),
    (torch, TORCH, jnp, JAX),
    (torch.linalg, TORCH, jnp.linalg, JAX),
    (torch.fft, TORCH, jnp.fft, JAX),
]
UNUSABLE = re.compile(
    r"alias|scalar constructor|deprecated|see also|"
    r"implementation of|\bsee\b|in-place|\$|\\|http|version|__|::|>>>|^note",
    re.I,
)


def sentence(function):
    """Return the first sentence of a docstring as plain text, or None."""
    text = inspect.getdoc(function) or ""
    for paragraph in text.split("\n\n"):
        line = " ".join(paragraph.split())
        line = re.sub(r":\w+:`~?([^`<]*?)(?:\s*<[^`]*>)?`", lambda m: m[1].split(".")[-1], line)
        line = re.sub(r"[`*|]+|\(#\)", "", line).strip()
        if not line or re.match(r"^[\w.]+\(.*$", line) or "->" in line.split(".")[0]:
            continue
        found = re.match(r"^([A-Z].{20,200}?[.])(\s|$)", line)
        if not found or UNUSABLE.search(found[1]):
            return None
        return found[1]
    return None


def words(text):
    """Return the words of a sentence."""
    return set(re.findall(r"[a-z]+", text.lower()))


def pairs():
    """Yield (name, first, second, source of the first, source of the second)."""
    seen = set()
    for first_module, first_source, second_module, second_source in SOURCES:
        for name in sorted(set(dir(first_module)) & set(dir(second_module))):
            if name.startswith("_"):
                continue
            first, second = sentence(getattr(first_module, name)), sentence(getattr(second_module, name))
            if not first or not second or first in seen or second in seen:
                continue
            shared = words(first) & words(second)
            if len(shared) > 0.8 * len(words(first) | words(second)):
                continue  # one was copied from the other
            seen |= {first, second}
            yield name, first, second, first_source, second_source


if __name__ == "__main__":
    rows = sorted(pairs())
    sys.stdout.write("name\tfirst\tsecond\tfirst_source\tsecond_source\n")
    sys.stdout.writelines("\t".join(row) + "\n" for row in rows)
