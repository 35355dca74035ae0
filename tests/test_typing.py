"""What a user's type checker sees: a page of code for each face, and no `Any` without a reason.

The pages are checked in `.ci/run`: by `mypy --strict` against the installed packages, and by pyright's strict mode.
The settings of a plain `mypy` in the checkout are as strict with them. Here they run.
"""

import functools
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
import typing
from pathlib import Path
from typing import Any

import pytest

FACES = (
    "maskedlinear_core",
    "maskedlinear_torch",
    "maskedlinear_jax",
    "maskedlinear_jax.nnx",
    "maskedlinear_jax.equinox",
    "parity",
)
ANY_FUNCTION = "a function of the user's own, of any arguments"
PYTREE = "any pytree or module of the user's own"
OTHER_LAYERS = "a pytree or model in which some layers are of another class now"
REASONS = {
    "model": PYTREE,
    "rest": PYTREE,
    "updates": PYTREE,
    "before": PYTREE,
    "after": PYTREE,
    "masks": "in JAX a pytree of masks like the user's model",
    "scores": "a pytree of scores like the user's model, or Scores",
    "gradients": "a module or pytree of the user's own",
    "weights": "as gradients; in parity a WeightMap, or what one is made of",
    "optimizer": "an optimizer of torch or what wraps one; nnx.Optimizer[Any] is an optimizer of any model",
    "changes": "the value of any field",
    "keywords": "handed on: to the framework's layer, to the user's function, to the transform",
    "leaves": "leaves of a pytree under any transform",
    "trace": "a function of a framework that the core does not import",
    "group": "a process group of torch or the names of a mesh's axes",
    "input": "an array of any framework, or nested lists of numbers",
    "weight": "as input",
    "plain": "the class of Flax that a layer stands for; not for users",
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
    "options": "of an optimizer, or what `compare` or `compare_models` takes",
    "torch_model": "a model of a framework that is not always installed",
    "jax_model": "as torch_model",
    "environment": "versions and the machine, as JSON has it",
    "rules": "functions, or Rules",
    "about": "whatever the maker of numbers wants to know again",
    "more": "as about, by name",
    "form": "anything that can be compared with ==",
    "runs": "cells of the pair's own kind",
    "compiler": "options that torch.compile or XLA know",
    "qconfig": "what torch.ao.quantization puts on a module; not for users",
}
"""Why a parameter or a field of this name may be anything, wherever it is."""

RETURNS = {
    "mask_linears": OTHER_LAYERS,
    "unmask_linears": OTHER_LAYERS,
    "train_new_tokens": OTHER_LAYERS,
    "merged": OTHER_LAYERS,
    "load_packed": "as mask_linears, or a dict of layers where there is no model",
    "load_into_jax": "the user's model, or one of its class",
    "load_into_torch": "as load_into_jax",
    "grad_masks": "a pytree of bool arrays like the user's model",
    "parameter_groups": "groups as torch's optimizers take them: parameters, and options of any type",
    "tree_flatten": "leaves under any transform; for JAX alone",
    "tree_flatten_with_keys": "as tree_flatten",
    "leaves": "positions of any framework; not for users",
    "memo": "what was computed of a mask; not for users",
    "traced_array": "an array of the framework that traces; not for users",
    "call": "what the user's function returns",
    "make": "inputs of the user's function",
    "listed": "an entry of a list of known differences, as its file has it",
    "as_dict": "a record as JSON has it",
    "content": "a report as JSON has it",
    "qconfig": "as it was put there",
}
"""Why a function of this name, of whatever class or face, may return anything."""


def is_ours(value):
    return (getattr(value, "__module__", None) or "").startswith(("maskedlinear", "parity"))


def under(member):
    """Return the functions behind a member of a class: a method of any kind, or what a property calls."""
    if isinstance(member, property):
        return [one for one in (member.fget, member.fset) if one is not None]
    if isinstance(member, functools.cached_property):
        return [member.func]
    member = getattr(member, "__func__", member)
    return [member] if inspect.isfunction(member) else []


def modules():
    """Return the faces, and the modules that they offer as names, such as `select`."""
    for face in FACES:
        module = importlib.import_module(face)
        yield face, module
        for name in module.__all__:
            inner = getattr(module, name)
            if inspect.ismodule(inner):
                yield f"{face}.{name}", inner


def public(module):
    """Return what a module offers: all of a face; of a module inside of it what is defined there."""
    names = getattr(module, "__all__", None)
    if names is None:
        names = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    return {name: getattr(module, name) for name in names if name[0] != "_"}


def classes():
    for face, module in modules():
        for name, value in public(module).items():
            if inspect.isclass(value) and is_ours(value):
                yield f"{face}.{name}", value


def functions():
    for face, module in modules():
        for name, value in public(module).items():
            if inspect.isfunction(value):
                yield f"{face}.{name}", inspect.unwrap(value)
    for where, kind in classes():
        members = {name: one for base in reversed(kind.__mro__) if is_ours(base) for name, one in vars(base).items()}
        for name, member in members.items():
            if name[0] != "_" or name in OPERATORS:
                yield from ((f"{where}.{name}", function) for function in under(member) if is_ours(function))


OPERATORS = ("__init__", "__call__", "__or__", "__and__", "__invert__", "__getitem__", "__iter__", "__len__")


def fields():
    """Return the annotated attributes of the public classes: of a base only where no class after it says more."""
    for where, kind in classes():
        said = {}
        for base in reversed(kind.__mro__):
            if is_ours(base):
                said = {name: one for name, one in said.items() if not isinstance(vars(base).get(name), property)}
                said |= inspect.get_annotations(base)
        yield from ((f"{where}.{name}", name, annotation) for name, annotation in said.items() if name[0] != "_")


def annotations(function):
    signature = inspect.signature(function)
    named = {name: one.annotation for name, one in signature.parameters.items() if name not in ("self", "cls")}
    return named | {"return": signature.return_annotation}


def says_any(annotation):
    return re.search(r"\bAny\b", str(annotation)) is not None


def test_every_public_parameter_has_a_type():
    bare = [
        f"{where}({name})"
        for where, function in functions()
        for name, annotation in annotations(function).items()
        if annotation is inspect.Parameter.empty and not (name == "return" and where.endswith("__init__"))
    ]
    assert not bare


def test_no_any_without_a_reason():
    found = {
        name
        for _, function in functions()
        for name, one in annotations(function).items()
        if name != "return" and says_any(one)
    } | {name for _, name, one in fields() if says_any(one)}
    assert found == set(REASONS)
    assert not found & {"grad_mask", "bias_mask", "precision", "index", "dtype", "device"}


def test_no_function_returns_any_without_a_reason():
    found = {where.rpartition(".")[2] for where, function in functions() if says_any(annotations(function)["return"])}
    assert found == set(RETURNS)


def test_members_of_every_kind_are_seen():
    seen = {where for where, _ in functions()}
    assert {
        "maskedlinear_core.Mask.__or__",
        "maskedlinear_torch.MaskedLinear.bias_mask",
        "maskedlinear_torch.select.Scores.add",
        "maskedlinear_torch.select.top_k",
        "maskedlinear_jax.MaskedLinear.from_linear",
        "maskedlinear_jax.PackedLinear.bias",
        "maskedlinear_jax.nnx.MaskedEmbed.from_embedding",
        "maskedlinear_jax.nnx.MaskedEmbed.to_linear",
        "maskedlinear_jax.nnx.PackedLinear.kernel",
        "parity.compare",
    } <= seen


def plain(self) -> Any: ...


@pytest.mark.parametrize(
    "member", [plain, classmethod(plain), staticmethod(plain), property(plain), functools.cached_property(plain)]
)
def test_an_any_is_seen_in_members_of_every_kind(member):
    (function,) = under(member)
    assert says_any(annotations(function)["return"])


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
    for name in PAGES:
        first = (Path(__file__).parent / "user_pages" / f"{name}.py").read_text("utf-8").splitlines()[0]
        assert first == "# pyright: strict" or ("torch" not in name and first.startswith("# pyright: strict, ")), name


def test_the_pages_are_checked_as_strictly_as_mypy_says():
    """What `--strict` turns on is a list that grows with mypy; `no_implicit_reexport` was missing here."""
    told = subprocess.run([sys.executable, "-m", "mypy", "--help"], capture_output=True, text=True, check=True).stdout
    listed = re.search(r"Strict mode; enables the following flags:([^A-Z]*?)--disable-error-code", told)[1]
    flags = {flag.removeprefix("--").replace("-", "_") for flag in re.sub(r"\s+", "", listed).split(",")}
    assert len(flags) >= 12
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8"))["tool"]["mypy"]
    (pages,) = [one for one in project["overrides"] if one["module"] == ["tests.user_pages.*"]]
    (imported,) = [one for one in project["overrides"] if "implicit_reexport" in one]
    assert {name.partition(".")[0] for name in imported["module"]} == {face.partition(".")[0] for face in FACES}
    settings = project | imported | pages
    off = {flag for flag in flags if settings.get(flag.removeprefix("no_"), None) is not (flag[:3] != "no_")}
    assert off <= {"warn_unused_configs", "strict_bytes"}  # of the file of settings; on by default


def test_every_annotation_is_found_when_it_runs():
    """A type that only a type checker imports is a NameError in `get_type_hints` (as in dataclasses-json #533)."""
    given = {"nnx.hold_frozen", "hold_frozen"}  # what is imported late is found, too
    lost, seen = [], set()
    for where, one in [*functions(), *classes()]:
        seen.add(where.partition(".")[2])
        try:
            typing.get_type_hints(one)
        except NameError as error:
            lost.append(f"{where}: {error}")
    assert not lost
    assert given <= seen
