"""The plugin of pytest is loaded in every run of an environment that has it, and leaves other people's tests alone."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(folder, *options, **settings):
    """Run pytest on a folder, from within it; return what it printed."""
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "-p", "no:cacheprovider", *options, str(folder)]
    settings = os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"} | settings
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=settings).stdout


def test_it_imports_nothing(tmp_path):
    """As in hypothesis #3140, odl #1147."""
    test = (
        "import sys\n\n\ndef test():\n    assert not {'numpy', 'torch', 'jax', 'rich', 'parity'} & set(sys.modules)\n"
    )
    (tmp_path / "test_of_others.py").write_text(test, "utf-8")
    assert "1 passed" in run(tmp_path, "-p", "_parity_pytest")
    (point,) = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["entry-points"][
        "pytest11"
    ].values()
    assert point == "_parity_pytest"


OF_OTHERS = """
class Closed(Exception):
    @property
    def report(self):
        raise RuntimeError("the connection is closed")


class ParityError(Exception):  # of a modem
    @property
    def report(self):
        raise RuntimeError("no such bit")


def test_closed():
    raise Closed("of others")


def test_parity():
    raise ParityError("a bit")


def test_after():
    pass
"""


def test_it_asks_nothing_of_exceptions_of_others(tmp_path):
    """What a plugin's hook raises ends the whole run (as in pytest-github-actions-annotate-failures #57)."""
    (tmp_path / "test_of_others.py").write_text(OF_OTHERS, "utf-8")
    printed = run(tmp_path, "-p", "_parity_pytest")
    assert "2 failed, 1 passed" in printed, printed


@pytest.mark.parametrize("imported_by", ["conftest.py", "test_of_others.py"])
def test_packages_are_not_compiled_anew_in_every_run(imported_by, tmp_path):
    """Pytest takes all packages of a distribution that has a plugin for test code (as in pytest #2419, #9170)."""
    site, tests = tmp_path / "site", tmp_path / "tests"
    about = site / "installed-1.dist-info"
    about.mkdir(parents=True)
    for name in ("_parity_pytest", "maskedlinear_core"):
        shutil.copytree(ROOT / name, site / name)
    files = [file.relative_to(site) for file in site.rglob("*.py")]
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: installed\nVersion: 1\n", "utf-8")
    (about / "entry_points.txt").write_text("[pytest11]\nparity = _parity_pytest\n", "utf-8")
    (about / "RECORD").write_text("".join(f"{file.as_posix()},,\n" for file in files), "utf-8")
    tests.mkdir()
    (tests / imported_by).write_text("import maskedlinear_core\n", "utf-8")
    test = (
        "import sys\n\n\ndef test():\n"
        "    ours = [one for name, one in sys.modules.items() if name.partition('.')[0] == 'maskedlinear_core']\n"
        "    assert len(ours) > 10\n"
        f"    assert all(one.__file__.startswith({str(site)!r}) for one in ours)\n"
        "    assert {type(one.__loader__).__name__ for one in ours} == {'SourceFileLoader'}\n"
        "    assert type(sys.modules['_parity_pytest'].__loader__).__name__ == 'AssertionRewritingHook'\n"
    )
    with (tests / "test_of_others.py").open("a", encoding="utf-8") as file:
        file.write(test)
    printed = run(tests, PYTHONPATH=str(site), PYTEST_DISABLE_PLUGIN_AUTOLOAD="")
    assert "1 passed" in printed, printed


OF_A_USER = """
def test_a_port(parity):
    assert parity.__name__ == "parity"


def test_something_else():
    pass
"""


def test_the_fixture_is_the_package_and_its_tests_are_marked(tmp_path):
    (tmp_path / "test_of_a_user.py").write_text(OF_A_USER, "utf-8")
    assert "1 passed, 1 deselected" in run(tmp_path, "-p", "_parity_pytest", "-m", "parity", "--strict-markers")
