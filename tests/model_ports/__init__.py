"""Whole models and their ports, right and with planted faults: what `parity.compare_models` must name."""
