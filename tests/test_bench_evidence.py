"""The recorded run of the benchmark: the rows of its page's table, the figures it quotes, and how they are made."""

import json
from pathlib import Path

import pytest

from benchmarks import command, growth, markdown, rows, targets, view, worker
from benchmarks.timing import Ratio

FOLDER = Path(__file__).parent.parent / "docs" / "evidence"
PAGE = (FOLDER / "speed.md").read_text("utf-8")
RECORDED = json.loads((FOLDER / "bench-cpu.json").read_text("utf-8"))


@pytest.mark.parametrize("framework", rows.FRAMEWORKS)
def test_all_of_the_plan_was_measured(framework):
    ran = {record["id"] for record in RECORDED["rows"]}
    assert {markdown._id(framework, kind, form) for kind in rows.KINDS for form in worker.FORMS} <= ran
    assert {f"{row.id}/{form}" for row in rows.plan(framework) for form in worker.FORMS} <= ran
    grown = {curve["over"] for curve in RECORDED["growth"] if curve["framework"] == framework}
    assert grown == {heat.over for heat in growth.heats(framework, quick=False)}
    assert any(one["id"].startswith(f"{framework}/") for one in RECORDED["overhead"])


def test_the_summary_is_that_of_the_figures():
    verdicts = targets.judge(RECORDED["rows"], RECORDED["overhead"])
    assert targets.line(verdicts) == RECORDED["line"]
    assert command._rounded(targets.summary(verdicts)) == RECORDED["summary"]


def test_the_text_is_that_of_the_figures():
    quoted = PAGE.partition("<!-- bench:begin -->")[2].partition("<!-- bench:end -->")[0]
    assert markdown.section(RECORDED) == quoted.lstrip("\n")
    assert RECORDED["environment"]["commit"] in quoted
    assert RECORDED["line"] in quoted


def test_another_figure_would_be_another_text():
    changed = json.loads(json.dumps(RECORDED))
    wanted = markdown._id("torch", "columns", "masked")
    (record,) = [record for record in changed["rows"] if record["id"] == wanted]
    record["ratios"]["dense"] = [0.123, 0.122, 0.124]
    assert "0.12" in markdown.section(changed)
    assert markdown.section(changed) != markdown.section(RECORDED)


def test_a_run_is_shown(capsys):
    """Every table of it, without an unprintable figure."""
    from rich.console import Console

    view.show(RECORDED, Console(width=200, highlight=False))
    printed = capsys.readouterr().out
    assert RECORDED["line"] in printed.replace("\n", " ")
    assert "nan" not in printed
    unclear = [r for r in RECORDED["rows"] if not Ratio(*r["ratios"]["dense"]).is_clear]
    assert printed.count("unclear") >= len(unclear)
