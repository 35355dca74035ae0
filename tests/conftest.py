"""Settings of the test run: JAX on the CPU, everything seeded, and who runs what."""

import contextlib
import gc
import os
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores: two threads of each would wait for one another, and burn time as they do.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import maskedlinear_jax
import maskedlinear_torch
from parity.execution._compat import QUICKLY, known_xla_options, one_ir_context, xla_options
from parity.garbage import what_was_there_set_aside
from parity.suites.masked_linear.grid import collect_rarely

if "PYTEST_XDIST_WORKER" in os.environ:
    collect_rarely()


_set_aside = contextlib.ExitStack()


def pytest_collection_finish():
    """Let the garbage collector look at what tests make alone: the frameworks are a million objects."""
    gc.collect()
    _set_aside.enter_context(what_was_there_set_aside())


def pytest_unconfigure():
    """Take it back while Python is whole."""
    _set_aside.close()


# What JAX compiled once in this process it need not compile again, after `clear_caches` too. A folder for each process:
# JAX writes the entries in place, where another process could read half of one.
_compiled = tempfile.TemporaryDirectory(prefix="jax-compiled-")
jax.config.update("jax_compilation_cache_dir", _compiled.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

# The garbage of a compilation is collected with the other garbage, not after each.
torch._dynamo.config.run_gc_after_compile = False

collect_ignore_glob = ["engines/*"]
"""Scripts that tests run as processes of their own, each with its folder on the path."""

FIRST = (
    "test_quiet",
    "test_minilm",
    "test_course",
    "test_grid",
    "test_workers",
    "test_reproducible",
    "test_engines_jax",
)
"""What takes longest goes first, so that the workers end at one time."""


def pytest_collection_modifyitems(items):
    """Put the long files first, among several workers, and then those for which XLA's own code is made."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        places = {name: place for place, name in enumerate((*FIRST, *AS_USERS))}
        items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Hand out whole files, whose tests share fixtures, but the grid's cases one by one."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return nodeid if "test_grid.py::test_case[" in nodeid else super()._split_scope(nodeid)

    return Scheduling(config, log)


@pytest.fixture
def nothing_set_aside():
    """Let the garbage collector look at everything, as in a program of a user, in one test."""
    _set_aside.close()
    yield
    _set_aside.enter_context(what_was_there_set_aside())


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    torch._dynamo.reset()


AS_USERS = (
    "test_attention_verdicts", "test_bench_command", "test_bench_rivals", "test_bench_rows", "test_blocks_memory",
    "test_compare", "test_cost", "test_course", "test_digits", "test_exact_engines", "test_formulas", "test_grid",
    "test_hold_compiled", "test_import_time", "test_jax_memory", "test_kinks", "test_minilm", "test_models_memory",
    "test_no_lies", "test_oracle", "test_overhead", "test_private_names_parity", "test_quantized", "test_quiet",
    "test_real_size", "test_recompilation", "test_reproducible", "test_right_ports", "test_right_ports_beyond",
    "test_theory", "test_workers",
)  # fmt: skip
"""Files that ask how XLA's optimized code rounds, what it costs or what memory it takes. Of all others XLA makes code
without LLVM's optimizations, in a third of the time: their sums are exact, or of planted faults far beyond any
rounding, and they compare within the bounds that theory gives."""


@pytest.fixture(scope="module", autouse=True)
def _what_stays_set_aside():
    """Let the garbage collector look at what each file makes alone: compiled programs stay, a million objects."""
    yield
    if "PYTEST_XDIST_WORKER" in os.environ:
        gc.collect()
        gc.freeze()


_made_quickly = []


@pytest.fixture(scope="module", autouse=True)
def _xla(request):
    """Let XLA make machine code in a third of the time where that is not in question (`AS_USERS`).

    The graph goes through all of XLA's passes. What was compiled so is forgotten before XLA's own code is asked for.
    """
    if request.path.stem in AS_USERS:
        if _made_quickly:
            jax.clear_caches()
            _made_quickly.clear()
        yield
        return
    _made_quickly.append(request.path.stem)
    with xla_options(known_xla_options(QUICKLY)), one_ir_context():
        yield


TORCH = SimpleNamespace(
    name="torch",
    twin=maskedlinear_torch,
    masked_linear=maskedlinear_torch.masked_linear,
    MaskedLinear=maskedlinear_torch.MaskedLinear,
    array=lambda values, dtype="float32": torch.tensor(np.asarray(values)).to(getattr(torch, dtype)),
    integers=lambda values, dtype="int64": torch.tensor(values, dtype=getattr(torch, dtype)),
    bools=lambda values: torch.tensor(np.asarray(values, bool)),
    numpy=lambda tensor: tensor.detach().to(torch.float64).numpy(),
    grad=torch.func.grad,
    vmap=torch.func.vmap,
    vjp=torch.func.vjp,
)

JAX = SimpleNamespace(
    name="jax",
    twin=maskedlinear_jax,
    masked_linear=maskedlinear_jax.masked_linear,
    MaskedLinear=maskedlinear_jax.MaskedLinear,
    array=lambda values, dtype="float32": jnp.asarray(np.asarray(values), dtype),
    integers=lambda values, dtype="int32": jnp.asarray(values, dtype),
    bools=lambda values: jnp.asarray(np.asarray(values, bool)),
    numpy=lambda array: np.asarray(array).astype(np.float64),
    grad=jax.grad,
    vmap=jax.vmap,
    vjp=jax.vjp,
)


@pytest.fixture(params=[TORCH, JAX], ids=lambda twin: twin.name)
def twin(request):
    """Each twin in turn, with what tests need of its framework."""
    return request.param


@pytest.fixture(scope="session")
def twins():
    """Both twins."""
    return TORCH, JAX
