"""Folders for temporary files end with their process, also where that is ended from outside."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from parity import scratch

MAKES = (
    "import numpy as np, sys, time\n"
    "from parity.models.shelf import Shelf\n"
    "from parity.scratch import end_by_sigterm\n"
    "if '--command' in sys.argv: end_by_sigterm()\n"
    "shelf = Shelf([('a', np.zeros(2**18))])\n"
    "print('ready', flush=True)\n"
    "time.sleep(60)\n"
)
ROOT = Path(__file__).parent.parent


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    scratch.remove_stale.cache_clear()
    yield tmp_path
    scratch.remove_stale.cache_clear()


def ended(number, *arguments):
    """Run a process that holds a folder, end it by a signal, and return its exit code."""
    command = [sys.executable, "-c", MAKES, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    code = process.wait(30)
    process.stdout.close()
    return code


def test_a_command_that_is_ended_by_sigterm_removes_its_folder(here):
    assert ended(signal.SIGTERM, "--command") == 128 + signal.SIGTERM
    assert list(here.iterdir()) == []


def test_the_folder_of_a_process_that_was_killed_is_removed_by_the_next(here):
    assert ended(signal.SIGKILL) == -signal.SIGKILL
    (left,) = here.iterdir()
    assert list(left.iterdir())
    made = scratch.make_folder()
    assert list(here.iterdir()) == [made]


def test_nothing_else_is_removed(here):
    place = scratch._place()
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        process.wait()
    dead = process.pid
    folders = [
        here / f"parity-{os.getpid()}-{place}-abc",  # of a process that lives
        here / f"parity-1-{place}-abc",
        here / f"parity-{dead}-{'0' * 8}-abc",  # of another machine
        here / "parity-report",
        here / f"mine-{dead}-{place}-abc",
    ]
    for folder in folders:
        folder.mkdir()
    file = here / f"parity-{dead}-{place}-file"
    file.write_text("a file")
    kept, link = here / "kept", here / f"parity-{dead}-{place}-link"
    kept.mkdir()
    (kept / "here").write_text("still")
    link.symlink_to(kept)
    stale = here / f"parity-{dead}-{place}-abc"
    stale.mkdir()
    scratch.remove_stale()
    assert not stale.exists()
    assert [one for one in (*folders, file, link, kept / "here") if not one.exists()] == []


def test_what_another_user_left_is_let_alone(here, monkeypatch):
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        process.wait()
    theirs = here / f"parity-{process.pid}-{scratch._place()}-abc"
    theirs.mkdir()
    monkeypatch.setattr(os, "getuid", lambda: theirs.stat().st_uid + 1)
    scratch.remove_stale()
    assert theirs.exists()


def test_a_handler_of_a_user_stays():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        scratch.end_by_sigterm()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
