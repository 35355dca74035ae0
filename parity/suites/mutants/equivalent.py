"""Changes that change no answer of the grid, by name, and why. The command fails where one is rejected.

Most change no answer at all. Where a change would show beyond the grid, the test that rejects it is named.
"""

_FAKE = "the memo of positions, of which each cell makes a new one; tests/test_torch_only.py uses one mask in two modes"
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
    "torch/kinds/dense_elements.py: DenseElements.merge_into: torch.where(self.wanted, values, weight) -> "
    "torch.where(self.wanted, weight, values)": "nothing calls it: packed elements are of another kind, single entries",
    "torch/kinds/sums.py: can_sum_in_pieces: not (torch.compiler.is_compiling() or _compat.in_dispatch_mode()) -> "
    "torch.compiler.is_compiling() or _compat.in_dispatch_mode()": _SPEED,
    "torch/kinds/sums.py: can_sum_in_pieces: torch.compiler.is_compiling() or _compat.in_dispatch_mode() -> "
    "torch.compiler.is_compiling() and _compat.in_dispatch_mode()": _SPEED,
}
"""By name of the change (`python -m parity mutants --list`)."""
