"""Each difference of the atlas at one number, by plain torch and plain JAX: the harness has no part in it."""

import importlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from parity.suites.atlas.examples import EXAMPLES
from parity.suites.atlas.pairs import PAIRS

DIFFERING = {pair.name: pair for pair in PAIRS if pair.known}
DIGITS = {"float64": 1e-9, "float32": 2e-5}
"""Of the figures as they are written; float32's come from sums whose order a machine may choose."""


def arrays(example):
    made = [np.asarray(one) for one in example.at]
    return [one.astype(example.dtype if one.dtype.kind == "f" else "int32") for one in made]


def first(result):
    return first(result[0]) if isinstance(result, tuple | list) else result


def by_torch(function, example):
    of, (x, *rest) = example.of, map(torch.tensor, arrays(example))
    if of.startswith("value"):
        return first(function(x, *rest))
    if of.startswith("tangent"):
        along = torch.ones_like(x)
        if "ones" not in of:
            along = torch.zeros_like(x)
            along[1, 0] = 1
        return torch.func.jvp(lambda x: first(function(x, *rest)), (x,), (along,))[1]
    chosen = (lambda y: y.flatten()[0]) if "first" in of else torch.sum
    return torch.func.grad(lambda x: chosen(first(function(x, *rest))))(x)


def by_jax(function, example):
    with jax.enable_x64(True):
        of, (x, *rest) = example.of, map(jnp.asarray, arrays(example))
        if of.startswith("value"):
            return first((jax.jit(function) if "jit" in of else function)(x, *rest))
        if of.startswith("tangent"):
            along = jnp.ones_like(x) if "ones" in of else jnp.zeros_like(x).at[1, 0].set(1)
            return jax.jvp(lambda x: first(function(x, *rest)), (x,), (along,))[1]
        chosen = (lambda y: y.ravel()[0]) if "first" in of else jnp.sum
        return jax.grad(lambda x: chosen(first(function(x, *rest))))(x)


def seen(by, function, example):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's about kl_div, say: people see it, and the number is the same
            result = np.asarray(by(function, example))
    except Exception as error:  # what the example is of
        return f"raises {type(error).__name__}"
    return result if example.entry is None else result[example.entry]


def assert_said(got, said, example):
    if isinstance(said, str) or isinstance(got, str):
        assert isinstance(got, str), got
        assert got == said
    else:
        assert np.shape(got) == np.shape(said)
        np.testing.assert_allclose(got, said, rtol=DIGITS[example.dtype], atol=1e-10, equal_nan=True)


def test_every_difference_has_an_example():
    assert set(EXAMPLES) == set(DIFFERING)


CASES = [(name, number) for name, examples in EXAMPLES.items() for number in range(len(examples))]


@pytest.mark.parametrize(("name", "number"), CASES, ids=[f"{name}-{number}" for name, number in CASES])
def test_example(name, number):
    example, pair = EXAMPLES[name][number], DIFFERING[name]
    assert_said(seen(by_torch, pair.torch, example), example.torch, example)
    assert_said(seen(by_jax, pair.jax, example), example.jax, example)
    assert str(example.torch) != str(example.jax)
    assert str(example) in pair.note


@pytest.mark.parametrize("name", ["std", "index out of range", "unique"])
def test_a_wrong_example_is_seen(name):
    example, pair = EXAMPLES[name][0], DIFFERING[name]
    with pytest.raises(AssertionError, match=r"raises|array|Mismatch|Not equal"):
        assert_said(seen(by_torch, pair.torch, example), example.jax, example)
    with pytest.raises(AssertionError, match=r"raises|array|Mismatch|Not equal"):
        assert_said(seen(by_jax, pair.jax, example), example.torch, example)


def names_in(note):
    """Return what the documentation pages in a note are of, as their addresses name it."""
    for word in note.split():
        if word.startswith("https://") and "notebooks" not in word:
            yield word.rsplit("#", 1)[-1] if "#" in word else word.rsplit("/", 1)[-1].removesuffix(".html")


@pytest.mark.parametrize("name", DIFFERING)
def test_what_is_documented_there_exists(name):
    found = list(names_in(DIFFERING[name].note))
    packages = {dotted.split(".")[0] for dotted in found}
    assert "torch" in packages
    assert packages & {"jax", "optax"} or "notebooks" in DIFFERING[name].note
    for dotted in found:
        package, *rest = dotted.split(".")
        thing = importlib.import_module(package)
        for part in rest:
            if not hasattr(thing, part):
                importlib.import_module(f"{thing.__name__}.{part}")
            thing = getattr(thing, part)
        assert callable(thing), dotted
