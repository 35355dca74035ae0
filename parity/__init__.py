"""Compare a torch function or model with its JAX twin, cell by cell, and say why they differ."""

from __future__ import annotations

import importlib
import threading
import warnings
from typing import TYPE_CHECKING, Any

from parity.api import assert_parity as assert_parity
from parity.api import compare as compare
from parity.api import compare_pair as compare_pair
from parity.execution.calls import Numbers as Numbers
from parity.operator.args import Args as Args
from parity.operator.oracle import Exact as Exact
from parity.operator.oracle import Oracle as Oracle
from parity.operator.pair import Pair as Pair
from parity.operator.tolerance import Tolerance as Tolerance
from parity.operator.transforms import Transform as Transform
from parity.records import Cell as Cell
from parity.records import Diagnosis as Diagnosis
from parity.records import Finding as Finding
from parity.records import Record as Record
from parity.report.report import ParityError as ParityError
from parity.report.report import Report as Report
from parity.suites import MOVED as _MOVED

if TYPE_CHECKING:
    from parity.models.compare import assert_same_model as assert_same_model
    from parity.models.compare import compare_models as compare_models
    from parity.models.dump.writing import dump_model as dump_model
    from parity.models.report import ModelError as ModelError
    from parity.models.report import ModelReport as ModelReport
    from parity.models.weights import Rule as Rule
    from parity.models.weights import WeightMap as WeightMap
    from parity.models.weights import WeightPair as WeightPair
    from parity.models.weights import map_weights as map_weights

__all__ = [
    "Args",
    "Cell",
    "Diagnosis",
    "Exact",
    "Finding",
    "ModelError",
    "ModelReport",
    "Numbers",
    "Oracle",
    "Pair",
    "ParityError",
    "Record",
    "Report",
    "Rule",
    "Tolerance",
    "Transform",
    "WeightMap",
    "WeightPair",
    "assert_parity",
    "assert_same_model",
    "compare",
    "compare_models",
    "compare_pair",
    "dump_model",
    "map_weights",
]

_MODELS = {
    **dict.fromkeys(("Rule", "WeightMap", "WeightPair", "map_weights"), "parity.models.weights"),
    **dict.fromkeys(("assert_same_model", "compare_models"), "parity.models.compare"),
    "dump_model": "parity.models.dump.writing",
    **dict.fromkeys(("ModelError", "ModelReport"), "parity.models.report"),
}
"""What compares whole models, by where it is: imported when it is asked for."""

_IMPORTING = threading.RLock()
"""One thread at a time: two that import modules which import one another can wait for each other (CPython #83065)."""


def _imported(where: str) -> Any:
    # From the top: whoever imports a module first, and within it the packages around it, can meet a thread that
    # imports one of those.
    parts = where.split(".")
    return [importlib.import_module(".".join(parts[: end + 1])) for end in range(1, len(parts))][-1]


def __getattr__(name: str) -> Any:
    if name in _MODELS:
        with _IMPORTING:
            return getattr(_imported(_MODELS[name]), name)
    if name in _MOVED:
        where = _MOVED[name]
        warnings.warn(f"parity.{name} is {where}.{name} now", DeprecationWarning, stacklevel=2)
        try:
            return getattr(importlib.import_module(where), name)
        except ModuleNotFoundError as error:
            if error.name != where:
                raise
            raise AttributeError(
                f"parity.{name}: it is {where}.{name}, which is in a checkout or the sdist; what is installed has no "
                "suites"
            ) from error
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
