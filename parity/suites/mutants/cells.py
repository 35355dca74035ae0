"""The cells that a changed twin must pass."""

from __future__ import annotations

from parity.suites.masked_linear import grid, real_size, transforms
from parity.suites.masked_linear.records import Cell

EAGER = {"torch": ("torch-eager",), "jax": ("jax-eager", "jax-jit")}
COMPILED = {"torch": "torch-compiled", "jax": "jax-jit"}
FEW = ("columns", "blocks", "elements", "packed-elements")


def cells_of(framework: str, *, compiled: bool = False) -> list[Cell]:
    """Return the cells that a change of a twin must pass, in order: those of real size, then the small ones.

    Left out are third derivatives, whole Jacobians and Hessians, and small cells in other dtypes than float32: they
    take most of the time, and run the same lines.

    Args:
        framework: "torch" or "jax".
        compiled: Those of the compiled world, for what the others let pass.
    """
    if compiled:
        small = grid.plan(worlds=[COMPILED[framework]], cases=FEW, transforms=["forward", "backward", "jvp"],
                          dtypes=["float32"])  # fmt: skip
        return [*grid.plan(worlds=[COMPILED[framework]], tiers=[real_size.TIER]), *small]
    large = grid.plan(worlds=EAGER[framework], tiers=[real_size.TIER])
    small = [
        cell
        for cell in grid.plan(worlds=EAGER[framework][:1], dtypes=["float32"], tiers=["exact", "hard", "random"])
        if transforms.BY_NAME[cell.transform].order < 3 and not transforms.BY_NAME[cell.transform].dense
    ]
    return [*large, *small]
