"""The test run ends by itself, as a failure, when a test hangs inside of a framework or takes its worker down."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PLANTED = {
    "hangs": "import ctypes\n\ndef test_it(): ctypes.CDLL(None).sleep(1000)\n",
    "dies": "import os\n\ndef test_it(): os.abort()\n",
}


@pytest.mark.parametrize("what", PLANTED)
def test_run_ends(tmp_path, what):
    (tmp_path / "test_planted.py").write_text(PLANTED[what], "utf-8")
    settings = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(tmp_path), "-o", "timeout=2"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "1", *settings, str(tmp_path)],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert "crashed while running 'test_planted.py::test_it'" in done.stdout
    assert "1 failed" in done.stdout
