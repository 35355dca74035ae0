"""Where the plugin of pytest was: `-p parity.pytest_plugin`, and environments that were installed before it moved."""

from __future__ import annotations

from _parity_pytest import parity as parity
from _parity_pytest import pytest_collection_modifyitems as pytest_collection_modifyitems
from _parity_pytest import pytest_configure as pytest_configure
from _parity_pytest import pytest_runtest_makereport as pytest_runtest_makereport
