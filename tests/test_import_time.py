"""Importing a twin costs at most 50 ms beyond its framework's own import, where that takes the usual time.

And no module of ours opens a connection when it is imported.
"""

import os
import subprocess
import sys

import pytest

LIMIT = 0.050
# Seconds of processor time of the framework's import. A machine that is slower, or shared, is slower at both imports:
# the limit is in proportion.
USUAL = {"torch": 0.85, "jax": 0.40}
CODE = """
import time
start = time.process_time()
import {framework}, numpy
{more}
between = time.process_time()
import maskedlinear_{framework}
print((time.process_time() - between) / (between - start))
"""
# What any program that uses the framework has imported already.
MORE = {"torch": "import torch.nn, torch.func", "jax": "import jax.numpy"}


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_import_time(framework, tmp_path):
    # As an installed package is imported: from bytecode, which the first run writes. (CI forbids writing it into the
    # checkout; what was timed there was Python's compiler, twice as long as all the rest.)
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONDONTWRITEBYTECODE": ""}
    code = CODE.format(framework=framework, more=MORE[framework])
    # The least of several: what disturbs a measurement only ever adds to it.
    share = min(
        float(
            subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
            ).stdout
        )
        for _ in range(5)
    )
    taken = share * USUAL[framework]
    assert taken <= LIMIT, f"importing maskedlinear_{framework} takes {taken * 1e3:.0f} ms"


CONNECTS = """
import importlib, pkgutil, sys
seen = []
sys.addaudithook(lambda event, _: seen.append(event) if event.startswith(("socket.", "urllib.", "http.")) else None)
count = 0
for name in ("maskedlinear_core", "maskedlinear_torch", "maskedlinear_jax", "parity", "_parity_pytest"):
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, name + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
            count += 1
print(count, *{event for event in seen if event in CONNECTING})
{after}
print(*{event for event in seen if event in CONNECTING})
"""
CONNECTING = (
    "socket.connect",
    "socket.bind",
    "socket.getaddrinfo",
    "socket.sendto",
    "urllib.Request",
    "http.client.connect",
)


def test_no_module_opens_a_connection_when_it_is_imported():
    """Nor does one start a backend of JAX, which would take a GPU's memory (as in jax-gcm #859): here it would fail."""
    # What is looked for is seen, once it is there.
    asks = """
import jax, socket
socket.getaddrinfo("localhost", 80)
try:
    jax.numpy.ones(1)
except RuntimeError as error:
    print("backend" in str(error))
"""
    code = f"CONNECTING = {CONNECTING}" + CONNECTS.replace("{after}", asks)
    settings = os.environ | {"JAX_PLATFORMS": "none that is there"}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=settings)
    imported, is_backend, after = ran.stdout.splitlines()
    assert is_backend == "True"
    assert int(imported) > 300  # a number, and no event after it
    assert after == "socket.getaddrinfo"


THREADS = """
import importlib.machinery, threading, time
import parity

first_holds, second_asks = threading.Event(), threading.Event()
failed = []


def create_module(self, spec):  # the first thread has the lock of the module, which nobody else finds yet
    if spec.name == {slow!r} and threading.current_thread() is first:
        first_holds.set()
        second_asks.wait(60)
        time.sleep(1)  # in which the second thread comes to wait


def ask(name):
    try:
        importlib.import_module(name) if "." in name else getattr(parity, name)
    except BaseException as error:
        failed.append(name + ": " + repr(error))


def second_ask(name):
    first_holds.wait(60)
    second_asks.set()
    ask(name)


importlib.machinery.SourceFileLoader.create_module = create_module
first = threading.Thread(target=ask, args=({one!r},))
second = threading.Thread(target=second_ask, args=({other!r},))
first.start(), second.start(), first.join(), second.join()
print(failed)
"""


@pytest.mark.parametrize(
    ("one", "slow", "other"),
    [
        ("parity.models", "parity.models", "dump_model"),
        ("compare_models", "parity.models", "map_weights"),
    ],
)
def test_threads_that_ask_for_models_at_once_wait_for_each_other(one, slow, other):
    """One held a package and waited for a module of it, the other the reverse (as in edgartools #1325)."""
    code = THREADS.format(one=one, slow=slow, other=other)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert ran.stdout == "[]\n"
