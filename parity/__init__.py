"""The harness that holds a torch operator to its JAX twin, cell by cell (SPEC S11): any two functions, or our layer."""

from parity.api import assert_parity as assert_parity
from parity.api import compare as compare
from parity.api import compare_pair as compare_pair
from parity.engine.calls import Numbers as Numbers
from parity.engine.oracle import Exact as Exact
from parity.engine.oracle import Oracle as Oracle
from parity.engine.pairs import Pair as Pair
from parity.engine.records import Cell as Cell
from parity.engine.records import Diagnosis as Diagnosis
from parity.engine.records import Finding as Finding
from parity.engine.records import Record as Record
from parity.engine.transforms import Transform as Transform
from parity.report.report import ParityError as ParityError
from parity.report.report import Report as Report
from parity.subjects.masked_linear.grid import plan as plan
from parity.subjects.masked_linear.grid import run as run
