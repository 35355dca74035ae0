"""parity is a library that knows no layer; what it can run are suites, found by name and imported when they are run."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import parity
from parity import suites
from parity.cli import main as cli

PACKAGE = Path(parity.__file__).parent

LIBRARY = sorted(
    str(file.relative_to(PACKAGE)) for file in PACKAGE.rglob("*.py") if "suites" not in file.relative_to(PACKAGE).parts
)


def python(code):
    seen = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert seen.returncode == 0, seen.stderr
    return seen.stdout.strip()


LOADED = "; import sys; print(*sorted({name.split('.')[0] for name in sys.modules}))"


def test_import_parity_loads_no_framework_and_no_layer():
    loaded = python("import parity" + LOADED).split()
    assert "numpy" in loaded
    assert not {
        name for name in loaded if name in ("torch", "jax", "jaxlib", "flax") or name.startswith("maskedlinear")
    }


def test_help_loads_no_suite():
    code = "from parity.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    *_, loaded = python(
        code + "import sys; print(*[name for name in sys.modules if name.startswith('parity.suites')])"
    ).split("\n")
    assert loaded.split() == ["parity.suites"]


def imports(file):
    """Return the modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse((PACKAGE / file).read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


WRITERS = ("report/content.py",)
"""Who writes files imports the one writer when it is called: it knows no layer, and no NumPy."""


@pytest.mark.parametrize("file", LIBRARY)
def test_the_library_imports_no_layer_and_no_suite(file):
    """The list of suites is all that it may import."""
    wrong = [name for name in imports(file) if name.startswith(("maskedlinear", "parity.suites."))]
    allowed = ("parity.suites.MOVED", *(("maskedlinear_core", "maskedlinear_core.files") if file in WRITERS else ()))
    assert [name for name in wrong if name not in allowed] == []


@pytest.mark.parametrize("file", LIBRARY)
def test_the_library_names_no_layer_and_no_suite(file):
    text = (PACKAGE / file).read_text("utf-8")
    # The distribution is called so: a report says its version, and an error what to install.
    text = text.replace('"maskedlinear": _version("maskedlinear")', "").replace("pip install 'maskedlinear[", "")
    if file in WRITERS:
        text = text.replace("from maskedlinear_core import files", "")
    assert not [
        word for word in ("masked_linear", "maskedlinear", "MaskedLinear", "grad_mask", "atlas") if word in text
    ]


def test_the_walk_sees_an_import(tmp_path, monkeypatch):
    (tmp_path / "one.py").write_text("def f():\n    from maskedlinear_core import masks\n", "utf-8")
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    assert list(imports("one.py")) == ["maskedlinear_core", "maskedlinear_core.masks"]


def test_help_lists_suites_and_commands(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    printed = capsys.readouterr().out
    for name in ("all", "grid", "golden", "precision", "digits", "atlas", "check", "compare-records"):
        assert f"\n    {name}" in printed, name


SUITE = '''
"""A small suite."""
description = "says a word"

def add_arguments(parser):
    parser.add_argument("--word", default="nothing")

def run(asked):
    print(asked.command, asked.word)
    return 3
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A place for suites beside the one that comes with parity."""
    monkeypatch.setattr(suites, "__path__", [*suites.__path__, str(tmp_path)])
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("parity.suites.added")]:
        del sys.modules[name]


def test_a_folder_is_a_suite(folder, capsys):
    (folder / "added").mkdir()
    (folder / "added" / "suite.py").write_text(SUITE, "utf-8")
    assert suites.found()["added"].description == "says a word"
    assert "parity.suites.added.suite" not in sys.modules
    assert cli.main(["added", "--word", "hello"]) == 3
    assert capsys.readouterr().out == "added hello\n"
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    assert "added" in capsys.readouterr().out


def test_a_suite_without_run_is_refused(folder):
    (folder / "added").mkdir()
    (folder / "added" / "suite.py").write_text(SUITE.replace("def run", "def other"), "utf-8")
    with pytest.raises(TypeError, match="expected a suite to define description, add_arguments, run; it has no run"):
        cli.main(["added"])


@pytest.mark.parametrize("name", ["plan", "run"])
def test_what_moved_is_found_with_a_warning(name):
    from parity.suites import masked_linear

    with pytest.warns(DeprecationWarning, match=f"parity.{name} is parity.suites.masked_linear.{name} now"):
        moved = getattr(parity, name)
    assert moved is getattr(masked_linear, name)


@pytest.mark.parametrize("name", ["plan", "run"])
def test_what_moved_says_where_it_is_from_a_wheel(name, monkeypatch):
    """It was: No module named 'parity.suites.masked_linear'."""
    monkeypatch.setattr(parity, "_MOVED", {name: "parity.suites.not_in_a_wheel"})
    with (
        pytest.warns(DeprecationWarning, match="now"),
        pytest.raises(AttributeError, match=f"parity.{name}: it is .* in a checkout or the sdist; .* no suites"),
    ):
        getattr(parity, name)


def test_what_never_was_is_not_found():
    with pytest.raises(AttributeError, match="module 'parity' has no attribute 'plans'"):
        parity.plans  # noqa: B018


def test_the_old_spelling_says_where_it_is(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["bench", "--list"])
    assert "it is `python -m benchmarks --list` now" in capsys.readouterr().err
