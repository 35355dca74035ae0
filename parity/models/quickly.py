"""JAX compiles quickly what a comparison of models runs once: each operator of each shape, by itself."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def compiled_quickly() -> Iterator[None]:
    """On a CPU, have XLA make machine code without LLVM's optimizations: in a third of the time.

    A comparison runs each operator a few times. The graph goes through all passes of XLA. Nothing changes
    where JAX is not loaded, on other devices, and where the user has set a precision of products.
    """
    jax = sys.modules.get("jax")
    if jax is None or jax.default_backend() != "cpu" or jax.config.jax_default_matmul_precision is not None:
        yield
        return

    from parity.execution._compat import QUICKLY, known_xla_options, xla_options

    # JAX keeps what it compiled by its settings, not by these options. Another name of the same precision is another
    # setting, so the user's programs are never these.
    with xla_options(known_xla_options(QUICKLY)), jax.default_matmul_precision("float32"):
        yield
