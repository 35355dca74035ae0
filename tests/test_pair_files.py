"""Files of pairs: what counts as a pair, and what is said of a file that has none (`python -m parity check`)."""

import re
import textwrap

import numpy as np
import pytest

from parity.cli import main as cli
from parity.isolation import inputs, sources
from parity.isolation.source_text import text_of


def written(folder, text):
    file = folder / "operators.py"
    file.write_text(textwrap.dedent(text), "utf-8")
    return str(file)


GOOD = {
    "three names": (
        """
        import numpy as np
        inputs_f = (np.ones(3),)
        def torch_f(x): return x
        def jax_f(x): return x
        """,
        ["f"],
    ),
    "the simplest form": (
        """
        import numpy as np
        def torch_fn(x): return x
        def jax_fn(x): return x
        def inputs(seed): return (np.ones(3),)
        """,
        ["fn"],
    ),
    "a Pair and a list of them, in order": (
        """
        import numpy as np
        from parity.operator.pair import Pair
        ones = (np.ones(3),)
        named = Pair(torch=abs, jax=abs, inputs=ones, name="a name")
        PAIRS = [Pair(torch=abs, jax=abs, inputs=ones, name="b"), named]
        squared = Pair(torch=lambda x: x * x, jax=lambda x: x**2, inputs=ones)
        _hidden = Pair(torch=abs, jax=abs, inputs=ones, name="hidden")
        """,
        ["a name", "b", "squared"],
    ),
    "what lies beside the file": (
        """
        import beside
        from beside import torch_g, jax_g, inputs_g
        """,
        ["g"],
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_pairs_are_found(name, tmp_path):
    text, expected = GOOD[name]
    (tmp_path / "beside.py").write_text(textwrap.dedent(GOOD["three names"][0]).replace("_f", "_g"), "utf-8")
    assert [pair.name for pair in sources.load(written(tmp_path, text))] == expected


BAD = {
    "fails to import": ("import numpy\n1 / 0", "fails to import: line 2: ZeroDivisionError: division by zero"),
    "a syntax error": ("x = (", "fails to import: line 1: SyntaxError"),
    "leaves the process": ("import sys\nsys.exit(3)", "fails to import: line 2: SystemExit: 3"),
    "no pair": ("x = 1", "defines no pair: define torch_NAME, jax_NAME and inputs_NAME"),
    "no JAX half": ("def torch_f(x): return x", "torch_f has no function jax_f; define it, or write _torch_f"),
    "no torch half": ("def jax_f(x): return x", "half a pair: jax_f has no torch_f; define it, or write _jax_f"),
    "no inputs": ("def torch_f(x): return x\ndef jax_f(x): return x", "torch_f and jax_f have no inputs_f"),
    "a name twice": (
        "import numpy as np\nfrom parity.operator.pair import Pair\n"
        "PAIRS = [Pair(torch=abs, jax=abs, inputs=(np.ones(i),), name='a') for i in (1, 2)]",
        "expected every pair to have a name of its own, got a twice",
    ),
    "inputs of another kind": (
        "inputs = (1.0,)\ndef torch_f(x): return x\ndef jax_f(x): return x",
        "torch_f and jax_f: inputs[0]: expected a NumPy array, got float",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_file_without_pairs_says_so(name, tmp_path):
    text, says = BAD[name]
    file = written(tmp_path, text)
    with pytest.raises(sources.NotUnderstood, match=re.escape(says)):
        sources.load(file)


def test_a_missing_file_is_bad_usage(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["check", "/nowhere/at/all.py"])
    assert "no such file: /nowhere/at/all.py" in capsys.readouterr().err


def test_a_file_that_kills_its_process_is_bad_usage(tmp_path, capsys):
    file = written(tmp_path, "import os\nos.abort()")
    with pytest.raises(SystemExit, match="2"):
        cli.main(["check", file])
    assert (
        "fails to import: the process ended by SIGABRT, in <module> (operators.py, line 2)" in capsys.readouterr().err
    )


USAGE = {
    "no file": ([], "expected a file, got none"),
    "a replay of nothing": (["--replay", "report.json"], "expected REPORT.json#CELL"),
    "a replay of no file": (["--replay", "/nowhere/r.json#a"], "cannot read /nowhere/r.json"),
    "no time": (["f.py", "--timeout", "0"], "expected a positive number of seconds, got 0"),
    "a negative seed": (["f.py", "--seed", "-1"], "expected 0 or more, got -1"),
    "no such folder": (["f.py", "--html", "/nowhere/at/all.html"], "expected a file in a folder that exists"),
}


@pytest.mark.parametrize("name", USAGE)
def test_bad_usage_is_two(name, capsys):
    arguments, says = USAGE[name]
    with pytest.raises(SystemExit, match="2"):
        cli.main(["check", *arguments])
    assert says in capsys.readouterr().err


def test_inputs_come_back_as_they_were():
    arrays = [np.array([np.nan, -0.0, np.inf]), np.arange(4, dtype=np.int32).reshape(2, 2), np.array(True)]
    for before, after in zip(arrays, inputs.unpack(inputs.pack(arrays)), strict=True):
        assert after.dtype == before.dtype
        assert after.tobytes() == before.tobytes()


def test_damaged_inputs_are_refused():
    with pytest.raises(ValueError, match="expected a base64 npz file"):
        inputs.unpack(inputs.pack([np.ones(3)])[:-40])


def test_the_text_of_a_lambda_is_what_it_returns():
    several = (lambda x: x + (1), lambda x: {"a": x, "b": [y for y in x]})
    assert [text_of(function) for function in several] == ["x + (1)", '{"a": x, "b": [y for y in x]}']
    assert text_of(lambda x: (lambda y: y * 2)(x)) == "(lambda y: y * 2)(x)"
    assert text_of(np.square) == "square"
