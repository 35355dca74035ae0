"""A model that ran where the other framework is not installed is compared from what it left in a folder."""

import json
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import parity
from parity.isolation.sources import import_file
from parity.models import Dump

BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
from parity.cli.main import main
sys.exit(main({arguments}))
"""

JAX, TORCH = ("jax", "jaxlib", "flax", "equinox", "optax"), ("torch", "transformers", "peft")

TORCH_FILE = """
import numpy as np
import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = torch.nn.LayerNorm(6), torch.nn.Linear(6, 8), torch.nn.Linear(8, 6)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.norm(x))))


torch.manual_seed(0)
torch_model = Net()
inputs = (np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32),)
"""

JAX_FILE = """
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file


class Port(nnx.Module):
    def __init__(self, rngs, eps=EPS):
        self.norm = nnx.LayerNorm(6, epsilon=eps, rngs=rngs)
        self.up, self.down = nnx.Linear(6, 8, rngs=rngs), nnx.Linear(8, 6, rngs=rngs)

    def __call__(self, x):
        return x + self.down(nnx.relu(self.up(self.norm(x))))


jax_model = Port(nnx.Rngs(0))
weights = load_file("WEIGHTS")
jax_model.norm.scale[...], jax_model.norm.bias[...] = (jnp.asarray(weights[f"norm.{n}"]) for n in ("weight", "bias"))
for name in ("up", "down"):
    layer = getattr(jax_model, name)
    layer.kernel[...] = jnp.asarray(weights[f"{name}.weight"].T)
    layer.bias[...] = jnp.asarray(weights[f"{name}.bias"])
del weights
inputs = (np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32),)
"""


def run(blocked, *arguments):
    code = BLOCKED.format(names=set(blocked), arguments=list(map(str, arguments)))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("dump")
    (path / "torch_side.py").write_text(TORCH_FILE)
    done = run(JAX, "model", path / "torch_side.py", "--dump", path / "of_torch")
    assert done.returncode == 0, done.stderr
    for name, eps in (("right", "1e-5"), ("wrong", "1e-6")):
        text = JAX_FILE.replace("EPS", eps).replace("WEIGHTS", str(path / "of_torch" / "weights.safetensors"))
        (path / f"{name}.py").write_text(text)
    return path


def test_jax_is_held_to_torch_where_torch_is_not_installed(folder):
    arguments = "--against", folder / "of_torch", "--no-perturb", "--json", folder / "r.json"
    done = run(TORCH, "model", folder / "wrong.py", *arguments)
    assert done.returncode == 1, done.stdout + done.stderr
    assert json.loads((folder / "r.json").read_text())["first"] == "norm"


def test_torch_is_held_to_jax_where_jax_is_not_installed(folder):
    done = run(TORCH, "model", folder / "wrong.py", "--dump", folder / "of_jax", "--no-perturb")
    assert done.returncode == 0, done.stderr
    done = run(JAX, "model", folder / "torch_side.py", "--against", folder / "of_jax", "--json", folder / "r.json")
    assert done.returncode == 1, done.stdout + done.stderr
    assert json.loads((folder / "r.json").read_text())["first"] == "norm"


@pytest.mark.parametrize(("port", "first"), [("right", None), ("wrong", "norm")])
def test_a_dump_is_judged_as_the_model_is(folder, tmp_path, port, first):
    torch_model, jax_model, inputs = (
        import_file(folder / f"{file}.py")[name]
        for file, name in (("torch_side", "torch_model"), (port, "jax_model"), (port, "inputs"))
    )
    parity.dump_model(jax_model, inputs, tmp_path)
    for pair in ((Dump.read(folder / "of_torch"), jax_model), (torch_model, Dump.read(tmp_path))):
        report = parity.compare_models(*pair)
        assert len(report.modules) == 4
        assert report.perturbed
        assert getattr(report.first, "path", None) == first
        assert report.ok == (first is None)
        searched = [note for note in report.notes if "ran elsewhere" in note]
        assert len(searched) == (first is not None)
        if first is not None:
            assert report.first.diagnosis.text.endswith("was not looked for, because one of the two ran elsewhere")
            assert searched[0].startswith("torch's" if isinstance(pair[0], Dump) else "JAX's")
            assert "no known cause" not in str(report)


def test_weights_that_were_loaded_wrongly_are_named_from_a_dump(folder):
    jax_model = import_file(folder / "right.py")["jax_model"]
    jax_model.up.kernel[...] = jnp.flip(jax_model.up.kernel[...], 1)
    report = parity.compare_models(Dump.read(folder / "of_torch"), jax_model)
    assert report.first.path == "up"
    assert report.first.diagnosis.cause.startswith("weight: ")
    assert not [note for note in report.notes if "ran elsewhere" in note]


def test_what_is_kept_is_what_ran(folder):
    dump = Dump.read(folder / "of_torch")
    assert (dump.side, dump.meta["double"]) == ("torch", True)
    paths = [call.path for call in dump.calls[0]]
    assert paths == ["", "norm", "up", "down"]
    norm, up = dump.calls[0][1:3]
    np.testing.assert_array_equal(norm.outputs["output"], up.inputs[0].value)
    want = (dump.inputs[0][0] - dump.inputs[0][0].mean(-1, keepdims=True)) / np.sqrt(
        dump.inputs[0][0].astype(np.float64).var(-1, keepdims=True) + 1e-5
    )
    np.testing.assert_allclose(norm.outputs["output"], want, rtol=1e-5)
    assert np.abs(dump.calls[1][1].outputs["output"] - norm.outputs["output"]).max() > 0.1  # with perturbed weights


def test_dumps_that_cannot_be_used_are_refused(folder, tmp_path):
    dump = Dump.read(folder / "of_torch")
    with pytest.raises(FileNotFoundError, match=r"expected a folder that parity.dump_model wrote, found no model.json"):
        Dump.read(tmp_path)
    (tmp_path / "model.json").write_text('{"format": "parity-model", "version": 99}')
    with pytest.raises(ValueError, match="this dump cannot be read: ValueError: expected parity-model of version 1"):
        Dump.read(tmp_path)
    two = Dump(dump.meta | {"side": "jax"}, dump.weights, dump.perturbed, dump.inputs, dump.calls)
    with pytest.raises(TypeError, match="expected one model that runs here"):
        parity.compare_models(dump, two)
    with pytest.raises(TypeError, match="jax_model: expected a model of jax or a dump of one, got a dump of torch"):
        parity.compare_models(dump, dump)


def test_a_file_of_a_dump_that_is_not_whole_is_refused_in_words(folder, tmp_path):
    shutil.copytree(folder / "of_torch", tmp_path, dirs_exist_ok=True)
    whole = (tmp_path / "calls.safetensors").read_bytes()
    (tmp_path / "calls.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cannot be read: ValueError: calls.safetensors is damaged or not whole"):
        Dump.read(tmp_path)


class Single(torch.nn.Linear):
    """It does not run in float64."""

    def forward(self, x):
        if x.dtype == torch.float64:
            raise RuntimeError("float32 alone")
        return super().forward(x)


def linear_of(layer):
    weights = {name: jnp.asarray(value.detach().numpy()) for name, value in layer.named_parameters()}
    return (lambda p, x: x @ p["weight"].T + p["bias"], weights)


def test_why_a_model_did_not_run_in_float64_is_said(tmp_path):
    layer, inputs = Single(3, 2), (np.ones((4, 3), np.float32),)
    parity.dump_model(layer, inputs, tmp_path / "single")
    report = parity.compare_models(Dump.read(tmp_path / "single"), linear_of(layer))
    assert "ran in float32: the torch model does not run in float64" in str(report)
    assert "float32 alone" in str(report)
    parity.dump_model(linear_of(layer), inputs, tmp_path / "double")
    with pytest.raises(ValueError, match=r"of a run in float64, and the torch model does not run .*float32 alone"):
        parity.compare_models(layer, Dump.read(tmp_path / "double"))


def test_a_function_that_holds_its_own_weights_is_said_to():
    layer, x = torch.nn.Linear(3, 2), np.ones((4, 3), np.float32)
    function, weights = linear_of(layer)
    other = {name: value * 1.1 for name, value in weights.items()}
    report = parity.compare_models(layer, lambda x: jnp.sin(function(other, x)), (x,))
    assert "on the same input, and no weights are paired" in report.first.diagnosis.text
    right = parity.compare_models(layer, lambda x: function(weights, x), (x,))
    assert "gradients were not compared: the JAX model has no weights that are seen from outside" in right.notes
