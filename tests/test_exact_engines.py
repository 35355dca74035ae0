"""The engines of the reproducible precision: each computes the same integers, for every kind of mask (contract S9)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import maskedlinear_jax as mj
import maskedlinear_torch as mt
from maskedlinear_core import blocks, columns, elements, positions, precision, rows, submatrix
from maskedlinear_jax import integer_products as jax_engines
from maskedlinear_torch import integer_products as torch_engines
from parity.suites.masked_linear import numbers
from tests.dots import ENGINES, MASK, bits, draw, gradients, jax_dot, oracle, same, torch_dot

LENGTHS = [0, 1, 2, 3, 17, 128, 129, 1000, 1025]
BITS = [None, 40, "most"]


@pytest.mark.parametrize("kind", numbers.KINDS)
def test_torch_engines_give_the_answer(kind):
    for number, length in enumerate(LENGTHS):
        x, w = draw(kind, (5, length), number), draw(kind, (4, length), number + 99)
        for p in BITS:
            # Other sums of the layer are as long as its other sides: 4 outputs, 5 rows.
            p = precision.most_bits(max(length, 5)) if p == "most" else p
            if p is None or p <= precision.most_bits(max(length, 5)):
                want = oracle(x, w, p or 0)
                for engine in ENGINES:
                    got = bits(torch_dot(x, w, engine=engine, bits=p))
                    assert (got == want).all(), f"{engine}, K = {length}, p = {p}"


@pytest.mark.parametrize("kind", ["exponents 20", "near the limit", "cancelling", "ties", "subnormal", "not a number"])
def test_jax_engines_give_the_answer(kind):
    for number, (length, p) in enumerate([(0, None), (17, None), (1025, None), (129, 41)]):
        x, w = draw(kind, (5, length), number), draw(kind, (4, length), number + 99)
        want = oracle(x, w, p or 0)
        for engine in ENGINES:
            assert (bits(jax_dot(x, w, engine=engine, bits=p)) == want).all(), f"{engine}, K = {length}, p = {p}"


@pytest.mark.parametrize("length", [65536, 70000])
def test_long_sums(length):
    """Beyond 65536 the rule goes on: p falls with K, and near-limit sums stay exact."""
    for kind in ("near the limit", "normal"):
        x, w = draw(kind, (2, length)), draw(kind, (3, length), 1)
        want = oracle(x, w)
        for engine in ENGINES:
            assert (bits(torch_dot(x, w, engine=engine)) == want).all()
        assert (bits(jax_dot(x, w)) == want).all()


@pytest.mark.parametrize(("dot", "engine"), [*((torch_dot, engine) for engine in ENGINES), (jax_dot, "float64")])
def test_rows_in_pieces(dot, engine, monkeypatch):
    """A long batch is computed some rows at a time, the last fewer."""
    seen = []

    def watched(by_rows):
        return lambda compute, x, w: by_rows(lambda x: seen.append(x.values.shape[0]) or compute(x), x, w)

    for engines in (torch_engines, jax_engines):
        monkeypatch.setattr(engines, "PIECE", 1)
        monkeypatch.setattr(engines, "by_rows", watched(engines.by_rows))
    x, w = draw("exponents 6", (1100, 3)), draw("exponents 6", (2, 3), 1)
    assert (bits(dot(x, w, engine=engine)) == oracle(x, w)).all()
    assert seen[-3:] == [512, 512, 76]


KINDS = {
    "rows": rows([1, 5]),
    "submatrix": submatrix([1, 5], [0, 3, 4]),
    "blocks": blocks(np.eye(3, dtype=bool), (2, 4)),
    "no blocks": blocks(np.zeros((3, 3), bool), (2, 4)),
    "elements": elements(np.random.default_rng(0).random((6, 12)) < 0.4),
    "one element": elements(np.arange(72).reshape(6, 12) == 40),
}


def packed_gradients(twin, x, w, g, mask, how):
    """The output and the gradients of the packed layer, whose elements are computed as single entries."""
    if twin == "torch":
        leaves = [torch.tensor(x, requires_grad=True), mt.pack(torch.tensor(w), grad_mask=mask).requires_grad_()]
        y = mt.packed_linear(leaves[0], torch.tensor(w), leaves[1], grad_mask=mask, precision=how)
        y.backward(torch.tensor(g))
        return [bits(part.detach()) for part in (y, *(leaf.grad for leaf in leaves))]
    values = mj.pack(jnp.asarray(w), grad_mask=mask)
    y, pull = jax.vjp(
        lambda x, v: mj.packed_linear(x, jnp.asarray(w), v, grad_mask=mask, precision=how), jnp.asarray(x), values
    )
    return [bits(part) for part in (y, *pull(jnp.asarray(g)))]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("twin", ["torch", "jax"])
def test_every_kind_from_every_engine(twin, kind, monkeypatch):
    """Single entries also where they are many and few: `SPARSE` says which are dot products of their own."""
    x, w, b, g = draw("exponents 6", (7, 12)), draw("normal", (6, 12), 1), draw("normal", 6, 2), draw("ties", (7, 6), 3)
    full, packed = (gradients("torch", x, w, b, g, KINDS[kind]), packed_gradients("torch", x, w, g, KINDS[kind],
                    "reproducible"))  # fmt: skip
    for engine in ENGINES[1:]:
        how = mt.reproducible(engine=engine)
        if twin == "torch" or engine == "int8":
            assert same(gradients(twin, x, w, b, g, KINDS[kind], how), full)
            assert same(packed_gradients(twin, x, w, g, KINDS[kind], how), packed)
        if kind == "one element":
            monkeypatch.setattr(positions, "SPARSE", 1)
            jax.clear_caches()
            assert same(packed_gradients(twin, x, w, g, KINDS[kind], how), packed)
            monkeypatch.undo()


def test_int8_under_vmap():
    """Over the input, over the weight, over both; forward and backward."""
    x, w, g = (torch.tensor(draw("exponents 6", shape, shape[1])) for shape in ((40, 96), (24, 96), (40, 24)))
    weights = torch.stack([w, w.flip(1), 2 * w])

    def d_weight(x, w, how):
        layer = lambda w: mt.masked_linear(x, w, grad_mask=MASK, precision=how)  # noqa: E731
        return torch.func.vjp(layer, w)[1](g[: len(x)])[0]

    int8 = mt.reproducible(engine="int8")
    batched = [
        (x, weights, (None, 0)),
        (x.reshape(2, 20, 96), w, (0, None)),
        (x[:6].reshape(3, 2, 96), weights, (0, 0)),
    ]
    for x_part, w_part, dims in batched:
        run = lambda how: torch.func.vmap(lambda x, w: d_weight(x, w, how), dims)(x_part, w_part)  # noqa: B023, E731
        assert torch.equal(run(int8), run("reproducible"))


def test_sums_just_past_the_bound_are_not_exact(monkeypatch):
    """Why p is what it is: with two bits more, two float64 products lose some."""
    x, w = (draw("near the limit and back", (64, 1024), seed) for seed in (0, 1))
    operands = [torch_engines.operand(torch.tensor(one), 1) for one in (x, w)]
    p = precision.default_bits(1024)

    def inexact(p):
        y = torch_engines.Float64().multiply(
            lambda x, w: x @ w.t(), lambda x, w: (x, w.t()), *operands, terms=1024, bits=p, reduce=lambda parts: parts
        )
        return float(np.mean(bits(y.numpy()) != oracle(x, w, p)))

    assert inexact(p) == 0
    assert inexact(p + 3) == 0  # four products
    monkeypatch.setattr(precision, "default_bits", lambda terms: 99)  # two
    assert inexact(p) == 0
    # How many depends on the order in which a machine's BLAS adds: 6 % or 10 % with two bits more.
    assert 0 < inexact(p + 2) < inexact(p + 3)


@pytest.mark.parametrize("dot", [torch_dot, jax_dot])
def test_four_products_at_the_most_bits(dot):
    """The first half of a sum is undone by the second, but for a little: partial sums come close to 2^53."""
    rng, terms = np.random.default_rng(0), 1024
    x, w = (rng.integers(2**23, 2**24, (rows, terms)).astype(np.float32) for rows in (4, 3))
    half = terms // 2
    x[:, half:], w[:, half:] = -x[:, :half], w[:, :half]
    x[:, -1] += 2 * rng.integers(-3, 4, 4)
    p = precision.most_bits(terms)
    assert (bits(dot(x, w, engine="float64", bits=p)) == oracle(x, w, p)).all()


def test_digits_past_the_bound_are_not_exact(monkeypatch):
    x, w = (draw("near the limit and back", (64, 1024), seed) for seed in (0, 1))
    want = oracle(x, w)
    assert (bits(torch_dot(x, w, engine="float32")) == want).all()
    monkeypatch.setattr(precision, "digit_bits", lambda terms, engine: 12)
    assert np.mean(bits(torch_dot(x, w, engine="float32")) != want) > 0.02


class Gpu(NamedTuple):
    """What is asked of a device."""

    type: str = "cuda"
    platform: str = "cuda"
    compute_capability: str = ""


@pytest.mark.parametrize(("capability", "engine"), [
    ("8.0", "float64"), ("9.0", "float64"), ("10.0", "float64"),
    ("7.5", "float32"), ("8.6", "float32"), ("8.9", "float32"), ("12.0", "float32"),
])  # fmt: skip
def test_engine_that_suits_a_gpu(capability, engine, monkeypatch):
    from maskedlinear_jax import engine_choice as jax_choice
    from maskedlinear_torch import engine_choice as torch_choice

    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device: tuple(map(int, device.compute_capability.split(".")))
    )
    gpu, another = Gpu(compute_capability=capability), Gpu(compute_capability="8.9")
    for asked, found in (("auto", engine), ("int8", "int8")):
        assert torch_choice._engine(asked, gpu) == found
        assert jax_choice._engine(asked, "cuda", [gpu]) == found
    # One program runs on all.
    assert jax_choice._engine("auto", "cuda", [gpu, another]) == "float32"


def test_engine_of_other_devices():
    from maskedlinear_jax import engine_choice as jax_choice
    from maskedlinear_torch import engine_choice as torch_choice

    assert torch_choice._engine("auto", torch.device("cpu")) == "float64"
    assert torch_choice._engine("auto", torch.device("mps")) == "float32"
    assert jax_choice._engine("auto", "cpu", jax.devices("cpu")) == "float64"
    assert jax_choice._engine("auto", "tpu", [Gpu(platform="tpu")]) == "float32"
    # Not here: nothing is known of it but its platform.
    assert [jax_choice._engine("auto", name, []) for name in ("cpu", "cuda", "rocm")] == [
        "float64",
        "float32",
        "float32",
    ]


@pytest.mark.parametrize("engine", ["float32", "int8"])
def test_sums_too_long_for_digits(twin, engine):
    """2^24 + 1 rows of nothing."""
    x, w = twin.array(np.ones((2**24 + 1, 0))), twin.array(np.ones((4, 0)))
    with pytest.raises(ValueError, match=f"expected sums of at most 16777216 terms for engine='{engine}', got 1677721"):
        twin.masked_linear(x, w, grad_mask=columns([]), precision=mt.reproducible(engine=engine))


@pytest.mark.parametrize("engine", ["float32", "int8"])
def test_digits_fit_for_every_length(engine):
    """The sums of one place fit: of products in float32 each in 24 bits, all of them in an int32."""
    for length in range(25):
        for p in {precision.default_bits(2**length), precision.most_bits(2**length)}:
            base = precision.digit_bits(2**length, engine)
            largest = 2 ** (2 * (base - 1) + length)
            assert largest * -(-(p + 1) // base) < 2**31
            assert largest <= 2**24 or engine == "int8"
            assert base <= 7 or engine == "float32"  # 2^(base - 1) is an int8
