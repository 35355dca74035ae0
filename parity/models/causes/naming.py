"""Causes by the names that people have for them in models: what operators' diagnoses mean for a module."""

from __future__ import annotations

import re
from dataclasses import replace

from parity.records import Diagnosis

NAMES = (
    ("x64 off|lower precision", "", "lower precision"),
    ("arrangement: interleaved", "paired as halves", "rope pairing"),
    ("arrangement: (interleaved|channel order)", "", "head order"),
    ("another formula: mask", r"a mask \(((ones|zeros|full)|.* everywhere)", "mask: left out"),
    ("default argument: diagonal", r"has -?\d{2,}", "mask: left out"),
    ("default argument: diagonal", "", "mask: diagonal"),
    ("another formula: mask", "the opposite one", "mask polarity"),
    ("mask", r"-?(\d{2,}|inf)|e\+", "mask fill"),
    ("another formula", "(max|avg)_pool", "pooling"),
    ("constant|another formula", r"\((broadcast_in_dim|full|zeros|ones)\b", "constant"),
    ("constant|another formula", r"^1 in \w+ where \w+ has (?!0 )\S+ \((mul|div)\b", "factor left out"),
    ("constant|another formula", r"^(?!0 )\S+ in torch where JAX has 1 \((mul|div)\b", "factor left out"),
    ("constant|another formula", r"^1 in|has 0 \(mul|^0 in \w+ where \w+ has 1 \(mul", "term left out"),
    ("another formula", r"^mul \((step [\d.]+|\d+ steps)\) in \w+ where \w+ has none", "factor left out"),
)
"""A pattern of the cause, one of the text, and the name in models; the first that fits."""

FIXES = {
    "lower precision": "Give the JAX module the type that torch computes in (dtype, preferred_element_type), "
    "or run torch under autocast.",
    "rope pairing": "Rotate the same pairs of channels: halves (0, n/2) or neighbours (0, 1); permute q and k once.",
    "head order": "Split and repeat heads alike: (head, channel); repeat_interleave is jnp.repeat, repeat is jnp.tile.",
    "flatten order": "Flatten in one order: torch flattens (channel, height, width), so transpose channels first.",
    "mask: left out": "Mask on both sides.",
    "mask: diagonal": "Cut the mask along the same diagonal: tril(k=0) sees itself, triu(diagonal=1) is its opposite.",
    "mask polarity": "True keeps in Flax and in jax.nn.dot_product_attention; it drops in nn.MultiheadAttention.",
}


ROOTS = re.compile(r"(\S+) in (torch|JAX) where (torch|JAX) has (\S+) \(mul, (\d+) times\)")
"""Says that the roots of two scales differ: torch's attention multiplies queries and keys by the root of its scale."""


def _of_attention(found: Diagnosis) -> Diagnosis:
    """Return the scale of attention where its root was named, on queries and on keys.

    Example:
        >>> text = "0.594603557501 in torch where JAX has 0.5 (mul, 4 times); with it replaced the two agree."
        >>> _of_attention(Diagnosis("constant", text, "")).text
        '0.353553 in torch where JAX has 0.25 (attention scale); with it replaced the two agree.'
    """
    match = ROOTS.match(found.text)
    if found.cause != "constant" or match is None or int(match[5]) % 2:
        return found
    numbers = [float(match[at]) for at in (1, 4)]
    if not all(0 < number < 1 and abs(number**-4 - round(number**-4)) < 1e-6 * number**-4 for number in numbers):
        return found  # no root of 1/sqrt(channels)
    mine, theirs = (f"{number**2:.6g}" for number in numbers)
    text = f"{mine} in {match[2]} where {match[3]} has {theirs} (attention scale){found.text[match.end() :]}"
    fix = "Scale the scores alike, by 1/sqrt(channels of a head)."
    return Diagnosis("constant: attention scale", text, fix)


def named(found: Diagnosis, *, attends: bool = True, rotates: bool = True, flattens: bool = True) -> Diagnosis:
    """Return a diagnosis of operators with the name that it has in models.

    Args:
        found: Of operators.
        attends: Whether the module has heads.
        flattens: Whether several axes become one in it.
        rotates: Whether it multiplies by cosines: a table of positions that is added has halves or neighbours too.

    Example:
        >>> named(Diagnosis("x64 off", "JAX computes in bfloat16 where float64 was asked for.", "")).cause
        'lower precision'
    """
    found = _of_attention(found)
    for cause, text, name in NAMES:
        if re.fullmatch(cause, found.cause) and re.search(text, found.text):
            if name == "head order" and not attends:
                name = "flatten order" if flattens else found.cause
            if name == "rope pairing" and not rotates:
                return replace(found, fix="Put sines and cosines in one order: in halves, or by turns.")
            if name == "lower precision":
                found = replace(found, text=found.text.replace(" where float64 was asked for", " here"))
            return replace(found, cause=name, fix=FIXES.get(name, found.fix))
    return found
