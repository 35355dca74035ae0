"""The README: its snippets run and print what it says, its figures are those of a recorded run, its commands exist."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from parity.api import compare_pair
from parity.isolation import sources

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text("utf-8")
SNIPPETS = [text for text in re.findall(r"```python\n(.*?)```", TEXT, re.S) if text.startswith("import")]
OUTLINE = next(text for text in re.findall(r"```python\n(.*?)```", TEXT, re.S) if text.startswith("model ="))
EVIDENCE = json.loads((ROOT / "docs" / "evidence" / "cpu.json").read_text("utf-8"))


@pytest.mark.parametrize("snippet", SNIPPETS, ids=["torch", "jax"])
def test_quick_start_prints_what_the_readme_says(snippet):
    seen = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, check=False, cwd=ROOT)
    assert seen.returncode == 0, seen.stderr
    printed = re.search(r"```\n(\[\[.*\]\])\n```", TEXT)
    assert seen.stdout.strip() == printed.group(1)


def test_the_operators_are_explained_as_the_readme_says(tmp_path):
    """The file of the section on one's own operator: its first difference, and the cell that is run again."""
    (text,) = [text for text in re.findall(r"```python\n(.*?)```", TEXT, re.S) if text.startswith("# operators.py")]
    file = tmp_path / "operators.py"
    file.write_text(text, "utf-8")
    (pair,) = sources.load(str(file))
    report = compare_pair(replace(pair, transforms=["forward"], worlds=["jax-eager"], data=["random"]))
    assert re.search(r"report\.json#(\S+)'", TEXT).group(1) in {record.cell.id for record in report.cells}
    for record in report.cells:
        assert f"differs: {record.diagnosis.cause}\n{record.diagnosis.text}\nfix: {record.diagnosis.fix}\n" in TEXT


def test_there_are_two_quick_starts():
    assert len(SNIPPETS) == 2


def test_figures_are_those_of_the_recorded_run():
    quoted = TEXT.partition("<!-- parity:begin -->")[2].partition("<!-- parity:end -->")[0]
    for verdict, count in EVIDENCE["counts"].items():
        if count:
            assert f"{count} {verdict}" in quoted
    assert f"{EVIDENCE['cells']} cells" in quoted
    assert EVIDENCE["environment"]["torch"] in quoted
    assert EVIDENCE["environment"]["jax"] in quoted
    digits = EVIDENCE["digits"]
    assert f"0 of {digits['frozen weights and biases']} frozen" in quoted
    for accuracy in digits["accuracy on images held back"].values():
        assert f"{accuracy:.1%}" in quoted


def test_the_recorded_run_was_green():
    assert EVIDENCE["failed"] == []
    assert EVIDENCE["digits"]["faults"] == []
    assert EVIDENCE["counts"]["differs"] == 0


def test_reproducible_figures_are_those_of_the_recorded_run():
    quoted = TEXT.partition("<!-- reproducible:begin -->")[2].partition("<!-- reproducible:end -->")[0]
    course = EVIDENCE["digits, reproducible"]
    (digest,) = set(course["sha256"].values())
    assert len(course["sha256"]) == 5
    assert digest[:16] in quoted
    assert f"{course['steps']} steps" in quoted
    assert f"{course['native weights with other bits'][-1]:.0%}" in quoted
    assert course["faults"] == []


def test_precision_figures_are_those_of_the_recorded_run():
    recorded = json.loads((ROOT / "docs" / "evidence" / "precision-cpu.json").read_text("utf-8"))
    quoted = TEXT.partition("<!-- precision:begin -->")[2].partition("<!-- precision:end -->")[0]
    for row in recorded["precision"]["errors"].values():
        for value in row.values():
            assert (f"{value:,.2f}" if value < 100 else f"{value:,.0f}") in quoted
    for row in recorded["precision"]["times"]:
        assert f"{row['ratio']:.2f}" in quoted
    assert recorded["environment"]["commit"] in quoted


def test_the_figure_of_the_course_is_stored():
    assert "docs/evidence/course.svg" in TEXT
    assert (ROOT / "docs" / "evidence" / "course.svg").read_text("utf-8").count("<path") > 10


def test_commands_name_an_extra_that_exists():
    assert TEXT.count("pip install '.[test]'") == 2
    assert "\ntest = [" in (ROOT / "pyproject.toml").read_text("utf-8")


def test_the_outline_runs(tmp_path, monkeypatch):
    from torch import nn

    import maskedlinear_torch as mt

    monkeypatch.chdir(tmp_path)
    layer = nn.ModuleDict({"query": nn.Linear(4, 4)})
    model = nn.ModuleDict({"encoder": nn.ModuleList([layer])})
    names = {name: getattr(mt, name) for name in ("mask_linears", "unmask_linears", "save_packed", "columns")}
    seen = {"model": model, **names}
    exec(OUTLINE, seen)
    assert type(seen["model"]["encoder"][0]["query"]) is nn.Linear
    assert (tmp_path / "tuned.safetensors").exists()


def test_the_reproducible_outline_runs():
    import torch

    import maskedlinear_torch as mt

    (outline,) = [text for text in re.findall(r"```python\n(.*?)```", TEXT, re.S) if 'precision="reproducible"' in text]
    x, weight, bias = torch.randn(3, 4), torch.randn(2, 4), torch.randn(2)
    seen = {"masked_linear": mt.masked_linear, "x": x, "weight": weight, "bias": bias, "mask": mt.columns([0])}
    exec(outline, seen)
    assert torch.allclose(seen["y"], torch.nn.functional.linear(x, weight, bias), atol=1e-5)


def test_minilm_figures_are_those_of_the_recorded_run():
    report = json.loads((ROOT / "examples" / "minilm" / "report.json").read_text("utf-8"))
    quoted = TEXT.partition("## A real model")[2].partition("## On many machines")[0]
    rows = report["fine-tuning"]
    for method in ("full", "packed", "shira"):
        assert f"{rows[method]['trained numbers']:,}" in quoted
        assert f"{rows[method]['bytes of optimizer state'] / 1e6:.1f} MB" in quoted
        assert f"{rows[method]['bytes of checkpoint'] / 1e6:.2f} MB" in quoted
        assert f"{rows[method]['held back'][1]:.3f}" in quoted
    assert f"{report['parting']['rms']['apart']:.1e}" in quoted
    assert f"{report['parting']['rms']['moved']:.1e}" in quoted
    assert f"{report['steps']} steps" in quoted
    assert report["environment"]["commit"] in quoted
