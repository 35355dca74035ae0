"""Importing one package never drags in another framework, changes no setting, and says what to install."""

import subprocess
import sys

import pytest

PACKAGES = {
    "maskedlinear_core": set(),
    "maskedlinear_core.select": set(),
    "maskedlinear_torch": {"torch"},
    "maskedlinear_jax": {"jax"},
    "maskedlinear_jax.equinox": {"jax"},
    "maskedlinear_jax.nnx": {"jax"},
    "parity": set(),
    "parity.cli.main": set(),
    "benchmarks.command": set(),
    "benchmarks.worker": set(),
    "benchmarks.torch_steps": {"torch"},
    "benchmarks.jax_steps": {"jax"},
    "parity.cli.check": set(),
    "parity.suites.atlas.suite": set(),
    "parity.suites.masked_linear.suite": set(),
    "parity.suites.training.suite": set(),
    "benchmarks.__main__": set(),
    "parity.isolation.worker": set(),
    "parity.suites.atlas.pairs": {"torch", "jax"},  # as a user's file of pairs
    "parity.suites.masked_linear.sabotage": set(),
    "parity.execution.torch_backend": {"torch"},
    "parity.execution.jax_backend": {"jax"},
}


def python(code):
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return seen.returncode, seen.stdout.strip(), seen.stderr


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_only_its_own_framework(package):
    _, seen, errors = python(f"import sys, {package}; print(*sorted({{'torch', 'jax'}} & set(sys.modules)))")
    assert set(seen.split()) == PACKAGES[package], errors


def test_the_check_itself_sees_an_import():
    _, seen, _ = python("import sys, torch; print(*sorted({'torch', 'jax'} & set(sys.modules)))")
    assert seen == "torch"


BLOCK = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "{framework}":
            raise ModuleNotFoundError("No module named '{framework}'", name="{framework}")
sys.meta_path.insert(0, Absent())
"""


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_missing_framework_names_the_extra(framework):
    code, _, errors = python(BLOCK.format(framework=framework) + f"import maskedlinear_{framework}")
    assert code == 1
    assert f"ImportError: maskedlinear_{framework} needs {framework}: pip install 'maskedlinear[{framework}]'" in errors


@pytest.mark.parametrize(("framework", "other"), [("torch", "jax"), ("jax", "torch")])
def test_each_twin_works_without_the_other_framework(framework, other):
    """The mask, the layer and its gradient, with the other framework not to be found."""
    use = {
        "torch": (
            "import torch\n"
            "from maskedlinear_torch import MaskedLinear, columns\n"
            "layer = MaskedLinear(3, 2, grad_mask=columns([1]), seed=0)\n"
            "layer(torch.ones(1, 3)).sum().backward()\n"
            "print(layer.weight.grad.tolist())"
        ),
        "jax": (
            "import jax, jax.numpy as jnp\n"
            "from maskedlinear_jax import MaskedLinear, columns, partition, combine\n"
            "p, r = partition(MaskedLinear(3, 2, grad_mask=columns([1]), seed=0))\n"
            "print(jax.grad(lambda p: combine(p, r)(jnp.ones((1, 3))).sum())(p).weight.tolist())"
        ),
    }[framework]
    _, seen, errors = python(BLOCK.format(framework=other) + use)
    assert seen == "[[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]]", errors


def test_import_changes_no_setting_of_torch():
    state = (
        "torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(), "
        "torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled(), torch.initial_seed()"
    )
    code = f"import torch; torch.manual_seed(1); a = ({state}); import maskedlinear_torch; print(a == ({state}))"
    assert python(code)[1] == "True"


def test_import_changes_no_setting_of_jax():
    code = "import jax; a = dict(jax.config.values); import maskedlinear_jax; print(a == dict(jax.config.values))"
    assert python(code)[1] == "True"
