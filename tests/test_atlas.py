"""The atlas: which operators of torch and JAX differ in meaning, and that each has a reason and both documentations."""

import dataclasses
from pathlib import Path

import pytest

from parity.isolation.source_text import text_of
from parity.operator.known import matches
from parity.suites.atlas.pairs import GROUPS, PAIRS
from parity.verdict import runner as run

ROOT = Path(__file__).parent.parent

ELSEWHERE = {"unique", "cholesky", "attention, axes alike", "attention, causal"}
"""They differ in float32, under jit or in forward mode only, which `python -m parity atlas` runs."""

ALIKE = [pair for pair in PAIRS if "alike" in pair.name or "equal eps" in pair.name]
"""Non-differences: the same operators as some that differ, made to agree."""

CHOICE = {"transforms": ("forward", "vjp"), "data": ("random", "zeros", "kinks")}


def cells(pair):
    """Return the float64 cells of an operator, fewer where it says so itself."""
    chosen = {
        name: [value for value in values if getattr(pair, name) is None or value in getattr(pair, name)]
        for name, values in CHOICE.items()
    }
    return run.plan(pair, dtypes=["float64"], worlds=["jax-eager"], **chosen)


@pytest.fixture(scope="module")
def seen():
    """What torch and JAX compute in float64: the records of every operator, by name."""
    return {pair.name: list(run.run(pair, cells(pair))) for pair in PAIRS}


def test_nothing_differs_but_what_is_listed(seen):
    failed = [f"{record.cell.id}: {record.reason}" for records in seen.values() for record in records if record.failed]
    assert not failed, "\n".join(failed)


def test_everything_differs_that_is_listed(seen):
    differing = {name for name, records in seen.items() if any(record.known for record in records)}
    assert differing == {pair.name for pair in PAIRS if pair.known} - ELSEWHERE
    for pair in PAIRS:
        if pair.name not in ELSEWHERE | {"gammaln"}:  # whose forward differs in float32
            stale = [record.reason for record in run.settle(pair, seen[pair.name]) if record.failed]
            assert not stale, f"{pair.name}: {stale}"


def test_in_every_cell_that_is_listed_the_two_differ(seen):
    """A pattern that is wider than what differs would let a new difference pass."""
    for pair in PAIRS:
        if pair.name not in ELSEWHERE | {"gammaln"}:
            wide = [record.cell.id for record in seen[pair.name]
                    if any(matches(entry, record.cell) for entry in pair.known or ()) and not record.known]  # fmt: skip
            assert not wide, f"{pair.name}: listed, and agree: {wide}"


def test_what_is_made_to_agree_agrees(seen):
    assert len(ALIKE) >= 8
    for pair in ALIKE:
        for record in seen[pair.name]:
            if not (pair.known and record.known):
                assert record.verdict in ("identical", "within bound"), f"{record.cell.id}: {record.reason}"


def test_a_difference_that_is_not_listed_fails():
    (gelu,) = [pair for pair in PAIRS if pair.name == "gelu"]
    bare = dataclasses.replace(gelu, known=None)
    records = list(
        run.run(bare, run.plan(bare, transforms=["forward"], dtypes=["float64"], worlds=["jax-eager"], data=["random"]))
    )
    assert [record.verdict for record in records] == ["differs"]
    assert records[0].failed


def test_there_are_many_operators_of_every_kind():
    assert len(PAIRS) >= 140
    assert len({pair.name for pair in PAIRS}) == len(PAIRS)
    assert {len(group.PAIRS) >= 4 for group in GROUPS} == {True}
    assert sum(bool(pair.known) for pair in PAIRS) >= 40


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if pair.known], ids=lambda pair: pair.name)
def test_a_difference_has_a_reason_and_both_documentations(pair):
    for site in ("https://docs.pytorch.org/docs/stable/", ("https://docs.jax.dev/", "https://optax.")):
        assert any(word.startswith(site) for word in pair.note.split()), pair.note
    for entry in pair.known:
        assert len(entry["reason"]) > 40
        assert pair.note.startswith(entry["reason"])
        assert entry["world"] == "jax-*" or "raise" in entry["reason"] or "each dtype" in entry["reason"]


def test_the_recorded_run_is_of_these_operators_and_none_failed():
    text = (ROOT / "docs" / "evidence" / "atlas.md").read_text("utf-8")
    rows = [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines() if line.startswith("| ")]
    assert [row for row in rows if row != "pair" and not row.startswith("**")] == [pair.name for pair in PAIRS]
    assert "## What failed" not in text
    assert text.count("For instance") >= sum(bool(pair.known) for pair in PAIRS)
    assert f"{sum(bool(pair.known) for pair in PAIRS)} pairs differ somewhere as listed." in text
    page = (ROOT / "docs" / "evidence" / "atlas.html").read_text("utf-8")
    assert text.splitlines()[2] in page


def test_operators_are_shown_as_they_are_written():
    assert {text_of(pair.torch) for pair in PAIRS} >= {"F.gelu(x)", "torch.std(x, -1)"}
    assert "<lambda>" not in {text for pair in PAIRS for text in (text_of(pair.torch), text_of(pair.jax))}
