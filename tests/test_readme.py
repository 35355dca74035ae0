"""The README and the pages of evidence: snippets print what is said, figures are those of recorded runs."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import markdown
from parity.api import compare_pair
from parity.isolation import sources
from parity.suites.masked_linear.sabotage import SABOTAGES

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text("utf-8")
GRID, PRECISION, MINILM, OPERATOR = (
    (ROOT / "docs" / page).read_text("utf-8")
    for page in ("evidence/grid.md", "evidence/precision.md", "evidence/minilm.md", "how-to/your-operator.md")
)
SNIPPETS = [text for text in re.findall(r"```python\n(.*?)```", TEXT, re.S) if text.startswith("import")]
OUTLINE = next(text for text in re.findall(r"```python\n(.*?)```", TEXT, re.S) if text.startswith("model ="))
EVIDENCE = json.loads((ROOT / "docs" / "evidence" / "cpu.json").read_text("utf-8"))
ENCODER = json.loads((ROOT / "examples" / "minilm" / "report.json").read_text("utf-8"))
BENCH = json.loads((ROOT / "docs" / "evidence" / "bench-cpu.json").read_text("utf-8"))


def section(name, text):
    """What stands between the two comments of a name."""
    assert text.count(f"<!-- {name}:begin -->") == text.count(f"<!-- {name}:end -->") == 1
    return text.partition(f"<!-- {name}:begin -->")[2].partition(f"<!-- {name}:end -->")[0]


def test_the_readme_is_one_page():
    assert len(TEXT.splitlines()) <= 120


@pytest.mark.parametrize("snippet", SNIPPETS, ids=["torch", "jax"])
def test_quick_start_prints_what_the_readme_says(snippet):
    seen = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, check=False, cwd=ROOT)
    assert seen.returncode == 0, seen.stderr
    printed = re.search(r"```\n(\[\[.*\]\])\n```", TEXT)
    assert seen.stdout.strip() == printed.group(1)


def test_the_operators_are_explained_as_the_page_says(tmp_path):
    """The file of the page on one's own operator: its first difference, and the cell that is run again."""
    (text,) = [text for text in re.findall(r"```python\n(.*?)```", OPERATOR, re.S) if text.startswith("# operators.py")]
    file = tmp_path / "operators.py"
    file.write_text(text, "utf-8")
    (pair,) = sources.load(str(file))
    report = compare_pair(replace(pair, transforms=["forward"], worlds=["jax-eager"], data=["random"]))
    assert re.search(r"report\.json#(\S+)'", OPERATOR).group(1) in {record.cell.id for record in report.cells}
    for record in report.cells:
        assert f"differs: {record.diagnosis.cause}\n{record.diagnosis.text}\nfix: {record.diagnosis.fix}\n" in OPERATOR


def test_there_are_two_quick_starts():
    assert len(SNIPPETS) == 2


@pytest.mark.parametrize("text", [TEXT, GRID], ids=["README", "the grid's page"])
def test_figures_are_those_of_the_recorded_run(text):
    quoted = section("parity", text)
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


def test_the_grids_page_has_the_commit_of_the_run():
    assert EVIDENCE["environment"]["commit"] in section("parity", GRID)


def test_other_figures_of_the_readmes_table_are_those_of_recorded_runs():
    quoted = section("parity", TEXT)
    course = EVIDENCE["digits, reproducible"]
    assert f"{course['steps']} steps" in quoted
    assert f"`{course['sha256']['oracle'][:16]}…`" in quoted
    packed, full = (ENCODER["fine-tuning"][method] for method in ("packed", "full"))
    assert f"{packed['trained numbers']:,} of {full['trained numbers']:,} numbers learn" in quoted
    state = (f"{method['bytes of optimizer state'] / 1e6:.1f} MB" for method in (packed, full))
    assert f"state {' against '.join(state)}" in quoted
    assert f"loss {packed['held back'][1]:.3f} against {full['held back'][1]:.3f}" in quoted
    for framework, said in (("torch", "of the dense step in torch"), ("jax", "in JAX")):
        wanted = markdown._id(framework, "columns", "packed")
        (row,) = [row for row in BENCH["rows"] if row["id"] == wanted]
        assert f"{row['ratios']['dense'][0]:.2f} {said}" in quoted


def test_the_readme_counts_the_wrong_twins():
    twins = {sabotage.name for sabotage in SABOTAGES}
    assert f"{len(twins)} of {len(twins)} rejected" in section("parity", TEXT)


def test_the_recorded_run_was_green():
    assert EVIDENCE["failed"] == []
    assert EVIDENCE["digits"]["faults"] == []
    assert EVIDENCE["counts"]["differs"] == 0


def test_reproducible_figures_are_those_of_the_recorded_run():
    quoted = section("reproducible", GRID)
    course = EVIDENCE["digits, reproducible"]
    (digest,) = set(course["sha256"].values())
    assert len(course["sha256"]) == 5
    assert digest[:16] in quoted
    assert f"{course['steps']} steps" in quoted
    assert f"{course['native weights with other bits'][-1]:.0%}" in quoted
    assert course["faults"] == []


def test_precision_figures_are_those_of_the_recorded_run():
    recorded = json.loads((ROOT / "docs" / "evidence" / "precision-cpu.json").read_text("utf-8"))
    quoted = section("precision", PRECISION)
    for row in recorded["precision"]["errors"].values():
        for value in row.values():
            assert (f"{value:,.2f}" if value < 100 else f"{value:,.0f}") in quoted
    for row in recorded["precision"]["times"]:
        assert f"{row['ratio']:.2f}" in quoted
    assert recorded["environment"]["commit"] in quoted


def test_the_figure_of_the_course_is_stored():
    assert "](course.svg)" in GRID
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


def test_minilm_figures_are_those_of_the_recorded_run():
    report, quoted = ENCODER, MINILM
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
