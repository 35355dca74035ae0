"""The recorded run of the benchmark: all of the plan, the figures that the README quotes, and how they are made."""

import json
from pathlib import Path

import pytest

from parity.bench import command, growth, markdown, plot, rows, targets, view
from parity.bench.timing import Ratio

FOLDER = Path(__file__).parent.parent / "parity" / "evidence"
RECORDED = json.loads((FOLDER / "bench-cpu.json").read_text("utf-8"))


@pytest.mark.parametrize("framework", rows.FRAMEWORKS)
def test_all_of_the_plan_was_measured(framework):
    ran = {record["id"] for record in RECORDED["rows"]}
    assert {f"{row.id}/{form}" for row in rows.plan(framework) for form in ("masked", "packed")} <= ran
    overs = {curve["over"] for curve in RECORDED["growth"] if curve["framework"] == framework}
    assert overs == {heat.over for heat in growth.heats(framework)}
    assert any(framework in one["id"] for one in RECORDED["overhead"])


def test_the_summary_is_that_of_the_figures():
    verdicts = targets.judge(RECORDED["rows"], RECORDED["overhead"])
    assert targets.line(verdicts) == RECORDED["line"]
    assert command._rounded(targets.summary(verdicts)) == RECORDED["summary"]


def test_the_text_is_that_of_the_figures():
    text = (FOLDER / "bench-cpu.md").read_text("utf-8")
    assert text == markdown.section(RECORDED)
    assert RECORDED["environment"]["commit"] in text
    assert RECORDED["line"] in text


def test_another_figure_would_be_another_text():
    changed = json.loads(json.dumps(RECORDED))
    wanted = markdown._id("torch", "columns", "masked")
    (record,) = [record for record in changed["rows"] if record["id"] == wanted]
    record["ratios"]["dense"] = [0.123, 0.122, 0.124]
    assert "0.12" in markdown.section(changed)
    assert markdown.section(changed) != markdown.section(RECORDED)


def test_kept_bytes_are_proportional_to_the_share():
    """Counted, so exact: columns keep their share of the input, and JAX the positions that it works out."""
    for curve in RECORDED["growth"]:
        if curve["over"] == "p":
            for fit in curve["fits"].values():
                assert abs(fit["kept: intercept over slope"]) < 1e-3
                assert fit["kept: worst over slope"] < 1e-3


def test_a_run_is_shown(capsys):
    """Every table of it, without an unprintable figure."""
    from rich.console import Console

    view.show(RECORDED, Console(width=200, highlight=False))
    printed = capsys.readouterr().out
    assert RECORDED["line"] in printed.replace("\n", " ")
    assert "nan" not in printed
    unclear = [r for r in RECORDED["rows"] if not Ratio(*r["ratios"]["dense"]).is_clear]
    assert printed.count("unclear") >= len(unclear)


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_curves_are_drawn(tmp_path, suffix):
    file = tmp_path / f"bench.{suffix}"
    plot.draw(RECORDED["growth"], file)
    assert file.stat().st_size > 10_000
    if suffix == "svg":
        text = file.read_text("utf-8")
        assert "<dc:date>" not in text
        assert text.count("<path") > 10
