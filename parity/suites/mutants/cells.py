"""The cells that a changed twin must pass."""

from __future__ import annotations

from parity.suites.masked_linear import grid, real_size
from parity.suites.masked_linear.records import Cell

EAGER = {"torch": ("torch-eager",), "jax": ("jax-eager", "jax-jit")}
COMPILED = {"torch": "torch-compiled", "jax": "jax-jit"}
SMALL = (
    "forward", "vjp", "backward", "jvp", "non-finite", "vmap-everything", "vmap-mask", "gradient-of-vmap",
    "tangent-of-vmap", "double-backward", "double-backward-of-weight", "hvp-forward-over-reverse",
    "hvp-reverse-over-reverse", "hvp-reverse-over-forward", "layer-ff", "layer-rr", "modes-rrf",
)  # fmt: skip
"""The transforms of the small cells that run; the others run the same lines, and take half of the time."""


def cells_of(framework: str, *, compiled: bool = False) -> list[Cell]:
    """Return the cells that a change of a twin must pass, in order: those of real size, then small ones in float32.

    Args:
        framework: "torch" or "jax".
        compiled: Those of the compiled world instead, for what the others let pass.
    """
    if compiled:
        small = grid.plan(worlds=[COMPILED[framework]], cases=["columns", "elements"], transforms=["backward"],
                          dtypes=["float32"])  # fmt: skip
        by_blocks = grid.plan(worlds=[COMPILED[framework]], cases=["hard-few-blocks"])
        return [*grid.plan(worlds=[COMPILED[framework]], tiers=[real_size.TIER]), *small, *by_blocks]
    large = grid.plan(worlds=EAGER[framework], tiers=[real_size.TIER])
    small = grid.plan(worlds=EAGER[framework][:1], dtypes=["float32"], tiers=["exact", "hard"], transforms=SMALL)
    return [*large, *small]
