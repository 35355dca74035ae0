"""Wrong calls (S10): the same class and the same text in both twins, saying what was expected, what came, what to do."""

import jax
import numpy as np
import pytest
import torch

from maskedlinear_core import blocks, columns, elements, rows, select, simplify, submatrix

O, I = 3, 4


def call(t, **changes):
    """A right call of masked_linear but for the changes."""
    given = {
        "input": t.array(np.ones((2, I))),
        "weight": t.array(np.ones((O, I))),
        "bias": None,
        "grad_mask": columns([0]),
    }
    given |= changes
    return t.masked_linear(given.pop("input"), given.pop("weight"), given.pop("bias"), **given)


def layer(t, *args, **changes):
    """A right construction of MaskedLinear but for the changes."""
    return t.MaskedLinear(*(args or (I, O)), **({"grad_mask": columns([0]), "seed": 0} | changes))


def packed(t, **changes):
    """A right call of packed_linear but for the changes."""
    given = {
        "input": t.array(np.ones((2, I))),
        "weight": t.array(np.ones((O, I))),
        "values": t.array(np.ones((O, 1))),
        "bias": None,
        "grad_mask": columns([0]),
    }
    given |= changes
    arrays = [given.pop(name) for name in ("input", "weight", "values", "bias")]
    return t.twin.packed_linear(*arrays, **given)


def repack(t, **changes):
    """A right call of repack but for the changes."""
    given = {"values": t.array(np.ones((O, 1))), "shape": (O, I)} | changes
    return t.twin.repack(given.pop("values"), columns([0]), columns([1]), **given)


F64 = np.ones((2, I))
WRONG = {
    # arrays
    "input is a list": (TypeError, "expected input to be an array, got list", lambda t: call(t, input=[[1.0] * I])),
    "weight is None": (TypeError, "expected weight to be an array, got NoneType", lambda t: call(t, weight=None)),
    "bias is a number": (TypeError, "expected bias to be an array, got float", lambda t: call(t, bias=1.0)),
    "input of integers": (TypeError, "expected input of dtype float32, .* got int32",
                          lambda t: call(t, input=t.integers([[1] * I], "int32"))),
    "complex input": (TypeError, "expected input of dtype .* got complex64",
                      lambda t: call(t, input=t.array(np.ones((2, I)), "complex64"))),
    "bool weight": (TypeError, "expected weight of dtype .* got bool", lambda t: call(t, weight=t.bools(np.ones((O, I))))),
    "input and weight differ in dtype": (TypeError, "one dtype, got bfloat16 and float32",
                                         lambda t: call(t, input=t.array(np.ones((2, I)), "bfloat16"))),
    "bias and weight differ in dtype": (TypeError, "bias and weight of one dtype, got float16 and float32",
                                        lambda t: call(t, bias=t.array(np.ones(O), "float16"))),
    "scalar input": (ValueError, "got a scalar", lambda t: call(t, input=t.array(1.0))),
    "input has other features": (ValueError, r"an input with 4 features .* got input of shape \(2, 5\)",
                                 lambda t: call(t, input=t.array(np.ones((2, 5))))),
    "weight transposed": (ValueError, r"3 features .* check that the weight is \(out_features, in_features\)",
                          lambda t: call(t, weight=t.array(np.ones((I, O))))),
    "weight of one dimension": (ValueError, r"\(out_features, in_features\), got shape \(4,\)",
                                lambda t: call(t, weight=t.array(np.ones(I)))),
    "weight of three dimensions": (ValueError, r"got shape \(1, 3, 4\)",
                                   lambda t: call(t, weight=t.array(np.ones((1, O, I))))),
    "bias of another length": (ValueError, r"bias of shape \(3,\), .* got shape \(4,\)",
                               lambda t: call(t, bias=t.array(np.ones(I)))),
    "bias of two dimensions": (ValueError, r"got shape \(1, 3\)", lambda t: call(t, bias=t.array(np.ones((1, O))))),
    # grad_mask
    "no grad_mask": (TypeError, "missing 1 required keyword-only argument: 'grad_mask'",
                     lambda t: t.masked_linear(t.array(np.ones((2, I))), t.array(np.ones((O, I))))),
    "grad_mask positional": (TypeError, "positional arguments",
                             lambda t: t.masked_linear(*[t.array(np.ones((1, 1)))] * 2, None, columns([0]))),
    "grad_mask None": (TypeError, "got NoneType; columns\\(slice\\(None\\)\\) trains everything",
                       lambda t: call(t, grad_mask=None)),
    "grad_mask a list": (TypeError, "or a bool array, got list", lambda t: call(t, grad_mask=[[True] * I] * O)),
    "grad_mask of floats": (TypeError, "bool array .* got dtype float32",
                            lambda t: call(t, grad_mask=t.array(np.ones((O, I))))),
    "grad_mask of integers": (TypeError, "bool array .* got dtype int32",
                              lambda t: call(t, grad_mask=t.integers([[1] * I] * O, "int32"))),
    "grad_mask of one dimension": (ValueError, r"two-dimensional array, got shape \(4,\)",
                                   lambda t: call(t, grad_mask=t.bools(np.ones(I)))),
    "grad_mask of another shape": (ValueError, r"mask's shape \(4, 3\), got weight of shape \(3, 4\)",
                                   lambda t: call(t, grad_mask=t.bools(np.ones((I, O))))),
    "column out of range": (IndexError, "columns: expected positions from -4 to 3 for 4 input features, got 4",
                            lambda t: call(t, grad_mask=columns([0, 4]))),
    "negative column out of range": (IndexError, "got -5", lambda t: call(t, grad_mask=columns([-5]))),
    "row out of range": (IndexError, "rows: expected positions from -3 to 2 for 3 output features, got 3",
                         lambda t: call(t, grad_mask=rows([3]))),
    "submatrix row out of range": (IndexError, "submatrix rows: .* 3 output features, got 7",
                                   lambda t: call(t, grad_mask=submatrix([7], [0]))),
    "submatrix column out of range": (IndexError, "submatrix columns: .* 4 input features, got 9",
                                      lambda t: call(t, grad_mask=submatrix([0], [9]))),
    "column of a weight without columns": (IndexError, "expected no position at all for 0 input features, got 0",
                                           lambda t: call(t, input=t.array(np.ones((2, 0))),
                                                          weight=t.array(np.ones((O, 0))))),
    "bools of another length": (ValueError, "bool vector of length 4, one per input feature, got length 3",
                                lambda t: call(t, grad_mask=columns([True, False, True]))),
    "blocks that do not cover": (ValueError, r"blocks: .* shape \(4, 4\), got weight of shape \(3, 4\)",
                                 lambda t: call(t, grad_mask=blocks([[True, False]], (4, 2)))),
    "combined masks for other weights": (ValueError, r"masks of shapes \(2, 2\) and \(3, 3\)",
                                         lambda t: elements(np.eye(2) == 1) | elements(np.eye(3) == 1)),
    # indices
    "index of floats": (TypeError, "columns: expected integer positions, .* got dtype float32",
                        lambda t: columns(t.array([1.0, 2.0]))),
    "index of python floats": (TypeError, "got dtype float64", lambda t: columns([0.5])),
    "index of strings": (TypeError, "got dtype", lambda t: columns(["a"])),
    "index a string": (TypeError, "got str", lambda t: columns("01")),
    "index a number": (TypeError, r"got int; write rows\(\[3\]\)", lambda t: rows(3)),
    "index a set": (TypeError, "got set", lambda t: columns({1, 2})),
    "index None": (TypeError, "got NoneType", lambda t: columns(None)),
    "index of two dimensions": (ValueError, r"one-dimensional index, got shape \(1, 2\)",
                                lambda t: columns(t.integers([[0, 1]]))),
    "index a framework scalar": (ValueError, r"got shape \(\)", lambda t: columns(t.integers(1))),
    "ragged index": (ValueError, "got a ragged sequence", lambda t: rows([[0], [1, 2]])),
    "slice of floats": (TypeError, "slice of integers", lambda t: columns(slice(0.0, 2.0))),
    "slice of step zero": (ValueError, "step is not zero", lambda t: columns(slice(0, 2, 0))),
    # blocks, elements, simplify
    "grid of integers": (TypeError, "blocks: expected a bool grid", lambda t: blocks(t.integers([[1]], "int32"), (2, 2))),
    "grid a number": (TypeError, "blocks: expected a bool grid, got int", lambda t: blocks(1, (2, 2))),
    "grid of one dimension": (ValueError, r"two-dimensional grid, got shape \(2,\)",
                              lambda t: blocks(t.bools([1, 0]), (2, 2))),
    "block shape a number": (TypeError, "block_shape as a pair", lambda t: blocks(t.bools([[1]]), 2)),
    "block shape of floats": (TypeError, "block_shape as a pair", lambda t: blocks(t.bools([[1]]), (2.0, 2.0))),
    "block shape of zero": (ValueError, r"at least 1, got \(0, 2\)", lambda t: blocks(t.bools([[1]]), (0, 2))),
    "elements a number": (TypeError, "elements: expected a bool array, got bool", lambda t: elements(True)),
    "simplify floats": (TypeError, "simplify: expected a bool array", lambda t: simplify(np.ones((2, 2)))),
    "density of a shape of one": (TypeError, "shape as a pair", lambda t: columns([0]).density((3,))),
    # bias_mask and switches
    "bias_mask without bias": (ValueError, "expected a bias beside bias_mask", lambda t: call(t, bias_mask=t.bools([1] * O))),
    "bias_mask of floats": (TypeError, "bool bias_mask .* got dtype float32",
                            lambda t: call(t, bias=t.array(np.ones(O)), bias_mask=t.array(np.ones(O)))),
    "bias_mask of another length": (ValueError, r"bias_mask of shape \(3,\), .* got shape \(4,\)",
                                    lambda t: call(t, bias=t.array(np.ones(O)), bias_mask=t.bools([1] * I))),
    "bias_mask a list of integers": (TypeError, "bool bias_mask .* got dtype int64",
                                     lambda t: call(t, bias=t.array(np.ones(O)), bias_mask=[1] * O)),
    "bias_mask a ragged list": (TypeError, "expected bias_mask to be an array, got list",
                                lambda t: call(t, bias=t.array(np.ones(O)), bias_mask=[[True], [True, False]])),
    "module bias_mask a ragged list": (TypeError, "expected bias_mask to be an array, got list",
                                       lambda t: layer(t, bias_mask=[[True], [True, False]])),
    "packed bias_mask a list of another length": (ValueError, r"packed_linear: .* bias_mask of shape \(3,\), .* got shape \(4,\)",
                                                  lambda t: packed(t, bias=t.array(np.ones(O)), bias_mask=[True] * I)),
    "forward_mode a string": (TypeError, "forward_mode to be True or False, got 'yes'",
                              lambda t: call(t, forward_mode="yes")),
    # the module
    "in_features a float": (TypeError, "in_features to be an integer, got 4.0", lambda t: layer(t, 4.0, O)),
    "out_features a bool": (TypeError, "out_features to be an integer, got True", lambda t: layer(t, I, True)),
    "negative features": (ValueError, "in_features of at least 0, got -1", lambda t: layer(t, -1, O)),
    "seed a float": (TypeError, "seed to be an integer", lambda t: layer(t, seed=0.5)),
    "negative seed": (ValueError, "seed of at least 0, got -3", lambda t: layer(t, seed=-3)),
    "module mask out of range": (IndexError, "got 4", lambda t: layer(t, grad_mask=columns([4]))),
    "module bias_mask without bias": (ValueError, "got bias=False", lambda t: layer(t, bias=False, bias_mask=[True] * O)),
    "module bias_mask of integers": (TypeError, "bool bias_mask", lambda t: layer(t, bias_mask=np.ones(O, np.int32))),
    "module bias_mask of another length": (ValueError, r"shape \(3,\), .* got shape \(1,\)",
                                           lambda t: layer(t, bias_mask=[True])),
    "location a list": (TypeError, "location to be a NumPy array .* got list",
                        lambda t: t.MaskedLinear.from_location(I, O, [0, 1])),
    "layer of lists": (TypeError, "got list; convert that layer only",
                       lambda t: t.MaskedLinear.from_linear([1], grad_mask=columns([0]))),
    # selection
    "scores a list": (TypeError, "top_k: expected the scores of one weight, an array", lambda t: select.top_k([[1.0]], 0.5)),
    "scores of one dimension": (ValueError, r"weight's shape .* got shape \(3,\)",
                                lambda t: select.top_k(t.array([1, 2, 3]), 0.5)),
    "NaN scores": (ValueError, "can be ordered, got NaN", lambda t: select.top_k(t.array([[np.nan]]), 0.5)),
    "density above one": (ValueError, "density from 0 to 1, got 1.5", lambda t: select.top_k(t.array([[1.0]]), 1.5)),
    "density of NumPy": (ValueError, "got 1.5; it is a share", lambda t: select.top_k(t.array([[1.0]]), np.float64(1.5))),
    "density a string": (TypeError, "density as a number", lambda t: select.top_k(t.array([[1.0]]), "0.5")),
    "along diagonals": (ValueError, "got 'diagonals'", lambda t: select.top_k(t.array([[1.0]]), 1.0, along="diagonals")),
    "blocks without shape": (ValueError, "no block_shape", lambda t: select.random((4, 4), 0.5, along="blocks", seed=0)),
    "block shape that does not divide": (ValueError, r"divides the weight's shape \(4, 4\), got \(3, 2\)",
                                         lambda t: select.random((4, 4), 0.5, along="blocks", block_shape=(3, 2), seed=0)),
    "m that does not divide": (ValueError, "divide the 5 input features, got m=4",
                               lambda t: select.n_of_m(t.array(np.ones((2, 5))), 2, 4)),
    # the packed form
    "pack a list": (TypeError, "pack: expected weight to be an array, got list",
                    lambda t: t.twin.pack([[1.0]], grad_mask=columns([0]))),
    "pack a vector": (ValueError, r"pack: expected a weight of shape .*, got shape \(3,\)",
                      lambda t: t.twin.pack(t.array(np.ones(3)), grad_mask=columns([0]))),
    "pack integers": (TypeError, "pack: expected weight of dtype .* got int32",
                      lambda t: t.twin.pack(t.integers([[1]], "int32"), grad_mask=columns([0]))),
    "pack without a mask": (TypeError, "grad_mask: expected columns",
                            lambda t: t.twin.pack(t.array(np.ones((O, I))), grad_mask=None)),
    "pack out of range": (IndexError, "positions from -4 to 3 for 4 input features, got 4",
                          lambda t: t.twin.pack(t.array(np.ones((O, I))), grad_mask=columns([4]))),
    "unpack values of another shape": (ValueError, r"unpack: expected values of shape \(3, 1\) .* got shape \(3, 2\)",
                                       lambda t: t.twin.unpack(t.array(np.ones((O, I))), t.array(np.ones((O, 2))),
                                                               grad_mask=columns([0]))),
    "unpack None": (TypeError, "unpack: expected values to be an array, got NoneType",
                    lambda t: t.twin.unpack(t.array(np.ones((O, I))), None, grad_mask=columns([0]))),
    "values coarser than the weight": (TypeError, "values of dtype float32 over a weight of float32, got bfloat16",
                                       lambda t: packed(t, values=t.array(np.ones((O, 1)), "bfloat16"))),
    "values of float16 over bfloat16": (TypeError, "values of dtype bfloat16 or float32 over a weight of bfloat16",
                                        lambda t: packed(t, input=t.array(np.ones((2, I)), "bfloat16"),
                                                         weight=t.array(np.ones((O, I)), "bfloat16"),
                                                         values=t.array(np.ones((O, 1)), "float16"))),
    "packed input of other features": (ValueError, "packed_linear: expected an input with 4 features",
                                       lambda t: packed(t, input=t.array(np.ones((2, 5))))),
    "packed input is a list": (TypeError, "packed_linear: expected input to be an array, got list",
                               lambda t: packed(t, input=[1.0])),
    "packed bias_mask without a bias": (ValueError, "packed_linear: expected a bias beside bias_mask",
                                        lambda t: packed(t, bias_mask=t.bools(np.ones(O)))),
    "packed forward_mode": (TypeError, "expected forward_mode to be True or False", lambda t: packed(t, forward_mode=1)),
    "repack without shape or weight": (ValueError, "exactly one of weight and shape, got neither",
                                       lambda t: repack(t, shape=None)),
    "repack with both": (ValueError, "exactly one of weight and shape, got both",
                         lambda t: repack(t, weight=t.array(np.ones((O, I))))),
    "repack another shape": (ValueError, r"repack: expected values of shape \(3, 1\)",
                             lambda t: repack(t, values=t.array(np.ones((O, 2))))),
    "repack for no weight": (TypeError, "expected the weight's shape as a pair of integers", lambda t: repack(t, shape=3)),
    "n above m": (ValueError, "0 <= n <= m", lambda t: select.n_of_m(t.array(np.ones((2, 4))), 5, 4)),
}  # fmt: skip

FRAMEWORK_WORDS = {"expected a torch.nn.Linear": "expected a layer with a weight (out_features, in_features)"}
"""Where the texts may differ: each twin names its own framework's layer."""


def caught(t, make):
    try:
        make(t)
    except (TypeError, ValueError, IndexError) as error:
        text = str(error)
        for torch_words, jax_words in FRAMEWORK_WORDS.items():
            text = text.replace(torch_words, jax_words)
        return type(error), text
    raise AssertionError(f"accepted by {t.name}")


@pytest.mark.parametrize("name", WRONG)
def test_wrong_call(name, twins):
    kind, says, make = WRONG[name]
    in_torch, in_jax = (caught(t, make) for t in twins)
    assert in_torch == in_jax
    assert in_torch[0] is kind
    with pytest.raises(kind, match=says):
        make(twins[0])


def test_there_are_enough_wrong_calls():
    assert len(WRONG) >= 95


PYTHONS_OWN = {"no grad_mask", "grad_mask positional"}


@pytest.mark.parametrize("name", sorted(set(WRONG) - PYTHONS_OWN))
def test_text_says_expected_got_and_what_to_do(name, twins):
    _, text = caught(twins[0], WRONG[name][2])
    expected, _, advice = text.partition("; ")
    assert "expected" in expected
    assert "got" in expected
    assert len(advice) > 5


def test_devices_must_agree(twins):
    torch_twin, jax_twin = twins
    meta = torch.ones(2, I, device="meta")
    with pytest.raises(ValueError, match="expected input on the weight's device cpu, got meta; move input first"):
        call(torch_twin, input=meta)
    first, second = jax.devices()[:2]
    there, here = (
        jax.device_put(np.ones((2, I), np.float32), second),
        jax.device_put(np.ones((O, I), np.float32), first),
    )
    with pytest.raises(ValueError, match=r"expected input on the weight's device .*, got .*; move input first"):
        call(jax_twin, input=there, weight=here)


def test_float64_is_not_silently_made_float32(twins):
    with pytest.raises(TypeError, match=r"expected float64 to be enabled .* set jax_enable_x64"):
        call(twins[1], input=F64, weight=np.ones((O, I)))


def test_errors_come_when_jax_traces(twins):
    wrong = jax.jit(lambda x: call(twins[1], input=x))
    with pytest.raises(ValueError, match="an input with 4 features"):
        wrong.lower(jax.ShapeDtypeStruct((2, 5), np.float32))


def test_length_of_bools_is_known_when_positions_are_not(twins):
    wrong = jax.jit(lambda mask: call(twins[1], grad_mask=mask))
    with pytest.raises(ValueError, match="bool vector of length 4, one per input feature, got length 3"):
        wrong(columns([True, False, True]))


def test_traced_blocks_are_refused(twins):
    with pytest.raises(TypeError, match="grid whose values can be read, got a traced array"):
        jax.jit(lambda grid: blocks(grid, (1, 1)).leaves[0])(np.ones((O, I), bool))


def test_nothing_half_made_is_left_behind(twins):
    module = layer(twins[0])
    with pytest.raises(IndexError, match="got 4"):
        module.grad_mask = columns([4])
    module(torch.ones(1, I)).sum().backward()
    assert module.grad_mask == columns([0])
    assert module.weight.grad[:, 1:].count_nonzero() == 0
    assert module.weight.grad[:, 0].count_nonzero() == O
