"""What a user's type checker sees: a page of code for each face, and no `Any` without a reason.

The pages are checked by mypy, as strictly as `mypy --strict`, and by pyright in `.ci/run`; here they run.
"""

import importlib
import inspect
import tomllib
from pathlib import Path

import pytest

FACES = ("maskedlinear_torch", "maskedlinear_jax", "maskedlinear_jax.nnx", "maskedlinear_jax.equinox", "parity")
ANY_FUNCTION = "a function of the user's own, of any arguments"
PYTREE = "any pytree or module of the user's own"
REASONS = {
    "model": PYTREE,
    "rest": PYTREE,
    "updates": PYTREE,
    "before": PYTREE,
    "after": PYTREE,
    "masks": "masks by name, or a pytree of them",
    "state": "whatever state an optax transformation has",
    "optimizer": "an optimizer or what wraps one; optax is not always installed",
    "changes": "the value of any field",
    "keywords": "handed on to the framework's layer",
    "rngs": "what Flax takes as random streams",
    "key": "a PRNG key of either kind; Equinox hands it to every layer",
    "leaves": "leaves of a pytree under any transform",
    "trace": "a function of a framework that the core does not import",
    "group": "a process group of torch or the names of a mesh's axes",
    "input": "an array of any framework",
    "weight": "an array of any framework",
    "array": "an array of any framework, or nested lists",
    "rename": "a mapping or a function of names",
    "path": "a path, a binary file, bytes or a dict",
    "_arithmetic": "not for users",
    "torch_fn": ANY_FUNCTION,
    "jax_fn": ANY_FUNCTION,
    "torch": ANY_FUNCTION,
    "jax": ANY_FUNCTION,
    "function": ANY_FUNCTION,
    "oracle": ANY_FUNCTION,
    "loss": ANY_FUNCTION,
    "finish": ANY_FUNCTION,
    "inputs": "arrays, nested in any way, for a function of any arguments",
    "arrays": "as inputs",
    "arguments": "as inputs",
    "positional": "as inputs",
    "options": "what `compare` or `compare_models` takes",
    "torch_model": "a model of a framework that is not always installed",
    "jax_model": "as torch_model",
    "weights": "a WeightMap or what one is made of; in a report, what was found of them",
    "gradients": "what a report was told of them",
    "training": "what a report was told of it",
    "steps": "what a report was told of them",
    "environment": "versions and settings, as JSON has them",
    "rules": "functions, or Rules",
    "about": "whatever the maker of numbers wants to know again",
    "more": "as about, by name",
    "form": "anything that can be compared with ==",
    "runs": "cells of the pair's own kind",
    "compiler": "options that torch.compile or XLA know",
    "return": "what came, with some leaves replaced",
}


def functions():
    for face in FACES:
        module = importlib.import_module(face)
        for name in sorted(name for name in dir(module) if not name.startswith("_")):
            value = getattr(module, name)
            if not getattr(value, "__module__", "").startswith(("maskedlinear", "parity")):
                continue
            if inspect.isfunction(value):
                yield f"{face}.{name}", value
            elif inspect.isclass(value):
                for member, function in vars(value).items():
                    if inspect.isfunction(function) and (member in ("__init__", "__call__") or member[0] != "_"):
                        yield f"{face}.{name}.{member}", function


def annotations(function):
    signature = inspect.signature(function)
    named = {name: parameter.annotation for name, parameter in signature.parameters.items() if name != "self"}
    return named | {"return": signature.return_annotation}


def test_every_public_parameter_has_a_type():
    bare = [
        f"{where}({name})"
        for where, function in functions()
        for name, annotation in annotations(function).items()
        if annotation is inspect.Parameter.empty and not (name == "return" and where.endswith("__init__"))
    ]
    assert not bare


def test_no_any_without_a_reason():
    found = {name for _, function in functions() for name, one in annotations(function).items() if "Any" in str(one)}
    assert found == set(REASONS)
    assert not found & {"grad_mask", "bias_mask", "precision", "index", "dtype", "device"}


PAGES = sorted(path.stem for path in (Path(__file__).parent / "user_pages").glob("*_page.py"))


@pytest.mark.parametrize("name", PAGES)
def test_the_page_runs(name, tmp_path):
    page = importlib.import_module(f"tests.user_pages.{name}")
    page.main(tmp_path)


def test_every_page_is_checked():
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8"))
    checked = {name.rpartition(".")[2] for name in project["tool"]["mypy"]["modules"]}
    assert checked == set(PAGES)
    assert project["tool"]["basedpyright"]["include"] == ["tests/user_pages"]
