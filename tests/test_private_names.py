"""Private or moving names of the frameworks are in a `_compat.py` or listed here, and each has a test that watches it.

Those tests are in `test_private_names_torch.py`, `test_private_names_jax.py` and `test_private_names_parity.py`.
"""

import ast
import re
import tomllib
from pathlib import Path

import equinox
import jax
import optax
import pytest
import torch
from flax import linen, nnx

ROOT = Path(__file__).parent.parent
PACKAGES = ("maskedlinear_core", "maskedlinear_torch", "maskedlinear_jax", "parity", "benchmarks", "examples")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
COMPAT = [path for path in SOURCES if path.name == "_compat.py"]
CANARIES = "\n".join(
    (ROOT / "tests" / f"test_private_names_{name}.py").read_text("utf-8") for name in ("torch", "jax", "parity")
)

SEMI_PUBLIC = ("jax.extend", "jax.interpreters", "torch.testing", "torch.fx.experimental", "functorch")
"""Modules without an underscore that a framework promises nothing of."""

LISTED = {
    "_parameters": "the dict that register_parameter fills; torch.save of whole modules relies on its name",
    "_buffers": "as _parameters, of register_buffer and add_module",
    "_modules": "as _parameters, of register_buffer and add_module",
    "_apply": "what subclasses of Module override to follow moves and casts",
    "_load_from_state_dict": "documented in torch for subclasses to override",
    "_save_to_state_dict": "documented in torch for subclasses to override",
    "_fields": "of every named tuple of Python",
    "_exit": "os._exit, documented by Python",
    "_getframe": "sys._getframe, documented by Python",
}
PLACES = {
    "maskedlinear_torch/beside.py: _non_persistent_buffers_set": "nothing public tells which buffers are saved",
    "maskedlinear_torch/tied_keys.py: _tied_weights_keys": "transformers': the one place that ties and unties",
    "benchmarks/jax_steps.py: jax.extend.core": "reads a jaxpr; benchmarks/ is not installed",
    "examples/minilm/torch_training.py: _nnz": "counts the memory of a sparse gradient; an example",
}
"""Private names outside of `_compat.py`, with the reason."""

OWNERS = (
    torch, torch._C, torch.Tensor, torch.nn.Linear(1, 1), torch.nn.MultiheadAttention(2, 1), torch.nn.LSTM(1, 1),
    torch.nn.Embedding(1, 1), torch.optim.LBFGS([torch.nn.Parameter(torch.ones(1))]), torch.autograd.forward_ad,
    jax, jax.Array, jax.core.Tracer, nnx, nnx.Module, nnx.Linear(1, 1, rngs=nnx.Rngs(0)), nnx.Param(jax.numpy.ones(1)),
    linen.Module, equinox, equinox.Module, optax,
)  # fmt: skip
"""Things of the frameworks: a private name that one of them has is theirs, also where a class of ours has it too."""
# (transformers is in no environment of `tests.matrix`.)
THEIRS = {name for owner in OWNERS for name in dir(owner)} | {"_tied_weights_keys"}


def is_private(name):
    return name.startswith("_") and not name.startswith("__") and name.isidentifier() and name != "_"


def own_names(trees):
    """Return the names that our own sources define."""
    found = {path.stem for path in SOURCES}
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
                found.add(node.id if isinstance(node, ast.Name) else node.attr)
            elif isinstance(node, ast.alias):
                found.add(node.asname or node.name)
    return found


def private_names(tree, own):
    """Yield the private or moving names of others that a source uses: imports, attributes, and attributes by name."""
    for node in ast.walk(tree):
        modules, names = [], []
        if isinstance(node, ast.ImportFrom) and not node.level and not node.module.startswith(PACKAGES):
            modules, names = [node.module], [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute) and ast.unparse(node).startswith(SEMI_PUBLIC):
            modules = [ast.unparse(node)]
        elif isinstance(node, ast.Attribute) and is_private(node.attr):
            of_ours = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls") and node.attr in own
            if node.attr not in own or (node.attr in THEIRS and not of_ours):
                yield node.attr
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).split(".")[-1] in ("getattr", "hasattr", "setattr", "attrgetter", "vars", "pop")
        ) or isinstance(node, ast.Subscript):
            inside = node.args if isinstance(node, ast.Call) else [node.slice]
            names = [one.value for one in inside if isinstance(one, ast.Constant) and isinstance(one.value, str)]
            names = [name for name in names if name in THEIRS or name not in own]
            yield from (name for name in names if is_private(name) and name in THEIRS)
            continue
        for module in modules:
            if any(map(is_private, module.split("."))) or module.startswith(SEMI_PUBLIC):
                yield module
        yield from (f"{module}.{name}" for module in modules for name in names if is_private(name))


def found_in(paths):
    trees = {path: ast.parse(path.read_text("utf-8")) for path in SOURCES}
    own = own_names(trees.values())
    return {
        f"{path.relative_to(ROOT).as_posix()}: {name}" for path in paths for name in private_names(trees[path], own)
    }


def test_private_names_of_frameworks_are_in_a_compat_file_or_listed():
    found = found_in([path for path in SOURCES if path not in COMPAT])
    assert {one for one in found if one.split(": ")[1] not in LISTED} == set(PLACES)


def operators_by_name(tree):
    """Yield the private operators of torch that a source knows by their names: texts that are such a name."""
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
        if is_private(text) and hasattr(torch.ops.aten, text):
            yield text


def test_private_operators_that_are_known_by_name_are_watched():
    found = {name for path in SOURCES for name in operators_by_name(ast.parse(path.read_text("utf-8")))}
    assert {name for name in found - {"_version"} if f'"{name}"' not in CANARIES} == set()  # _version: an attribute
    assert "_to_copy" in found


def test_every_listed_name_is_used():
    used = {one.split(": ")[1] for one in found_in(SOURCES)}
    assert set(LISTED) <= used


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("from torch._decomp import table", "torch._decomp"),
        ("from jax._src import core", "jax._src"),
        ("from jax.extend import core", "jax.extend"),
        ("from torch.optim.optimizer import _global_hooks", "torch.optim.optimizer._global_hooks"),
        ("import torch.utils._python_dispatch", "torch.utils._python_dispatch"),
        ("tensor._version", "_version"),
        ("self._qkv_same_embed_dim", "_qkv_same_embed_dim"),
        ("getattr(optimizer, '_params', None)", "_params"),
        ("made.__dict__['_flat_weights']", "_flat_weights"),
        ("torch._C._are_functorch_transforms_active()", "_C"),
    ],
)  # fmt: skip
def test_a_private_name_is_noticed(source, name):
    assert name in set(private_names(ast.parse(source), own={"_params"}))


def test_our_own_names_are_none_of_theirs():
    source = "self._kept = 1\nlayer._kept\nfrom maskedlinear_torch import _compat\nself.__dict__['_kept']"
    assert not list(private_names(ast.parse(source), own={"_kept"}))


def functions_of(path):
    """Return what a `_compat.py` gives to others."""
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            yield from (one.id for one in getattr(node, "targets", None) or [node.target])


@pytest.mark.parametrize("path", COMPAT, ids=lambda path: path.parent.name)
def test_every_function_of_a_compat_file_has_a_test(path):
    short = {"maskedlinear_torch": "torch", "maskedlinear_jax": "jax", "execution": "parity"}
    name = f"{short.get(path.parent.name, path.parent.name)}_compat"
    public = [one for one in functions_of(path) if not one.startswith("_")]
    assert public
    assert not [one for one in public if f"{name}.{one}" not in CANARIES]


def test_every_function_of_a_compat_file_is_used():
    text = {path: path.read_text("utf-8") for path in SOURCES}
    for path in COMPAT:
        uses = "\n".join(one for other, one in text.items() if other != path)
        own = text[path]
        public = [one for one in functions_of(path) if not one.startswith("_")]
        assert not [one for one in public if one not in uses and own.count(one) < 2]


FALLBACK = re.compile(r"before (torch|jax|flax) ([\d.]*\d)", re.I)
"""How a `_compat.py` names the version from which on a fallback is needed no more."""


def bounds():
    """Return the lowest versions that pyproject.toml allows, by package."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    return dict(re.findall(r"([\w-]+)>=([\d.]+)", " ".join(extras["parity"] + extras["nnx"])))


def numbers(version):
    return tuple(map(int, version.split(".")))


def no_longer_needed(text, lowest):
    """Return the fallbacks that no version which is still allowed needs."""
    return [found[0] for found in FALLBACK.finditer(text) if numbers(found[2]) <= numbers(lowest[found[1].lower()])]


def test_a_fallback_names_its_version_and_goes_when_no_version_needs_it():
    text = "\n".join(path.read_text("utf-8") for path in COMPAT)
    assert len(FALLBACK.findall(text)) == 6
    assert no_longer_needed(text, bounds()) == []
    assert no_longer_needed("(`old` before jax 0.10.)", {"jax": "0.10.1"}) == ["before jax 0.10"]


def test_what_chooses_between_two_names_of_a_framework_names_a_version():
    """`hasattr(kind, "mat")`, `getattr(nnx, "as_pure", None) or ...`, `VERSION >= ...`: nothing else may choose so."""
    choosing = re.compile(r"hasattr\(kind, |getattr\((jax|jnp|torch|nnx|linen|optax|equinox|eqx), \"|VERSION [<>]")
    found = {path.relative_to(ROOT).as_posix() for path in SOURCES if choosing.search(path.read_text("utf-8"))}
    refused = "maskedlinear_torch/engine_choice.py"  # a version that answers wrongly, refused at the call
    assert found == {"maskedlinear_jax/_compat.py", "maskedlinear_torch/_compat.py", refused}
