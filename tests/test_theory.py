"""What a pair can say of its own results: answers of every transform, exact data, frozen entries, own transforms."""

import re
from dataclasses import replace

import jax
import numpy as np
import pytest
import torch

import maskedlinear_jax
import parity
from parity import Exact, Numbers, Oracle, Pair, Transform, compare_pair
from parity.operator import transforms as shared
from parity.suites.masked_linear import grid
from parity.suites.masked_linear.pairs import pair as layer
from parity.verdict.runner import Judge

FROZEN = np.array([False, True, False])


def torch_scale(x, s):
    """Return x s, where the middle entry of s is frozen."""
    return x * torch.where(torch.from_numpy(FROZEN), s.detach(), s)


def jax_scale(x, s):
    return x * jax.numpy.where(FROZEN, jax.lax.stop_gradient(s), s)


def torch_leaks(x, s):
    return x * s


def one_ulp(x, s):
    y = jax_scale(x, s)
    fixed = jax.lax.stop_gradient(y)
    return y + (jax.numpy.nextafter(fixed, jax.numpy.inf) - fixed)


def twice(ops, f, a):
    return {"twice": 2 * ops.jvp(f, a["theta"], a["directions"][0])[1][0]}


def tangent(n):
    (x, s), (along_x, along_s) = n.theta, n.directions[0]
    return {"twice": 2 * (along_x * s + x * np.where(FROZEN, 0.0, along_s))}


def gradients(n):
    (x, s), g = n.theta, n.cotangents[0]
    return {"by x": g * s, "by s": np.where(FROZEN, 0.0, (g * x).sum(0))}


ANSWERS = {"forward": lambda n: {"output": n.theta[0] * n.theta[1]}, "vjp": gradients, "twice": tangent}


def absolute(answer):
    return lambda n: answer(n.changed(np.abs))


def integers(kind, dtype, seed):
    """Small integers for the exact kind; the other kinds are the engine's own."""
    if kind != "integers":
        return None
    draw = np.random.default_rng(seed).integers
    x, s, g = (draw(1, 4, shape).astype(float) for shape in ((4, 3), (3,), (4, 3)))
    directions = (tuple(draw(1, 4, leaf.shape).astype(float) for leaf in (x, s)),)
    return replace(Numbers.of((x, s), ("x", "s")), cotangents=(g,), directions=directions)


PAIR = Pair(
    torch=torch_scale,
    jax=jax_scale,
    inputs=(np.linspace(-1, 1, 12).reshape(4, 3), np.linspace(1, 2, 3)),
    name="scale",
    transforms=["forward", "vjp", Transform("twice", 1, twice, clause="our rule")],
    dtypes=["float32"],
    worlds=["torch-eager", "jax-jit"],
    data=["random", "integers"],
    oracle=Oracle(ANSWERS, {name: absolute(answer) for name, answer in ANSWERS.items()}),
    exact={"integers": Exact()},
    frozen={"by s": FROZEN},
    numbers=integers,
)


def only(*transforms):
    """Return what leaves a pair the cells of some of its transforms."""
    return {"runs": lambda cell: cell.transform in transforms}


def failures(pair):
    return [(cell.world, cell.transform, cell.data) for cell in compare_pair(pair).cells if cell.failed]


def test_the_right_pair_passes_and_bits_are_compared_where_data_is_exact():
    records = compare_pair(PAIR).cells
    assert [record.reason for record in records if record.failed] == []
    assert {(record.data, record.verdict) for record in records} == {
        ("random", "within bound"), ("integers", "identical"),
    }  # fmt: skip
    assert {record.clause for record in records if record.transform == "twice"} == {"our rule"}
    assert len(records) == 12


def test_a_leak_is_rejected_on_any_data():
    wrong = compare_pair(replace(PAIR, torch=torch_leaks)).cells
    leaks = [record for record in wrong if record.failed and record.transform == "vjp"]
    assert {(record.world, record.data) for record in leaks} == {
        ("torch-eager", "random"), ("torch-eager", "integers"),
    }  # fmt: skip
    for record in leaks:
        assert (record.verdict, record.finding.output, record.finding.index) == ("differs", "by s", (1,))
        assert "frozen entries are not zero, expected +0.0 bit for bit" in record.reason


def test_a_leak_is_rejected_without_an_oracle():
    bare = replace(PAIR, oracle=None, exact=None, transforms=["vjp"], data=["random"], torch=torch_leaks)
    (record,) = [cell for cell in compare_pair(bare).cells if cell.world == "torch-eager"]
    assert "frozen entries are not zero" in record.reason


def test_where_values_are_not_compared_what_is_frozen_is():
    only = replace(shared.get("vjp"), values=False)
    bare = replace(
        PAIR, oracle=None, exact=None, transforms=[only], data=["random"], jax=lambda x, s: 2 * jax_scale(x, s)
    )
    assert failures(bare) == []
    assert failures(replace(bare, torch=torch_leaks)) == [("torch-eager", "vjp", "random")]


def test_one_ulp_is_rejected_where_data_is_exact_and_is_rounding_elsewhere():
    assert failures(replace(PAIR, jax=one_ulp)) == [("jax-jit", "forward", "integers")]


@pytest.mark.parametrize("transform", ["vjp", "twice"])
def test_an_answer_without_a_majorant_judges_the_meaning(transform):
    some = replace(PAIR, oracle=Oracle(ANSWERS), exact=None, data=["random"], **only(transform))
    assert failures(some) == []
    other = {transform: lambda n: {name: 1.001 * value for name, value in ANSWERS[transform](n).items()}}
    wrong = compare_pair(replace(some, oracle=Oracle(other))).cells
    assert {record.verdict for record in wrong} == {"differs"}
    assert all("against the oracle" in record.reason for record in wrong)


def test_an_oracle_that_speaks_of_other_outputs_is_a_difference():
    other = Oracle({"vjp": lambda n: {"by y": n.theta[0]}})
    (record, _) = compare_pair(replace(PAIR, oracle=other, transforms=["vjp"], data=["integers"])).cells
    assert record.verdict == "differs"
    assert "the oracle by y" in record.reason


def test_exact_data_wants_an_oracle():
    with pytest.raises(ValueError, match=re.escape("exact: expected an Oracle whose answers are met on integers")):
        replace(PAIR, oracle=None)


def broken(*_):
    raise RuntimeError("no such kernel")


@pytest.mark.parametrize(
    ("torch_function", "error", "verdict", "failed"),
    [(broken, "no such", "unsupported", False), (broken, "no device", "unsupported", True),
     (torch_scale, "no such", "differs", True)],
    ids=["the listed error", "another error", "it works"],
)  # fmt: skip
def test_a_listed_error_must_be_raised(torch_function, error, verdict, failed):
    known = [{"world": "torch-eager", "error": error, "reason": "the kernel is missing"}]
    chosen = replace(PAIR, torch=torch_function, data=["integers"], known=known, **only("forward"))
    (record,) = [cell for cell in compare_pair(chosen).cells if cell.world == "torch-eager"]
    assert (record.verdict, record.failed) == (verdict, failed)


def test_the_grid_is_pairs_that_the_engine_judges(monkeypatch):
    """What `parity grid` says of a case is what the call for anyone's pair says of it, by the same class."""
    judged = []
    real = Judge.record

    def record(self, cell):
        judged.append(type(self))
        return real(self, cell)

    monkeypatch.setattr(Judge, "record", record)
    cells = grid.plan(cases=["one-by-one"], transforms=["vjp", "forward"], precisions=["native"])
    from_grid = list(grid.run(cells))
    pair = layer("one-by-one")
    chosen = replace(pair, runs=lambda cell: pair.runs(cell) and cell.transform in ("vjp", "forward"))
    from_call = compare_pair(chosen).cells
    assert [(r.cell, r.verdict, r.clause) for r in from_grid] == [(r.cell, r.verdict, r.clause) for r in from_call]
    assert {record.verdict for record in from_grid} == {"identical"}
    assert set(judged) == {Judge}
    assert isinstance(pair, Pair)
    assert len(judged) == 2 * len(cells) > 0


def test_public_names():
    assert parity.compare_pair is compare_pair


NO_MAJORANTS = {
    "negative": lambda n: {"output": -np.abs(n.theta[0])},
    "infinite": lambda n: {"output": n.theta[0] + np.inf},
}


@pytest.mark.parametrize("wrong", NO_MAJORANTS.values(), ids=NO_MAJORANTS)
def test_a_majorant_that_would_let_anything_pass_is_refused(wrong):
    """Of absolute values forgotten, or overflown: error over bound would be small whatever the error is."""
    oracle = Oracle({"forward": lambda n: {"output": 2 * n.theta[0]}}, {"forward": wrong})
    pair = Pair(lambda x: x * 3, lambda x: x * 3, (-np.ones(4),), "wrong", transforms=["forward"], dtypes=["float32"],
                worlds=["torch-eager"], data=["random"], oracle=oracle)  # fmt: skip
    (record,) = compare_pair(pair).cells
    assert record.failed
    assert "expected a majorant of shape (4,), finite and not negative" in record.reason


def test_a_result_of_another_dtype_is_rejected_where_theory_judges():
    """As without an oracle: a layer that promotes bfloat16 gives good numbers."""
    chosen = replace(PAIR, dtypes=["bfloat16"], exact=None, data=["random"], **only("forward"))
    assert failures(chosen) == []
    promoted = replace(chosen, jax=lambda x, s: jax_scale(x, s).astype("float32"))
    (record,) = [record for record in compare_pair(promoted).cells if record.failed]
    assert record.reason == "output: jax-jit returns float32, torch-eager bfloat16"


def test_the_grid_rejects_a_twin_that_promotes():
    def promotes(*theta, **keywords):
        return maskedlinear_jax.masked_linear(*theta, **keywords).astype("float32")

    cells = grid.plan(cases=["columns"], transforms=["forward"], dtypes=["bfloat16"], worlds=["torch-eager", "jax-jit"])
    records = {record.cell.world: record for record in grid.run(cells, subjects={"jax": promotes})}
    assert not records["torch-eager"].failed
    assert records["jax-jit"].reason == "output: jax-jit returns float32, torch-eager bfloat16"


def test_a_transform_of_ones_own_that_raises_everywhere_fails():
    """A program with a mistake in it is no operator that both frameworks refuse."""
    mistaken = Transform("mistaken", 0, lambda ops, f, a: {"output": a["nope"]})
    chosen = replace(PAIR, oracle=None, exact=None, transforms=[mistaken], data=["random"])
    assert failures(chosen) == [("torch-eager", "mistaken", "random"), ("jax-jit", "mistaken", "random")]


def raises(*_):
    raise LookupError("no such table")


def tenths(*_):
    return Numbers.of((np.full((4, 3), 0.1), np.ones(3)), ("x", "s"))


RAISES = Oracle({"forward": raises})
NO_DICT = Oracle({"forward": lambda n: n.theta[0]}, {"forward": raises})
NOTHING = Oracle({"forward": ANSWERS["forward"]}, {"forward": lambda n: {}})
SAME = replace(shared.get("forward"), same={"output": ("other", "so")})
NOT_EXACT = {"data": ["random"], "exact": None}

# what the pair brings instead, and what the cell says
FAULTS = {
    "answer": ({"oracle": RAISES}, "the oracle's answer for forward raised LookupError: no such table"),
    "answer, without a majorant": (
        {"oracle": RAISES, **NOT_EXACT},
        "the oracle's answer for forward raised LookupError",
    ),
    "answer that is no dict": ({"oracle": NO_DICT}, "expected a dict of arrays by name of output, got ndarray"),
    "function": ({"oracle": raises, **NOT_EXACT}, "the oracle raised LookupError: no such table"),
    "majorant of nothing": (
        {"oracle": NOTHING, **NOT_EXACT},
        "majorant for forward is of ; its answer",
    ),
    "terms": (
        {"oracle": replace(PAIR.oracle, terms=raises), **NOT_EXACT},
        "oracle's terms raised LookupError",
    ),
    "frozen": ({"frozen": raises}, "frozen raised LookupError: no such table"),
    "numbers": ({"numbers": raises}, "numbers raised LookupError: no such table"),
    "numbers that are none": ({"numbers": lambda *_: (1, 2)}, "numbers: expected Numbers or None, got tuple"),
    "no numbers": ({"numbers": lambda *_: None}, "the pair's own kind of data 'integers', got None"),
    "numbers of no dtype": ({"numbers": tenths}, "numbers: expected values that float32 holds, got others"),
    "same": ({"transforms": [SAME, *PAIR.transforms[1:]]}, "forward: expected the outputs output and other (same)"),
}


@pytest.mark.parametrize(("changes", "says"), FAULTS.values(), ids=FAULTS)
def test_what_a_pair_brings_and_does_not_work_fails_the_cell_in_words(changes, says):
    cells = compare_pair(replace(PAIR, **({"data": ["integers"], **only("forward")} | changes))).cells
    assert [(cell.verdict, cell.failed) for cell in cells] == [("differs", True)] * 2
    assert all(says in cell.reason for cell in cells), [cell.reason for cell in cells]


UNKNOWN = [{"transform": "vpj", "reason": "so"}]

WRONG = {
    "no answers": (lambda: Oracle({}), ValueError, "answers: expected one for at least one transform, got none"),
    "no functions": (lambda: Oracle({"vjp": 3}), TypeError, "answers: expected a dict of functions"),
    "majorant alone": (lambda: Oracle({"vjp": abs}, {"jvp": abs}), ValueError, "majorants: .* have an answer, got jvp"),
    "terms": (lambda: Oracle({"vjp": abs}, terms=5), TypeError, "terms: expected a function of the numbers, got int"),
    "exact": (lambda: replace(PAIR, exact={"integers": True}), TypeError, "exact: expected a dict of Exact by kind"),
    "frozen": (lambda: replace(PAIR, frozen={"by s": [True]}), TypeError, "frozen: expected bool arrays by name of"),
    "frozen by nothing": (
        lambda: replace(PAIR, numbers=None, frozen={"by S": FROZEN}), ValueError,
        "frozen: 'by S': by: expected some of x, s, got 'S'",
    ),
    "a name twice": (lambda: replace(PAIR, transforms=["vjp", shared.get("vjp")]), ValueError, "once, got vjp again"),
    "answer to no transform": (
        lambda: compare_pair(replace(PAIR, oracle=Oracle({"vpj": abs}))), ValueError, "oracle: .* did you mean 'vjp'",
    ),
    "exact kind that is none": (
        lambda: compare_pair(replace(PAIR, exact={"integer": Exact()})), ValueError, "did you mean 'integers'",
    ),
    "known of no transform": (
        lambda: compare_pair(replace(PAIR, known=UNKNOWN)), ValueError, "known: transform: .* did you mean 'vjp'",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "says"), WRONG.values(), ids=WRONG)
def test_a_promise_that_says_nothing_is_refused_at_the_call(call, kind, says):
    with pytest.raises(kind, match=says):
        call()
