"""A worker of a function that forks, starts threads, or writes on its pipe: every verdict comes, and nothing stays."""

import os
import time
from collections import Counter

import pytest

from parity.isolation import pipe
from parity.isolation.supervisor import Supervisor

FILE = """
import os, threading, time
import numpy as np

def inputs(seed):
    return (np.ones((2, 3)),)

MARK = {mark!r}

def note():
    with open(MARK, "a") as file:
        file.write(f"{{os.getpid()}}\\n")

def torch_forks(x): return x * 2
def jax_forks(x):
    if os.fork() == 0:
        note()
    return x * 2

def torch_stays(x): return x * 2
def jax_stays(x):
    if os.fork() == 0:
        note()
        time.sleep(600)
    return x * 2

def torch_threads(x): return x * 2
def jax_threads(x):
    threading.Thread(target=time.sleep, args=(600,)).start()
    note()
    return x * 2

def torch_writes(x): return x * 2
def jax_writes(x):
    for number in range(3, 64):
        try:
            os.write(number, b"not a message")
        except OSError:
            pass
    return x * 2

def torch_closes(x): return x * 2
def jax_closes(x):
    for number in range(3, 64):
        try:
            if os.fstat(number).st_mode & 0o170000 in (0o140000, 0o010000): os.close(number)
        except OSError:
            pass
    return x * 2

def torch_last(x): return x * 2
def jax_last(x): return x * 2
"""
CHOICE = {"transforms": ["forward"], "dtypes": ["float32"], "worlds": ["jax-eager"], "data": ["random", "zeros"]}


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workers")
    mark = folder / "mark"
    (folder / "pairs.py").write_text(FILE.format(mark=str(mark)), "utf-8")
    seen = {}
    with Supervisor(str(folder / "pairs.py"), timeout=60) as here:
        for about in here.pairs():
            cells = here.plan(about.name, CHOICE)
            seen[about.name] = [record for record, _ in here.run(about.name, cells, 0)]
            assert [record.cell for record in seen[about.name]] == cells
        worker = here._process.pid
    time.sleep(0.5)
    return seen, worker, [int(line) for line in mark.read_text("utf-8").split()]


@pytest.mark.parametrize("name", ["forks", "stays", "threads", "last"])
def test_the_verdicts_are_those_of_the_function(run, name):
    assert Counter(record.verdict for record in run[0][name]) == {"identical": 2}


def test_what_is_written_on_the_pipe_is_a_crash(run):
    assert {record.verdict for record in run[0]["writes"]} == {"crashed"}
    assert "something else than a record came" in run[0]["writes"][0].reason


def test_a_pipe_that_is_closed_is_a_crash(run):
    assert {record.verdict for record in run[0]["closes"]} == {"crashed"}


def test_nothing_outlives_the_run(run):
    _, worker, noted = run
    assert noted
    assert [pid for pid in {worker, *noted} if alive(pid)] == []


def test_half_a_message_is_waited_for_and_no_longer():
    here, there = os.pipe()
    token = os.urandom(pipe.TOKEN)
    os.write(there, token + (1000).to_bytes(8, "little") + b"half")
    with pytest.raises(TimeoutError, match="bytes of a message are missing"):
        pipe.receive(here, token, 0.1)


@pytest.mark.parametrize("written", [b"x", b"not a message at all, and longer than a head"])
def test_what_is_no_message_is_garbled(written):
    here, there = os.pipe()
    os.write(there, written)
    with pytest.raises(pipe.Garbled, match=r"not a message|x"):
        pipe.receive(here, os.urandom(pipe.TOKEN - 1) + b"\0", 1.0)


def test_a_closed_end_is_an_end():
    here, there = os.pipe()
    os.close(there)
    with pytest.raises(EOFError, match="closed"):
        pipe.receive(here, os.urandom(pipe.TOKEN), 1.0)
