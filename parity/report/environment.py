"""What a run ran on: versions, machine, threads, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any


def environment() -> dict[str, Any]:
    """Return versions, machine and commit as plain data, without importing a framework.

    Example:
        >>> environment()["python"] == platform.python_version()
        True
    """
    return {
        "maskedlinear": _version("maskedlinear"),
        "commit": _commit(),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("numpy", "torch", "jax", "jaxlib")},
        "machine": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "switches": {"torch float32 matmul": "highest", "jax matmul": "highest", "jax x64": "for float64 cells only"},
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    # Installed in an environment that lies in a user's own repository, this file is not of that repository's commits.
    here = Path(__file__)
    asked = ("ls-files", "--error-unmatch", here.name), ("rev-parse", "--short", "HEAD")
    try:
        _, commit = (
            subprocess.run(
                ["git", "-C", str(here.parent), *one], capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
            for one in asked
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return commit


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
