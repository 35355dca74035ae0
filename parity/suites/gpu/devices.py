"""Which GPUs are here, by what each framework says of them.

Asked in a process of its own: JAX takes three quarters of a GPU's memory as soon as it is asked, and keeps it until its
process ends.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from typing import Any

QUERY = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")


def seen() -> dict[str, Any]:
    """Return what torch, JAX and the driver see, by name; an empty list is no GPU.

    Example:
        >>> sorted(seen())
        ['driver', 'jax', 'torch']
    """
    asked = subprocess.run([sys.executable, "-m", __name__], capture_output=True, text=True, check=False)
    if asked.returncode:
        raise RuntimeError(f"the frameworks cannot be asked for their devices: {asked.stderr.strip()[-2000:]}")
    found: dict[str, Any] = json.loads(asked.stdout.splitlines()[-1])
    return found


def of_torch() -> list[dict[str, Any]]:
    """Return torch's GPUs."""
    if importlib.util.find_spec("torch") is None:
        return []
    import torch

    if not torch.cuda.is_available():
        return []
    about = {"cuda": torch.version.cuda, "hip": torch.version.hip, "cudnn": torch.backends.cudnn.version()}
    properties = [torch.cuda.get_device_properties(place) for place in range(torch.cuda.device_count())]
    return [
        {"name": one.name, "capability": [one.major, one.minor], "bytes": one.total_memory} | about
        for one in properties
    ]


def of_jax() -> list[dict[str, Any]]:
    """Return JAX's GPUs."""
    if importlib.util.find_spec("jax") is None:
        return []
    import jax

    try:
        devices = jax.devices("gpu")
    except RuntimeError:  # no such platform: jaxlib without CUDA, or no device
        return []
    return [
        {"name": one.device_kind, "platform": one.platform, "version": getattr(one.client, "platform_version", "")}
        for one in devices
    ]


def of_driver() -> list[str]:
    """Return what the driver's own tool lists: name, version, memory."""
    try:
        listed = subprocess.run(QUERY, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return []
    return listed.stdout.splitlines()


if __name__ == "__main__":
    print(json.dumps({"torch": of_torch(), "jax": of_jax(), "driver": of_driver()}))
