"""The atlas: operators that both frameworks offer, with the default arguments that people write.

Importing it imports torch and JAX, as a user's file of pairs does.
"""

from parity.suites.atlas import (
    activations,
    algebra,
    attention,
    elementwise,
    indexing,
    layers,
    losses,
    normalisations,
    reductions,
    sorting,
    special,
)

GROUPS = (
    activations, normalisations, reductions, sorting, algebra, losses, attention, indexing, special, elementwise,
    layers,
)  # fmt: skip
PAIRS = tuple(pair for group in GROUPS for pair in group.PAIRS)
