"""Changes that change no answer on the grid's machine, by name, and why; the command holds each to surviving."""

EQUIVALENT: dict[str, str] = {}
"""By name of the change (`python -m parity mutants --list`)."""
