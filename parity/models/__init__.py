"""Whole models: a torch model compared with its JAX port, module by module."""

from __future__ import annotations

from parity.models.dump.files import Dump as Dump
from parity.models.inputs import Inputs as Inputs
