"""The names that people write, in the place of those that torch's operators have inside."""

from __future__ import annotations

import re
from collections.abc import Mapping

from parity.execution.endings import RAISED
from parity.execution.outputs import Runs

INSIDE = re.compile(
    r"(?<![\w.])(mm|bmm|mv|addmm|addmv|baddbmm|_softmax|_log_softmax|_safe_softmax|lift_fresh|_to_copy|_unsafe_view|native_\w+|"
    r"_native_\w+|_fused_\w+|_fft_\w+|_linalg_\w+|linalg_\w+_ex|convolution|upsample_\w+|_upsample_\w+|"
    r"max_pool\dd_with_indices|_weight_norm_interface|_thnn_\w+)(?!\w)"
)
"""Names of operators that nobody writes."""


SAID = {"_softmax": "softmax", "_log_softmax": "log_softmax"}
"""What is said in any case: a cross entropy has no axis."""

PLAIN = {"mm": "matmul", "bmm": "matmul", "mv": "matmul", "_to_copy": "to", "lift_fresh": "tensor"}  # fmt: skip
"""What is said where several functions called one."""


def spelt(runs: Runs, text: str) -> str:
    """Return a text with the function of torch's that a user called, where it names an operator inside of it.

    Of several that called it a plain name is said.
    """
    if not INSIDE.search(text):
        return text
    names: Mapping[str, str] = runs.once(("called",), lambda: _called(runs))
    return INSIDE.sub(lambda match: SAID.get(match[0]) or names.get(match[0]) or PLAIN.get(match[0], match[0]), text)


def _called(runs: Runs) -> dict[str, str]:
    """Return by operator the function that the user called, of those that one function alone called."""
    from parity.explanation.programs.torch_program import called

    try:
        return called(runs.function("torch"), runs.plain("random", "float64"))
    except RAISED:
        return {}
