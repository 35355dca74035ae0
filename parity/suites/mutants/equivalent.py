"""Changes that change no answer of the grid, by name, and why. The command fails where one is rejected.

Most change no answer at all. Where a change would show beyond the grid, the test that rejects it is named.
"""

_FAKE = "the memo of positions, of which each cell makes a new one; tests/test_torch_only.py uses one mask in two modes"
_COST = "what a call costs, which tests/test_overhead.py counts"
_PIECES = "into how many pieces a batch is cut: exact integers, so that it changes memory and time alone"
_SPEED = "whether sums of float32 and float64 are made in pieces, a matter of time and memory; compiled code makes none"

EQUIVALENT: dict[str, str] = {
    "torch/lowering.py: resolve: _compat.in_functorch_transform() or _compat.in_dispatch_mode() -> "
    "_compat.in_functorch_transform() and _compat.in_dispatch_mode()": _FAKE,
    "torch/lowering.py: _by_number: 1 -> 2": (
        "the axis on which winners are written is one longer than it must be; what lies beyond is not read"
    ),
    "torch/packing.py: _resolve: 2 -> 3": (
        "a quick way past a check: the check itself then runs, and accepts what is right"
    ),
    "torch/kinds/blocks.py: Blocks._product: left.dtype == torch.int8 -> left.dtype != torch.int8": (
        "of floats, `@` and bmm are one product; of digits of 8 bits, tests/test_exact_engines.py"
    ),
    "torch/integer_products.py: Float64.multiply: bits // 2 + 1 -> bits // 2 - 1": (
        "no cell asks for more bits than the default; test_four_products_at_the_most_bits rejects it "
        "(tests/test_exact_engines.py)"
    ),
    "torch/kinds/sums.py: can_sum_in_pieces: not (torch.compiler.is_compiling() or _compat.in_dispatch_mode()) -> "
    "torch.compiler.is_compiling() or _compat.in_dispatch_mode()": _SPEED,
    "torch/kinds/sums.py: can_sum_in_pieces: torch.compiler.is_compiling() or _compat.in_dispatch_mode() -> "
    "torch.compiler.is_compiling() and _compat.in_dispatch_mode()": _SPEED,
    "torch/rule.py: _ReverseOnly.forward: input.dim() > 2 -> input.dim() >= 2": _COST,
    "torch/rule.py: _ReverseOnly.forward: False -> True": _COST,
    "torch/packing.py: packed_linear: forward_mode is not False -> forward_mode is False": (
        "no cell gives what is no flag; `test_wrong_call` rejects it (tests/test_errors.py)"
    ),
    "torch/integer_products.py: by_rows: 2 * rows -> 2 + rows": _PIECES,
    "torch/integer_products.py: Float64._total: 2 * half -> 2 + half": (
        "no cell asks for more bits than the default; test_four_products_at_the_most_bits rejects it "
        "(tests/test_exact_engines.py)"
    ),
    "torch/kinds/submatrix.py: Submatrix.overwrite: 1 -> 2": (
        "a cell calls each layer once, and it writes for a later call; tests/test_warm_layers.py rejects it"
    ),
    "jax/rule.py: _never: jax.lax.reshape(jax.lax.slice(array, (0,) * array.ndim, (1,) * array.ndim), ()) > jnp.inf -> "
    "jax.lax.reshape(jax.lax.slice(array, (0,) * array.ndim, (1,) * array.ndim), ()) >= jnp.inf": (
        "no cell of a packed layer has infinity as its first number; tests/test_jax_memory.py has, and rejects it"
    ),
    "jax/indexing.py: write: True -> False": "a hint that positions differ, which lets a compiler write them at once",
    "jax/indexing.py: _inverse: size * count <= COMPARED -> size * count < COMPARED": (
        "which of two ways finds the same positions, at one size"
    ),
    "jax/integer_products.py: largest: 0 -> 1": (
        "the largest of no numbers, or of zeros, is the least subnormal: its exponent is that of zero"
    ),
    "jax/integer_products.py: by_rows: 1 -> 2": _PIECES,
    "jax/integer_products.py: by_rows: 2 * rows -> 2 + rows": _PIECES,
    "jax/reproducible_products.py: _lowering: op != last -> op == last": (
        "programs for several platforms at once; tests/test_lowering.py exports them, and rejects it"
    ),
    "jax/kinds/sparse_elements.py: SparseElements.weight_grad: 0 -> 1 #3": "an axis of a line, counted round: 1 is 0",
    "jax/kinds/sparse_elements.py: SparseElements._part: False -> True": (
        "hints for positions of which some lie beyond the end: XLA on a CPU drops those with the hints too"
    ),
    "jax/kinds/sums.py: written_out: array.size >= WRITTEN_OUT -> array.size > WRITTEN_OUT": (
        "whether an operand of one size is written to memory first, a matter of time"
    ),
}
"""By name of the change (`python -m parity mutants --list`)."""
