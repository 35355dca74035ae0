"""What pytest shows when `parity.assert_parity` fails: the table and the diagnoses, instead of a traceback.

Loaded by pytest wherever this is installed (the entry point in pyproject.toml), also for tests that have nothing to do
with it: so it stands beside `parity`, whose import takes NumPy along, and imports nothing itself.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

import pytest

OURS = frozenset({"maskedlinear_core", "maskedlinear_torch", "maskedlinear_jax", "parity"})


class AsInstalled:
    """Finds our packages as Python does.

    pytest takes every package of a distribution that has a plugin for test code, and compiles all of it anew for its
    assertions: in each run, where no bytecode can be written.
    """

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        """Return the spec of a module of ours, or None."""
        return PathFinder.find_spec(name, path, target) if name.partition(".")[0] in OURS else None


FINDER = AsInstalled()


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: Any) -> None:
    """Stand before pytest's own finder, before a conftest imports anything."""
    if FINDER not in sys.meta_path:  # a process may run pytest several times
        sys.meta_path.insert(0, FINDER)


def pytest_configure(config: Any) -> None:
    """Make the marker known: `-m parity` runs these tests alone."""
    config.addinivalue_line("markers", "parity: compares torch with JAX; tests with the fixture of that name have it")


def pytest_collection_modifyitems(items: Sequence[Any]) -> None:
    """Mark the tests that have the fixture."""
    for item in items:
        if "parity" in getattr(item, "fixturenames", ()):
            item.add_marker("parity")


@pytest.fixture
def parity() -> Any:
    """The package: `def test_port(parity): parity.assert_parity(torch.exp, jnp.exp, (x,))`."""
    import parity

    return parity


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: Any, call: Any) -> Any:
    """Put the report of a failed comparison in the place of the traceback."""
    outcome = yield
    error: Any = call.excinfo.value if call.excinfo is not None else None
    # By its class first: an attribute of somebody else's exception may be a property that raises.
    if not any(_is_parity_error(base) for base in type(error).__mro__):
        return
    shown, report = outcome.get_result(), error.report
    where = next(
        (f"{entry.path}:{entry.lineno + 1}" for entry in reversed(call.excinfo.traceback) if entry.path == item.path),
        str(item.path),
    )
    shown.longrepr = f"{where}: torch and JAX differ: {report.name}\n\n{report}"


def _is_parity_error(kind: type) -> bool:
    return kind.__name__ == "ParityError" and kind.__module__.partition(".")[0] == "parity"
