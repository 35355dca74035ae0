"""The README: its snippets run and print what it says, its figures are those of a recorded run, its commands exist."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text("utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", TEXT, re.S)
EVIDENCE = json.loads((ROOT / "parity" / "evidence" / "cpu.json").read_text("utf-8"))


@pytest.mark.parametrize("snippet", SNIPPETS, ids=["torch", "jax"])
def test_quick_start_prints_what_the_readme_says(snippet):
    seen = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, check=False, cwd=ROOT)
    assert seen.returncode == 0, seen.stderr
    printed = re.search(r"```\n(\[\[.*\]\])\n```", TEXT)
    assert seen.stdout.strip() == printed.group(1)


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


def test_commands_name_an_extra_that_exists():
    assert TEXT.count("pip install '.[test]'") == 2
    assert "\ntest = [" in (ROOT / "pyproject.toml").read_text("utf-8")
