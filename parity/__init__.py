"""The harness that holds a torch operator and its JAX twin to one float64 oracle, cell by cell (SPEC S11)."""

from parity.grid import plan as plan
from parity.grid import run as run
from parity.records import Cell as Cell
from parity.records import Finding as Finding
from parity.records import Record as Record
