"""The harness that holds a torch operator and its JAX twin to one float64 oracle, cell by cell (SPEC S11)."""

from parity.engine.records import Cell as Cell
from parity.engine.records import Finding as Finding
from parity.engine.records import Record as Record
from parity.subjects.masked_linear.grid import plan as plan
from parity.subjects.masked_linear.grid import run as run
