"""Rivals compute what we compute, or are not timed; and what ours keep is what they say."""

import dataclasses
import importlib

import numpy as np
import pytest
import torch

from benchmarks import operands, rows, torch_rivals, worker
from benchmarks.limits import Machine
from benchmarks.operands import NotTheSame
from benchmarks.rows import Row

SHAPE = (8, 32, 48)
MACHINE = Machine(1e11, 1e10)


def row(framework, kind="columns", **changes):
    usual = Row(framework, "forward+backward", kind, 0.25, SHAPE, "float32", rows.HOWS[framework][0], "inner")
    return dataclasses.replace(usual, **changes)


def steps(one):
    return importlib.import_module(f"benchmarks.{one.framework}_steps").steps(one, operands.draw(one), "cpu")


VARIANTS = {
    "columns": {},
    "rows, all": {"kind": "rows", "p": 1.0},
    "submatrix, first layer": {"kind": "submatrix", "place": "first"},
    "blocks, batch of two dimensions": {"kind": "blocks", "shape": (2, 4, 32, 48)},
    "elements, bfloat16": {"kind": "elements", "dtype": "bfloat16"},
}


IN_JAX = ("columns", "submatrix, first layer", "elements, bfloat16")
"""Each costs a second and a half of compilation."""


@pytest.mark.parametrize(
    ("framework", "variant"), [("torch", name) for name in VARIANTS] + [("jax", name) for name in IN_JAX]
)
def test_all_compute_the_masked_gradient(framework, variant):
    one = row(framework, **VARIANTS[variant])
    numbers, mask = operands.draw(one), rows.mask_of(one).to_array(one.weight_shape)
    names = []
    for name, step in steps(one).items():
        if name != "dense":
            step.check(name, mask, numbers)
            names.append(name)
    assert names == ["masked", "packed", "one-liner", "masked afterwards", "densified"]


def test_the_seeds_loop_computes_it_too():
    one = row("torch", shape=rows.LOOP)
    numbers, mask = operands.draw(one), rows.mask_of(one).to_array(one.weight_shape)
    steps(one)["seed's loop"].check("seed's loop", mask, numbers)


@pytest.mark.parametrize("framework", rows.FRAMEWORKS)
@pytest.mark.parametrize("work", ["forward", "adamw step"])
def test_every_kind_of_work_runs(framework, work):
    found = steps(row(framework, "elements", work=work))
    for name in ("packed", "masked afterwards"):
        found[name]()
        found[name]()


def test_dense_is_no_rival():
    """The plain layer's gradient is not masked: the check sees it."""
    one = row("torch")
    mask = rows.mask_of(one).to_array(one.weight_shape)
    with pytest.raises(NotTheSame, match=r"dense computes another gradient .* weight\["):
        steps(one)["dense"].check("dense", mask, operands.draw(one))


@pytest.mark.parametrize("framework", rows.FRAMEWORKS)
def test_a_rival_that_computes_something_else_is_not_timed(framework):
    """Its gradient is right but for one entry; its step would fail the test if it were run for time."""
    one = row(framework)
    timed = []

    class Liar:
        def __init__(self, step):
            self.step = step

        def check(self, name, mask, numbers):
            wrong = mask.copy()
            wrong[3, int(np.flatnonzero(mask.any(0))[0])] = False
            d_weight = np.where(wrong, numbers.g.reshape(-1, 32).T @ numbers.x.reshape(-1, 48), 0)
            operands.check(name, one, numbers, mask, d_weight, numbers.g @ numbers.w)

        def __call__(self):
            timed.append(1)

    def alter(programs):
        return {**programs, "liar": Liar(programs["one-liner"])}

    with pytest.raises(NotTheSame, match="liar computes another gradient than the masked one, and is not timed"):
        worker.measure_row(one, MACHINE, "cpu", 0.1, alter)
    assert timed == []


GRADIENTS = {
    "a frozen entry moves": ("weight", lambda d_w, d_x, mask: (np.where(mask, d_w, 1e-3), d_x)),
    "a wrong input gradient": ("input", lambda d_w, d_x, mask: (np.where(mask, d_w, 0), d_x + 1)),
    "nothing learns": ("weight", lambda d_w, d_x, mask: (np.zeros_like(d_w), d_x)),
}


@pytest.mark.parametrize("dtype", rows.DTYPES)
@pytest.mark.parametrize("fault", GRADIENTS)
def test_wrong_gradients_are_refused(fault, dtype):
    one = row("torch", dtype=dtype, shape=(64, 32, 48))
    numbers, mask = operands.draw(one), rows.mask_of(one).to_array(one.weight_shape)
    argument, alter = GRADIENTS[fault]
    d_weight, d_input = alter(numbers.g.T @ numbers.x, 40 + numbers.g @ numbers.w * 0, mask)
    with pytest.raises(NotTheSame, match=argument):
        operands.check(
            "rival", one, numbers, mask, d_weight, numbers.g @ numbers.w if argument == "weight" else d_input
        )


def test_densified_is_what_peft_does():
    """The same output and gradients as SHiRA's own layer, bit for bit."""
    from peft import ShiraConfig, get_peft_model

    one = row("torch", "elements", p=80 / (32 * 48))  # one entry for each row and column: SHiRA's r = 1
    numbers = operands.draw(one)
    mask = torch.from_numpy(rows.mask_of(one).to_array(one.weight_shape))
    ours = torch_rivals.densified(torch_rivals.linear(one, numbers, "cpu"), mask)
    config = ShiraConfig(r=1, target_modules=["0"])
    config.mask_fn = lambda base_layer, r, **_: mask.float()
    base = torch.nn.Sequential(torch_rivals.linear(one, numbers, "cpu"))
    theirs = get_peft_model(base, config)
    x, g = torch.from_numpy(numbers.x), torch.from_numpy(numbers.g)
    with torch.sparse.check_sparse_tensor_invariants(False):  # said aloud, else torch warns
        outputs = [layer(x) for layer in (ours.layer, theirs)]
        for output in outputs:
            output.backward(g)
    assert torch.equal(*outputs)
    (values,) = [one for name, one in theirs.named_parameters() if "shira" in name]
    assert torch.equal(ours.gradient()[mask], values.grad)


@pytest.mark.parametrize("framework", rows.FRAMEWORKS)
def test_what_is_kept_is_the_share_of_the_input(framework):
    found = steps(row(framework))
    x, w = 8 * 48 * 4, 32 * 48 * 4
    assert found["dense"].kept() == x
    # JAX keeps positions that it works out under jit; torch keeps them with the layer.
    positions = 12 * 4
    for form in worker.FORMS:
        assert x / 4 <= found[form].kept() <= x / 4 + positions
    assert found["one-liner"].kept() >= x + w
    assert found["densified"].kept() >= x + w


@pytest.mark.parametrize("framework", rows.FRAMEWORKS)
def test_state_and_peak(framework):
    found = steps(row(framework))
    w, b = 32 * 48 * 4, 32 * 4
    assert found["dense"].state() == found["masked"].state() == 2 * (w + b)
    assert found["packed"].state() == 2 * (w / 4 + b)
    # At least the gradients of weight and input and the output live at once.
    assert found["dense"].peak() >= w + 8 * 48 * 4 + 8 * 32 * 4
    assert found["packed"].peak() > 0
