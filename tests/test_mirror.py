"""The twins mirror each other: the same files, public names, order of definitions, signatures and argument names."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest

import maskedlinear_core
import maskedlinear_jax
import maskedlinear_torch

FOLDERS = [Path(package.__file__).parent for package in (maskedlinear_torch, maskedlinear_jax)]


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.py"))


FILES = files(FOLDERS[0])

# Intended differences, each with its reason.
ONLY_PUBLIC_IN_JAX = {
    "partition": "jax.grad refuses integer leaves such as positions; torch keeps those as buffers",
    "combine": "the way back from partition",
    "repack_state": "an optimizer's state is a value of its own; in torch `repack` moves it along in place",
    "apply_updates": "XLA flushes subnormal numbers to zero where optax adds an update of zero",
    "merged": "in torch a packed layer keeps its matrix from call to call",
    "keep_frozen": "parameters computed from a state have no layer that puts them back before it reads them",
}
ONLY_PUBLIC_IN_TORCH = {
    "mask_parameter": "JAX has no parametrizations: `masked_parameter` is called on the array",
    "parameter_groups": "optax has no parameter groups, but masks",
}
ONLY_DEFINED_IN_ONE = {
    "kinds/__init__.py": set(),
    "kinds/base.py": set(),
    "kinds/blocks.py": set(),
    "kinds/dense_elements.py": set(),
    "kinds/sparse_elements.py": set(),
    "kinds/submatrix.py": set(),
    "kinds/sums.py": {
        "transposed", "written_out",  # XLA makes the operands of a product while it computes it
    },
    "indexing.py": {
        "bounds",  # positions are read in eager code only
        "gather",  # JAX is told where positions are unique
        "_inverse",  # XLA writes one value after the other on a CPU
        "divided",  # XLA would compile what // does about negative numbers
        "_scatter",  # vmap has no rule for index_copy
        "_is_scattered",  # a CPU scatters faster than it copies by index
        "can_write_in_place", "fill_blocks", "fill_crossings", "write_into",  # what may be written in place
    },
    "lowering.py": {
        "register_pytree", "_flatten", "_unflatten", "_Skeleton",  # masks are pytrees in JAX
        "as_tensor", "bools",  # Dynamo cannot follow NumPy inside of compiled code
        "_narrow",  # JAX has 32-bit integers by default
    },
    "rule.py": {
        "placed",  # of DTensors: a sharded array takes positions from anywhere
        # Each framework's form.
        "_Reverse", "_Rule", "_ReverseOnly", "learning", "_reverse", "_rule", "_forward", "_backward", "_tangent",
        "_gradient", "_along",  # JAX compiles each operation of eager code by itself
        "_Wanted",  # torch has ctx.needs_input_grad
        "_matrix_after", "_never", "_never_batched",  # XLA would keep V from the forward to the backward
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
        "_program", "IsFloat64",  # once in a program; what is asked where it is lowered
        "_output_type", "_batch", "_tangent", "_transpose", "_pulled", "_base_shape", "_index", "_on",
        "_wide",
    },
    "products.py": {"as_learned"},  # torch chooses a product by whether a gradient is recorded
    "engine_choice.py": {
        "_tested",  # Dynamo calls the test as a constant
        "_engine_on",  # JAX asks where a program is lowered, which may not be where it is traced
    },
    "functional.py": {
        "_autocast",  # JAX has no autocast
        "_refuse_array", "_check", "_fits",  # in torch at each call, in JAX when it traces
        "check_matrix",  # tensors have layouts
    },
    "packing.py": {"_taken"},  # JAX has shardings that are part of types
    "convert.py": {
        # Pytrees of several libraries; torch has one kind of module.
        "merged", "merge",  # a packed layer of torch keeps its matrix by itself
        "Form", "Adapter", "convert", "plain_layers", "check_own", "_has_own_call",
        "is_from", "_part", "_changed", "_constant", "not_of_flax", "_name",
        "has_weight",  # `equinox.nn.Shared` takes the weight out of a layer; torch's ties are two names of one
        "_form", "_nodes", "_others", "_check_library", "_is_layer", "_is_own", "_shape",
        # In place, and attention whose projections are no modules.
        "_check_freezing", "_make", "_attention", "_let_learn", "_let_values_learn", "_let_projections_learn",
        "_with_the_frozen",  # parameters of JAX require no gradient
        "_taken_over", "_change", "_replace", "_freeze_others",
        "_output_layer",
        "leaves_of", "weights_of", "embeddings",  # of pytrees of several libraries
        "_is_own_embedding", "_all_learns",
    },
    "new_tokens.py": {
        "_token_embedding",  # of a module, which tells its own
        "new_tokens",  # shared by the adapters
    },
    "embedding.py": {
        "TiedHead",  # a module of its own, where a pytree's head is `attend`
        "check",  # the options of torch's embedding
        "_Plain", "masked_lookup", "packed_lookup", "check_tokens",  # shared by the adapters
    },
    "parameter.py": {
        "GradMask", "MaskedParameter", "mask_parameter",  # JAX has no parametrizations
        "_check",  # of several functions; tensors have layouts
    },
    "freeze.py": {
        "Hold", "_Look", "_can_be_held", "_check", "_hold", "_held_layers",  # layers keep frozen entries themselves
        "_call_the_layer",  # torch's fast path of transformers reads past a layer's forward
        "apply_updates", "keep_frozen", "register_models", "_masks_of", "_has_layers", "_is_layer", "_is_mask_or_none",
        "_refuse_other_gradients",  # called by compiled code
        "_is_model", "_check_masks", "_laid_out", "_left_out", "_left_out_of", "_check_state", "_check_structure",
        "_holds",  # masks are found by the model's paths, and cannot be seen by an update
        "_has_positions",  # torch's modules cannot lose theirs
        "_by_name",  # a tensor alone is no mapping; to JAX an array is a pytree
        "_nothing", "_named", "_named_arrays", "_named_masks", "_join",  # a transformation of pytrees
        "_is_layer_or_constant", "_inside",  # torch's frozen parameters are parameters
    },
    "frozen_entries.py": {
        "Places", "_run", "FrozenEntries", "Held", "_Read", "same_bits", "local", "local_places",  # a matrix beside it
        "by_path", "path_of", "masks_by_path", "Rows", "as_rows", "lies_in_blocks", "lies_in_columns",
        "is_held", "trains", "_trains", "keep",  # masks and parameters by path
    },
    "frozen_state.py": {
        "FrozenState", "_Kept", "_constant",  # a state that a step creates and writes in place
        "update_and_keep", "_outputs",  # the old one and the new one
        "_is_captured",  # CUDA graphs are torch's
    },
    "summary.py": {"register_models", "_learning"},  # attention and parametrizations are modules
    "storage.py": {
        "_fill", "_filled", "_tensor", "_array", "_nodes",  # in place, or a new pytree
        "load", "_kind",  # a new layer has the class that its library gives to the stored form
        # Modules have buffers, are converted in place, and some keep their weight the other way.
        "_is_another", "_has_bits",  # a mark in the matrix, where torch has an `Origin`
        "_named_tensors", "_check_shape", "_is_plain", "_upright", "_matrix", "_converted",
    },
    "module.py": {"_given", "_kept",  # positions are tensors of a module in torch, leaves in JAX
                  "partition", "combine", "_is_float", "_name_of_dtype",
                  "beside"},  # what a pytree's leaves are: in torch beside.py
    "moments.py": {  # an optimizer's state is a value of its own in JAX, and hangs on parameters in torch
        "begin", "_read",  # a state of few bits is a tensor of its own class
        "Moved", "MovedBias", "repack_state", "packed_layers", "names", "numbers", "_moved", "_fresh",
    },
    "_compat.py": set(),  # private names of a framework have no twin
}  # fmt: skip


def names(module):
    return set(module.__all__)


def definitions(path):
    """Names in order. Overloads are left out: what comes back of a pytree is of no type that is known beforehand."""
    tree = ast.parse(path.read_text("utf-8"))
    found = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    return [n.name for n in found if "overload" not in map(ast.unparse, n.decorator_list)]


ONLY_IN_JAX = {
    "equinox.py", "nnx.py", "nnx_layers.py", "nnx_convert.py", "nnx_embedding.py",  # adapters of other libraries
    "nnx_general.py", "nnx_variables.py",
    "flax_bytes.py",  # a state_dict is what modules have
    "bits.py",  # as_bits of tensors.py
    "norms.py",  # torch's norms take the parameter out of the layer, which tells
    "marks.py",  # what origin.py is in torch, for values that remember nothing
    "stacked.py",  # layers along an axis, which a scan or vmap goes over
    "early_hold.py",  # where compiled code puts a state back, which torch writes in place
    "constant.py",  # a pytree has no parameters that take no gradient
}  # fmt: skip
ONLY_IN_TORCH = {
    "beside.py",  # a pytree's leaves are its class's: a layer with others is refused by name
    "groups.py",  # parameter groups are of torch.optim; optax has masks
    "held_module.py",  # the hooks of modules whose parameters are written in place
    "origin.py",  # a pytree is a value: it does not remember what it was (marks.py)
    "plain_ties.py",  # layers that share a parameter, which is an object in torch alone
    "steps.py",  # hooks around the steps of optimizers, which write in place
    "small_steps.py",  # a step of an optimizer that keeps its state by parameter
    "maskable.py",  # modules of torch, and attention whose projections are no modules
    "conv1d.py",  # of transformers, which is for torch
    "tied_keys.py",  # likewise
    "tensors.py",  # what a tensor that is written in place needs: arrays are not
    "own_parameters.py",  # what takes a parameter out of a module, in place
    "packed_parts.py",  # a weight that is written in place: arrays are not
    "packed_attention.py",  # as attention.py
    "kept_matrix.py",  # XLA decides what is kept
    "attention.py",  # torch's own attention reads its weights instead of calling layers
}


COMMON = [name for name in FILES if name not in ONLY_IN_TORCH]


def test_same_files():
    assert [name for name in files(FOLDERS[1]) if name not in ONLY_IN_JAX] == COMMON


def test_same_public_names():
    assert names(maskedlinear_torch) - set(ONLY_PUBLIC_IN_TORCH) == names(maskedlinear_jax) - set(ONLY_PUBLIC_IN_JAX)


@pytest.mark.parametrize("file", [name for name in COMMON if name not in ("__init__.py", "_compat.py")])
def test_same_definitions_in_the_same_order(file):
    one_sided = ONLY_DEFINED_IN_ONE.get(file, set())
    ours, theirs = ([n for n in definitions(folder / file) if n not in one_sided] for folder in FOLDERS)
    assert ours == theirs


@pytest.mark.parametrize("file", sorted(ONLY_DEFINED_IN_ONE))
def test_listed_differences_are_real(file):
    sets = [set(definitions(folder / file)) for folder in FOLDERS]
    for name in ONLY_DEFINED_IN_ONE[file]:
        assert (name in sets[0]) != (name in sets[1]), f"{name} is no difference any more"


ONLY_PARAMETERS_OF_ONE = {
    "MaskedLinear": {
        "device": "JAX arrays are placed by device_put",
        "key": "JAX has no global random generator",
    },
    "PackedLinear": {"device": "as above", "key": "as above"},
    "MaskedLinear.from_location": {"key": "as above"},
    "PackedLinear.from_location": {"key": "as above"},
    "PackedLinear.repack": {"optimizer": "a JAX optimizer's state is a pytree of its own: `repack` moves it"},
    "hold_frozen": {
        "models": "a torch optimizer knows tensors, whose masks are those of any number of modules",
        "model": "an optax optimizer is made for one pytree",
    },
    "mask_linears": {"optimizer": "a JAX optimizer's state is a pytree of its own: `repack_state` moves it"},
    "MaskedEmbedding": {"device": "as above", "key": "as above"},
    "PackedEmbedding": {"device": "as above", "key": "as above"},
}
"""Parameters that one twin alone has, each with its reason."""
ONLY_MEMBERS_OF_ONE = {
    "extra_repr": "torch.nn.Module prints it",
    "forward": "torch.nn.Module calls it; a pytree has __call__",
    "register_parameter": "torch.nn.Module has it",
    "replace": "a pytree is never changed in place",
    "reset_parameters": "torch.nn.Linear draws its values anew in place",
    "tree_flatten": "a pytree",
    "tree_flatten_with_keys": "a pytree",
    "tree_unflatten": "a pytree",
    "in_features": "an attribute in torch, of an array's shape in JAX",
    "out_features": "as above",
    "grad_mask": "a property that is set in torch, a leaf in JAX",
    "bias_mask": "as above",
    "base": "a frozen parameter in torch; JAX keeps its bits as integers",
}
"""Members of the layers that one twin alone defines, each with its reason."""
SHARED = sorted(names(maskedlinear_torch) & names(maskedlinear_jax))
LAYERS = ("MaskedLinear", "PackedLinear")


def parameters(function, name):
    return {
        parameter: (value.kind, value.default)
        for parameter, value in inspect.signature(function).parameters.items()
        if parameter not in ONLY_PARAMETERS_OF_ONE.get(name, {})
    }


def public(name):
    for package in (maskedlinear_torch, maskedlinear_jax):
        owner, _, member = name.partition(".")
        yield getattr(getattr(package, owner), member) if member else getattr(package, name)


def members(name):
    kind = getattr(maskedlinear_torch, name)
    return [m for m in vars(kind) if m[0] != "_" and callable(getattr(kind, m)) and m not in ONLY_MEMBERS_OF_ONE]


SIGNATURES = [name for name in SHARED if callable(getattr(maskedlinear_torch, name))] + [
    f"{layer}.{member}" for layer in LAYERS for member in members(layer)
]


@pytest.mark.parametrize("name", SIGNATURES)
def test_same_signatures(name):
    ours, theirs = (parameters(function, name) for function in public(name))
    assert list(ours.items()) == list(theirs.items())


@pytest.mark.parametrize("name", sorted(ONLY_PARAMETERS_OF_ONE))
def test_listed_parameters_are_in_one_twin_alone(name):
    ours, theirs = (inspect.signature(function).parameters for function in public(name))
    for parameter in ONLY_PARAMETERS_OF_ONE[name]:
        assert (parameter in ours) != (parameter in theirs), f"{parameter} is no difference any more"


@pytest.mark.parametrize("name", LAYERS)
def test_same_members_of_the_layers(name):
    ours, theirs = ({m for m in vars(kind) if m[0] != "_"} for kind in public(name))
    assert ours ^ theirs <= set(ONLY_MEMBERS_OF_ONE)


@pytest.mark.parametrize("package", [maskedlinear_core, maskedlinear_torch, maskedlinear_jax])
def test_a_package_shows_its_api_alone(package):
    """What `__init__` imports under its own name is the API; submodules can be imported and are not listed."""
    tree = ast.parse(Path(package.__file__).read_text("utf-8"))
    imported = [alias for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert (
        dir(package)
        == sorted(package.__all__)
        == sorted(alias.name for alias in imported if alias.asname == alias.name)
    )


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
            documented.append(
                {p for p in signature if f"    {p}: " in text} - set(ONLY_PARAMETERS_OF_ONE.get(name, {}))
            )
        assert documented[0] == documented[1]
        assert documented[0] >= {"grad_mask", "bias_mask"}


ONLY_METHODS_OF_ONE = {
    "Kind": {
        "arrays", "with_arrays", "without_arrays",  # JAX flattens a kind as a pytree
        "overwrite",  # in place
    },
    "Submatrix": {"arrays", "with_arrays", "overwrite"},  # as above
    "Blocks": {
        "arrays", "with_arrays", "overwrite",  # as above
    },
    "DenseElements": {"arrays", "with_arrays"},  # as above
    "SparseElements": {
        "arrays", "with_arrays", "overwrite",  # as above
        "_from_dense",  # torch's eager code reads positions; XLA cannot
        "_sampled", "_in_pieces", "_places",  # torch's eager code sums over pieces of the batch
    },
}  # fmt: skip
KINDS = sorted(ONLY_METHODS_OF_ONE)


def kind_of(package, name):
    return getattr(importlib.import_module(f"{package.__name__}.kinds"), name)


def methods(kind):
    kept = inspect.isfunction, inspect.isdatadescriptor, lambda value: isinstance(value, classmethod)
    return {
        name: getattr(kind, name)
        for name, value in vars(kind).items()
        if name[:2] != "__" and any(test(value) for test in kept) and name not in ONLY_METHODS_OF_ONE[kind.__name__]
    }


def test_every_kind_is_listed():
    for package in (maskedlinear_torch, maskedlinear_jax):
        base = kind_of(package, "Kind")
        assert (
            sorted(["Kind", *(kind.__name__ for kind in base.__subclasses__() if "test" not in kind.__module__)])
            == KINDS
        )


@pytest.mark.parametrize("name", KINDS)
def test_kinds_have_the_same_methods(name):
    ours, theirs = (methods(kind_of(package, name)) for package in (maskedlinear_torch, maskedlinear_jax))
    assert list(ours) == list(theirs)
    for method, value in ours.items():
        if method.startswith("_"):
            continue  # positions are handed to the inner ones as each framework has them
        assert list(inspect.signature(value).parameters) == list(inspect.signature(theirs[method]).parameters), method


@pytest.mark.parametrize("name", KINDS)
def test_listed_methods_are_in_one_twin_alone(name):
    ours, theirs = (vars(kind_of(package, name)) for package in (maskedlinear_torch, maskedlinear_jax))
    for method in ONLY_METHODS_OF_ONE[name]:
        assert (method in ours) != (method in theirs), f"{method} is no difference any more"


@pytest.mark.parametrize("name", [name for name in KINDS if name != "Kind"])
def test_every_kind_has_every_method(name):
    for package in (maskedlinear_torch, maskedlinear_jax):
        base, kind = kind_of(package, "Kind"), kind_of(package, name)
        for method, value in methods(base).items():
            own = getattr(kind, method)
            assert list(inspect.signature(own).parameters) == list(inspect.signature(value).parameters), method
            if (name, method) == ("DenseElements", "merge_into"):
                continue  # it is no packed form
            if "raise NotImplementedError" in inspect.getsource(value):
                assert own != value, f"{name} has no {method}"
