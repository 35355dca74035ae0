"""Models and ports in the styles that people write them in: for wrong verdicts, not for known faults."""
