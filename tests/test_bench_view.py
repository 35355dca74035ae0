"""What is shown, drawn and written of a benchmark's run, from figures that are known."""

import io
import pathlib

import pytest
from rich.console import Console

from benchmarks import command, growth, limits, markdown, plot, rows, view, worker
from benchmarks.rows import Row
from benchmarks.timing import Ratio


def figures():
    """A run in which ours take 0.70 of dense where columns learn, an unclear 0.9 to 1.1 elsewhere."""
    found = {
        "environment": {"processor": "A processor", "cpus": 2, "machine": "Linux", "python": "3.11", "torch": "2",
                        "jax": "1", "numpy": "2", "commit": "abc1234"},
        "machines": {
            name: {"device": "cpu", "threads": 2, "rates": {"float32": limits.as_data(limits.Machine(1e11, 1e10))}}
            for name in rows.FRAMEWORKS
        },
        "rows": [],
        "growth": [],
        "overhead": [
            {"id": "torch/host overhead/rows/masked/forward", "target": "host overhead", "value": [20, 19, 21],
             "at most": 15}
        ],
    }  # fmt: skip
    samples = {name: [1.0] * 7 for name in ("dense", "one-liner", "masked afterwards", "densified")}
    weighed = {
        name: {"kept for the backward": 10, "optimizer state": 4, "peak": 8} for name in (*samples, "masked", "packed")
    }
    for name in rows.FRAMEWORKS:
        for kind in rows.KINDS:
            how = rows.HOWS[name][0]
            row = Row(name, "forward+backward", kind, 0.1, rows.LARGE, "float32", how, "inner")
            times = [0.7] * 7 if kind == "columns" else [0.9, 0.95, 0.98, 1.0, 1.02, 1.05, 1.1]
            ours = samples | {form: times for form in worker.FORMS}
            machine = limits.Machine(1e11, 1e12)
            found["rows"] += [
                worker._record(row, form, ours, weighed, machine, limits.Shares(0.1, 1, 0.1)) for form in worker.FORMS
            ]
        for heat in growth.heats(name):
            found["growth"].append(curve(name, heat))
    command._judge(found)
    return found


def curve(framework, heat):
    points = []
    for row in heat.rows:
        size = float(row.batch * row.shape[-1])
        point = {"shape": row.shape, "p": row.p, "dense seconds": size}
        for form in worker.FORMS:
            point |= {form: [0.67 + 0.3 * row.p] * 3, f"{form} seconds": size, f"{form} kept": 1e6 * row.p}
        points.append(point)
    found = {"framework": framework, "over": heat.over, "points": points, "frozen": [0.66, 0.65, 0.67]}
    return found | {"fits": growth.fits(found)}


FOUND = figures()


def test_a_run_is_shown():
    console = Console(width=200, highlight=False, record=True, file=io.StringIO())
    view.show(FOUND, console)
    printed = console.export_text()
    for part in (
        "abc1234",
        "2 threads",
        "columns 1/10 masked",
        "0.70",
        "0.90..1.10",
        "0.670 + 0.300 p",
        "19.00..21.00",
    ):
        assert part in printed
    assert FOUND["line"] in printed.replace("\n", " ")
    assert printed.count("unclear") >= 16  # four kinds, two forms, two frameworks


def test_the_text_for_the_readme_is_that_of_the_figures():
    text = markdown.section(FOUND)
    assert "| `columns`, masked | 0.70 | 1.00 | 0.70 | 0.70 | 0.70 | 0.70 |" in text
    assert "| `rows`, packed | 0.90..1.10 |" in text
    assert "0.67 + 0.30 p (masked, no point further off than 0.00)" in text
    assert "20.00: torch/host overhead/rows/masked/forward" in text
    assert "A GPU: [one run](gpu.md)" in text
    assert (pathlib.Path(__file__).parents[1] / "docs" / "evidence" / "gpu.md").is_file()
    assert FOUND["line"] in text
    assert "commit abc1234" in text


def test_a_row_that_was_not_measured_says_so():
    assert "not measured | not measured" in markdown.section(FOUND | {"rows": FOUND["rows"][2:]})


def test_figures_are_kept_to_four_digits():
    assert command._rounded({"a": [0.123456, 3], "b": (1e-9 / 3, "c")}) == {"a": [0.1235, 3], "b": [3.333e-10, "c"]}


def test_limit_of_columns_is_met():
    record = next(one for one in FOUND["rows"] if one["kind"] == "columns")
    assert record["limit over dense"] == pytest.approx(0.7, abs=0.01)
    assert Ratio(*record["ratios"]["limit"]).median == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_curves_are_drawn(tmp_path, suffix):
    file = tmp_path / f"bench.{suffix}"
    plot.draw(FOUND["growth"], file)
    assert file.stat().st_size > 10_000
    if suffix == "svg":
        text = file.read_text("utf-8")
        assert "<dc:date>" not in text
        assert text.count("<path") > 10
