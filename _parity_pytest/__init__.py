"""What pytest shows when `parity.assert_parity` fails: the table and the diagnoses, instead of a traceback.

Loaded by pytest wherever this is installed (the entry point in pyproject.toml), also for tests that have nothing to do
with it: so it stands beside `parity`, whose import takes NumPy along, and imports nothing itself.
"""

from __future__ import annotations

from typing import Any

import pytest


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: Any, call: Any) -> Any:
    """Put the report of a failed comparison in the place of the traceback."""
    outcome = yield
    error = call.excinfo.value if call.excinfo is not None else None
    report = getattr(error, "report", None)
    if report is None or type(error).__name__ != "ParityError":
        return
    shown = outcome.get_result()
    where = next(
        (f"{entry.path}:{entry.lineno + 1}" for entry in reversed(call.excinfo.traceback) if entry.path == item.path),
        str(item.path),
    )
    shown.longrepr = f"{where}: torch and JAX differ: {report.name}\n\n{report}"
