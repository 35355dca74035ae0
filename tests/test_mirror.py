"""The twins mirror each other: the same files, public names, order of definitions, signatures and argument names."""

import ast
import inspect
from pathlib import Path

import pytest

import maskedlinear_jax
import maskedlinear_torch

FOLDERS = [Path(package.__file__).parent for package in (maskedlinear_torch, maskedlinear_jax)]
ONLY_IN_TORCH = {"tensors.py"}
"""What a tensor that is written in place needs: arrays are not."""

FILES = sorted(path.name for path in FOLDERS[0].glob("*.py") if path.name not in ONLY_IN_TORCH)

# Intended differences, each with its reason.
ONLY_PUBLIC_IN_JAX = {
    "partition": "jax.grad refuses integer leaves such as positions; torch keeps those as buffers",
    "combine": "the way back from partition",
    "repack_state": "an optimizer's state is a value of its own; in torch `repack` moves it along in place",
    "apply_updates": "XLA flushes subnormal numbers to zero where optax adds an update of zero",
}
ONLY_DEFINED_IN_ONE = {
    "kinds.py": {
        "_turned", "_written_out",  # XLA makes operands on the way
    },
    "indexing.py": {
        "bounds",  # positions are read in eager code only
        "gather",  # JAX is told where positions are unique
        "_inverse",  # XLA writes one value after the other on a CPU
        "divided",  # XLA would compile what // does about negative numbers
        "_scatter",  # vmap has no rule for index_copy
        "_is_scattered",  # a CPU scatters faster than it copies by index
        "can_write_in_place", "fill_blocks", "fill_crossings",  # what may be written in place
    },
    "lowering.py": {
        "register_pytrees", "_flatten", "_unflatten", "_Skeleton",  # masks are pytrees in JAX
        "as_tensor", "bools",  # Dynamo cannot follow NumPy inside of compiled code
        "_narrow",  # JAX has 32-bit integers by default
        "_on_grid",  # XLA divides once for all calls
    },
    "rule.py": {
        # Each framework's form.
        "_Reverse", "_Rule", "_ReverseOnly", "_reverse", "_rule", "_forward", "_backward", "_tangent",
        "_gradient", "_along",  # JAX compiles each operation of eager code by itself
        "_Wanted",  # torch has ctx.needs_input_grad
        "_identity", "_identity_jvp",  # V without a copy, which torch makes where the backward is differentiated
        "_alike",  # shard_map types what differs between devices
        "_is_primal", "_shape", "_is_differentiated", "_gradients",  # inner workings of either form
        "_laid_out_like",  # XLA chooses how arrays lie in memory
        "reference",  # what torch.compile traces under torch.func
    },
    "integer_products.py": {"_flushed"},  # in place
    "collectives.py": set(),
    "reproducible_products.py": {
        "_Exact", "_is_differentiated", "_check_group",  # an autograd.Function
        # A primitive, and what is in its rules.
        "_over_workers", "_over_workers_jvp", "_run", "_batched", "_bind", "_compiled", "_implementation", "_lowering",
        "_output_type", "_batch", "_tangent", "_transpose", "_pulled", "_base_shape", "_index",
        "_wide",
    },
    "precision.py": {"_tested"},  # Dynamo calls the test as a constant
    "functional.py": {
        "_autocast",  # JAX has no autocast
        "_refuse_array", "_check", "_fits",  # in torch at each call, in JAX when it traces
    },
    "packing.py": {"_taken"},  # JAX has shardings that are part of types
    "convert.py": {
        # Pytrees of several libraries; torch has one kind of module.
        "Form", "Adapter", "convert", "plain_layers", "check_nothing", "is_from", "_part", "_changed", "_constant",
        "_form", "_nodes", "_others", "_check_library", "_is_layer", "_is_own", "_shape",
        # In place, and attention whose projections are no modules.
        "_parts", "_check_linear", "_check_parameters", "_attention_check", "_make", "_change", "_replace",
        "_freeze_others", "_output_layer", "_token_embedding",
        "embeddings", "new_tokens", "_is_own_embedding", "_all_learns",  # of pytrees of several libraries
    },
    "embedding.py": {
        "TiedHead",  # a module of its own, where a pytree's head is `attend`
        "check",  # the options of torch's embedding
        "_Plain", "masked_lookup", "packed_lookup",  # shared by the adapters
    },
    "freeze.py": {
        "Hold", "_held", "_placed_like", "_like",  # hooks around a step that writes in place
        "apply_updates", "_has_layers", "_is_layer", "_is_mask", "_as_bools", "_nothing", "_hold_state", "_named",
        "_named_arrays", "_named_masks", "_join",  # a transformation of pytrees
    },
    "storage.py": {
        "_fill", "_filled", "_tensor", "_array", "_nodes",  # in place, or a new pytree
        # Modules have buffers, are converted in place, and some keep their weight the other way.
        "_buffers", "_named_tensors", "_check_shape", "_is_plain", "_upright", "_matrix", "_converted",
    },
    "packed_module.py": {
        "_bits",  # the matrix is an integer leaf: a pytree has no parameters that take no gradient
        "_Written",  # XLA decides what is kept
        "_Weight", "_Bias", "_seen",  # arrays are not written in place
    },
    "module.py": {"Layer", "_given", "_kept",  # positions are tensors of a module in torch, leaves in JAX
                  "partition", "combine", "_is_float", "_name_of_dtype"},
    "_compat.py": set(),  # private names of a framework have no twin
}  # fmt: skip
MODULE_DIFFERENCES = {
    "device": "JAX arrays are placed by device_put",
    "key": "JAX has no global random generator",
}


FILE_NAMES = {path.stem for folder in FOLDERS for path in folder.glob("*.py")}


def names(module):
    return {name for name in vars(module) if not name.startswith("_")} - FILE_NAMES


def definitions(path):
    tree = ast.parse(path.read_text("utf-8"))
    return [n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)]


ONLY_IN_JAX = {
    "equinox.py", "nnx.py", "nnx_layers.py", "nnx_convert.py",  # adapters of libraries that torch has none of
    "constant.py",  # a pytree has no parameters that take no gradient
    "moments.py",  # an optimizer's state is a value of its own
}  # fmt: skip
ONLY_IN_TORCH = {
    "conv1d.py",  # of transformers, which is for torch
    "attention.py",  # torch's own attention reads its weights instead of calling layers
}


COMMON = [name for name in FILES if name not in ONLY_IN_TORCH]


def test_same_files():
    assert sorted(path.name for path in FOLDERS[1].glob("*.py") if path.name not in ONLY_IN_JAX) == COMMON


def test_same_public_names():
    assert names(maskedlinear_torch) == names(maskedlinear_jax) - set(ONLY_PUBLIC_IN_JAX)


@pytest.mark.parametrize("file", [name for name in COMMON if name not in ("__init__.py", "_compat.py")])
def test_same_definitions_in_the_same_order(file):
    one_sided = ONLY_DEFINED_IN_ONE[file]
    ours, theirs = ([n for n in definitions(folder / file) if n not in one_sided] for folder in FOLDERS)
    assert ours == theirs


@pytest.mark.parametrize("file", sorted(ONLY_DEFINED_IN_ONE))
def test_listed_differences_are_real(file):
    sets = [set(definitions(folder / file)) for folder in FOLDERS]
    for name in ONLY_DEFINED_IN_ONE[file]:
        assert (name in sets[0]) != (name in sets[1]), f"{name} is no difference any more"


def parameters(function):
    return {
        name: (parameter.kind, parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in MODULE_DIFFERENCES
    }


@pytest.mark.parametrize(
    "name", ["masked_linear", "MaskedLinear", "columns", "rows", "submatrix", "blocks", "elements"]
)
def test_same_signatures(name):
    ours, theirs = getattr(maskedlinear_torch, name), getattr(maskedlinear_jax, name)
    assert parameters(ours) == parameters(theirs)
    assert list(parameters(ours)) == list(parameters(theirs))


@pytest.mark.parametrize("name", ["from_linear", "to_linear", "from_location"])
def test_same_constructors(name):
    ours, theirs = (getattr(package.MaskedLinear, name) for package in (maskedlinear_torch, maskedlinear_jax))
    assert parameters(ours) == parameters(theirs)


def test_masks_are_keyword_only():
    for package in (maskedlinear_torch, maskedlinear_jax):
        for function in (package.masked_linear, package.MaskedLinear):
            for name in ("grad_mask", "bias_mask"):
                assert inspect.signature(function).parameters[name].kind is inspect.Parameter.KEYWORD_ONLY


def test_same_arguments_are_documented():
    for name in ("masked_linear", "MaskedLinear"):
        documented = []
        for package in (maskedlinear_torch, maskedlinear_jax):
            text = inspect.getdoc(getattr(package, name)).partition("Args:")[2].partition("Raises:")[0]
            signature = inspect.signature(getattr(package, name)).parameters
            documented.append({p for p in signature if f"    {p}: " in text} - set(MODULE_DIFFERENCES))
        assert documented[0] == documented[1]
        assert documented[0] >= {"grad_mask", "bias_mask"}


@pytest.mark.parametrize("kind", ["Submatrix", "Blocks", "DenseElements"])
def test_kinds_have_the_same_methods(kind):
    from maskedlinear_jax import kinds as in_jax
    from maskedlinear_torch import kinds as in_torch

    ours, theirs = (
        [name for name, value in vars(getattr(module, kind)).items() if inspect.isfunction(value) and name[:2] != "__"]
        for module in (in_torch, in_jax)
    )
    assert ours == theirs
