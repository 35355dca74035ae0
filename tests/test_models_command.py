"""`python -m parity model FILE.py`: exit codes, files, and what is said of a file that cannot be used."""

import json
from xml.etree import ElementTree

import pytest

from parity.cli.main import main

MODELS = """
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import parity

torch.manual_seed(0)
torch_model = torch.nn.Sequential(torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))


class Port(nnx.Module):
    def __init__(self, eps):
        rngs = nnx.Rngs(0)
        self.norm, self.fc = nnx.LayerNorm(4, epsilon=eps, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.fc(self.norm(x))


def jax_model():
    port = Port(EPS)
    return parity.map_weights(torch_model, port).load_into_jax(torch_model, port)


inputs = (np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4),)
"""


def file(tmp_path, eps):
    path = tmp_path / "models.py"
    path.write_text(MODELS.replace("EPS", eps))
    return str(path)


def test_a_right_port_is_as_promised(tmp_path, capsys):
    assert main(["model", file(tmp_path, "1e-5"), "--json", str(tmp_path / "r.json")]) == 0
    out = capsys.readouterr().out
    assert "models.py: the same function (3 modules" in out
    assert json.loads((tmp_path / "r.json").read_text())["ok"] is True


def test_training_steps_are_a_table_and_a_curve(tmp_path, capsys):
    arguments = ["--optimizer", "adam", "--steps", "3", "--plot", str(tmp_path / "steps.svg"), "--no-perturb"]
    assert main(["model", file(tmp_path, "1e-5"), *arguments]) == 0
    rows = [line.split() for line in capsys.readouterr().out.partition("training steps")[2].splitlines()]
    steps = [row for row in rows if row and row[0].isdecimal()]
    assert [row[0] for row in steps] == ["1", "2", "3"]
    assert all(float(row[3]) < 1e-9 for row in steps)
    assert float(steps[0][1]) > float(steps[2][1])  # the loss falls
    drawn = (tmp_path / "steps.svg").read_text()
    assert drawn.count("<circle") == 3
    assert ElementTree.fromstring(drawn).tag.endswith("svg")


@pytest.mark.parametrize(
    ("given", "said"),
    [(("--plot", "steps.png"), "--plot: expected a name that ends in .svg"), (("--steps", "0"), "--steps: expected 1")],
    ids=["another picture", "no step"],
)
def test_what_no_steps_can_be_is_refused(tmp_path, capsys, given, said):
    with pytest.raises(SystemExit, match="2"):
        main(["model", file(tmp_path, "1e-5"), *given])
    assert said in capsys.readouterr().err


def test_a_wrong_port_fails_and_names_the_module(tmp_path, capsys):
    kept = [f"--{kind}={tmp_path / f'r.{kind}'}" for kind in ("html", "json", "md", "txt")]
    assert main(["model", file(tmp_path, "1e-6"), "--fail-fast", *kept]) == 1
    out = capsys.readouterr().out
    assert "different, first in 0 (" in out
    again = f"again: python -m parity model {tmp_path / 'models.py'}"
    assert f"{again} --replay '{tmp_path / 'r.json'}#0'" in out
    assert main(["model", file(tmp_path, "1e-6"), "--seed=3", "--no-perturb"]) == 1
    assert f"{again} --seed 3 --no-perturb --only 0" in capsys.readouterr().out
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["first"] == "0"
    assert "<details open>" in (tmp_path / "r.html").read_text()
    assert "different, first in 0" in (tmp_path / "r.md").read_text()


def test_one_module_alone(tmp_path, capsys):
    assert main(["model", file(tmp_path, "1e-6"), "--only", "1", "--no-perturb"]) == 0
    assert "2 not judged" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("jax_model, inputs = 1, (1,)", "does not define torch_model"),
        ("import nothing_at_all", "fails to import: line 1: ModuleNotFoundError"),
        ("torch_model, jax_model, inputs = 1, 2, (3,)", "torch_model: expected an nn.Module, got int"),
    ],
)
def test_a_file_that_cannot_be_used_is_bad_usage(tmp_path, capsys, text, said):
    path = tmp_path / "models.py"
    path.write_text(text)
    with pytest.raises(SystemExit, match="2"):
        main(["model", str(path)])
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_folder_that_is_not_there_is_bad_usage(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["model", file(tmp_path, "1e-5"), "--html", str(tmp_path / "no" / "r.html")])
    assert "expected a file in a folder that exists" in capsys.readouterr().err
