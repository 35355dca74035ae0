"""The documentation: every block of code runs and prints what its page says, and what is cited exists."""

import argparse
import contextlib
import io
import re
import tomllib
from pathlib import Path

import pytest

from parity.cli import main
from tests import matrix

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
CODE = re.compile(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.S)
SOURCES = ("maskedlinear_core", "maskedlinear_torch", "maskedlinear_jax", "parity", "benchmarks", "tests", "examples")
CITED = re.compile(r"\bS(1[0-9]|[1-9])\b")


def named(page):
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [page for page in PAGES if CODE.search(page.read_text("utf-8"))], ids=named)
def test_code_of_a_page_runs_and_prints_what_it_says(page, tmp_path, monkeypatch):
    """All blocks of a page are one program. A block of text right after one is what that one prints."""
    monkeypatch.chdir(tmp_path)
    text = page.read_text("utf-8")
    names = {"__name__": "page"}
    for block in CODE.finditer(text):
        line = text[: block.start(1)].count("\n")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * line + block.group(1), str(page), "exec"), names)
        if "print(" in block.group(1):
            assert block.group(2) is not None, f"{named(page)}:{line}: a block prints, and no text says what"
            assert printed.getvalue().rstrip() == block.group(2).rstrip(), f"{named(page)}:{line}"


def test_a_block_that_prints_something_else_is_found(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1)\n```\n\n```text\n2\n```\n", "utf-8")
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    with pytest.raises(AssertionError, match=r"page\.md:1"):
        test_code_of_a_page_runs_and_prints_what_it_says(page, tmp_path, monkeypatch)


def clauses(text):
    return {f"S{number}" for number in re.findall(r"^\(s(\d+)\)=$\n## S\1: ", text, re.M)}


def test_every_clause_that_is_cited_is_in_the_contract():
    there = clauses((DOCS / "explanation" / "contract.md").read_text("utf-8"))
    assert there == {f"S{number}" for number in range(1, 16)}
    files = [file for folder in SOURCES for file in (ROOT / folder).rglob("*.py")]
    cited = {f"S{number}" for file in files for number in CITED.findall(file.read_text("utf-8"))}
    assert {"S1", "S9", "S11"} <= cited <= there
    # A docstring says where the clause is: no file is named after the document that the contract was written from.
    assert not [str(file) for file in files if re.search(r"\bSPEC\b S\d", file.read_text("utf-8"))]


def test_a_clause_without_its_heading_is_missed():
    assert clauses("(s1)=\n## S1: The mask\n\n(s2)=\n## S3: Not this one\n") == {"S1"}


LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
BLOCK = re.compile(r"^```.*?^```", re.S | re.M)


def prose(page):
    return BLOCK.sub("", page.read_text("utf-8"))


@pytest.mark.parametrize("page", [*PAGES, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md"))], ids=named)
def test_links_lead_to_files(page):
    for target in LINK.findall(prose(page)):
        assert (page.parent / target).exists(), f"{named(page)}: {target}"


COMMAND = re.compile(r"python -m parity ([a-z][a-z-]*)((?: +[^ `#\n]+)*)")


@pytest.mark.parametrize("page", [*PAGES, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md"))], ids=named)
def test_commands_and_their_options_exist(page):
    commands = main._commands()
    for name, rest in COMMAND.findall(page.read_text("utf-8")):
        assert name in commands, f"{named(page)}: python -m parity {name}"
        parser = argparse.ArgumentParser()
        parser.set_defaults(command=name)
        commands[name].load().add_arguments(parser)
        for option in re.findall(r"--[a-z-]+", rest):
            assert option in parser._option_string_actions, f"{named(page)}: python -m parity {name} {option}"


def test_every_command_is_on_its_page():
    page = (DOCS / "reference" / "commands.md").read_text("utf-8")
    assert set(main._commands()) == {name for name, _ in COMMAND.findall(page)}


PATHS = re.compile(r"\b(?:tests|examples|benchmarks|parity|maskedlinear_\w+)/[\w/.]+\w")


@pytest.mark.parametrize("page", [*PAGES, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md"))], ids=named)
def test_files_that_are_named_exist(page):
    for target in PATHS.findall(page.read_text("utf-8")):
        assert (ROOT / target).exists(), f"{named(page)}: {target}"


@pytest.mark.parametrize("package", ["maskedlinear_core", "maskedlinear_torch", "maskedlinear_jax", "parity"])
def test_every_public_name_is_in_the_reference(package):
    """What a package's `__init__` exports (`from x import y as y`) stands on a page of the reference."""
    exported = re.findall(r"^from \S+ import (\w+) as \1$", (ROOT / package / "__init__.py").read_text("utf-8"), re.M)
    pages = "".join(page.read_text("utf-8") for page in (DOCS / "reference").glob("*.md"))
    documented = set(re.findall(r"auto\w+:: (?:\w+\.)*(\w+)", pages))
    assert exported
    assert not set(exported) - documented - {"select", "plan", "run"}


def test_the_glossary_is_short():
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    glossary = text.partition("## Glossary\n")[2].partition("\n## ")[0].strip()
    assert 10 < len(glossary.splitlines()) <= 25


def test_the_version_stands_in_one_place():
    """What must repeat it says the same."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text("utf-8"), re.M).group(1)
    assert cited == project["version"]
    for package in SOURCES[:4]:
        for file in (ROOT / package).rglob("*.py"):
            assert "__version__ =" not in file.read_text("utf-8"), file


def test_the_workflow_runs_what_there_is():
    """CI on every push: the script that anyone can run, and every environment of the matrix of versions."""
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8")
    assert "run: bash .ci/run" in text
    listed = re.search(r"environment: \[(.*)\]", text).group(1).split(", ")
    assert listed == [one.name for one in matrix.ENVIRONMENTS]
