"""Where a package is not installed, parity's calls and commands say which extra brings it."""

import importlib
import subprocess
import sys

import pytest

from parity import needs, suites
from parity.cli import main as cli

PAIR = "import numpy as np, parity\npair = parity.Pair(lambda x: x, lambda x: x, (np.ones(3),), name='p')\n"


def without(package, program, *arguments):
    """Run a program where a package is not to be found; return its exit code and what it says last."""
    program = f"import sys; sys.modules[{package!r}] = None\n" + program
    ran = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    return ran.returncode, ran.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("package", ["torch", "jax"])
@pytest.mark.parametrize(
    "call", ["compare(lambda x: x, lambda x: x, (np.ones(3),))", "assert_parity(abs, abs, (np.ones(3),), quick=True)"]
)
def test_functions_are_not_compared_without_a_framework(package, call):
    code, said = without(package, f"import numpy as np, parity; parity.{call}")
    assert code == 1
    assert said == (
        f"ModuleNotFoundError: a comparison of two functions needs {package}: pip install 'maskedlinear[parity]'"
    )


@pytest.mark.parametrize(
    ("package", "call", "extra"),
    [
        ("torch", "compare_models(abs, abs, (1,))", "parity"),
        ("jax", "map_weights(__import__('torch').nn.Linear(2, 2), (abs, {}))", "parity"),
        ("safetensors", "dump_model(__import__('torch').nn.Linear(2, 2), (np.ones((1, 2)),), sys.argv[1])", "storage"),
    ],
)
def test_models_are_not_compared_without_what_they_need(package, call, extra, tmp_path):
    code, said = without(package, f"import numpy as np, parity; parity.{call}", str(tmp_path / "dump"))
    name = call.partition("(")[0]
    assert code == 1
    assert said == f"ModuleNotFoundError: {name} needs {package}: pip install 'maskedlinear[{extra}]'"


COMMAND = "from parity.cli.main import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.parametrize("package", ["rich", "torch", "jax"])
def test_a_command_without_what_it_needs_is_bad_usage(package, tmp_path):
    file = tmp_path / "pairs.py"
    file.write_text(PAIR, "utf-8")
    code, said = without(package, COMMAND, "check", str(file))
    assert code == 2
    assert said == f"parity check: error: parity check needs {package}: pip install 'maskedlinear[parity]'"


def test_a_package_that_no_extra_brings_is_not_ours_to_explain(tmp_path):
    file = tmp_path / "pairs.py"
    file.write_text("import no_such_package\n" + PAIR, "utf-8")
    with pytest.raises(SystemExit, match="2"):
        cli.main(["check", str(file)])


def test_a_part_that_a_package_lacks_is_told_as_it_is():
    """JAX is there: to say "install it" would send a user with versions that do not go together astray."""
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'jax\.no_such_part'$"), needs.named("compare"):
        importlib.import_module("jax.no_such_part")


def test_a_suite_that_is_not_installed_is_named_as_such(monkeypatch, capsys):
    """As in the wheel: `parity grid`, which the README shows in a checkout."""
    found = cli._commands()
    assert set(suites.OF_A_CHECKOUT) == set(found) - set(cli.OWN)
    monkeypatch.setattr(cli, "_commands", lambda: {name: found[name] for name in cli.OWN})
    for arguments in (["grid"], ["--quick"], ["gpu", "--pretend", "cpu"]):
        with pytest.raises(SystemExit, match="2"):
            cli.main(arguments)
        assert "it runs from a checkout or the sdist" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    assert f"`{cli.DEFAULT}`" not in capsys.readouterr().out  # the help promised a command that is not there
