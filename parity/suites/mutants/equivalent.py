"""Changes that change no answer, by name, and why. The command runs them too, and fails where one is rejected."""

CHECKS = "a check of arguments, and the grid passes right ones alone; tests/test_errors.py, tests/test_packed.py"
"""Of what the grid does not see because it makes no mistakes."""

EQUIVALENT: dict[str, str] = {
    "torch/lowering.py: _by_number: 1 -> 2": (
        "the axis on which winners are written is one longer than it must be; what lies beyond is not read"
    ),
}
"""By name of the change (`python -m parity mutants --list`)."""
