"""Where the plugin of pytest was: `-p parity.pytest_plugin`, and environments that were installed before it moved."""

from __future__ import annotations

from _parity_pytest import pytest_runtest_makereport as pytest_runtest_makereport
