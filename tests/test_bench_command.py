"""`python -m benchmarks`: what it runs, keeps and says, and how it fails."""

import json
import subprocess
import sys

import pytest
from rich.console import Console

from benchmarks import command, rows, worker
from benchmarks.worker import Job

ONE = rows.plan("torch", quick=True)[:1]


def test_list_names_rows_without_importing_a_framework():
    code = (
        "import sys; from benchmarks import command; command.main(['--list', '--framework', 'jax']); "
        "print(*{'torch', 'jax'} & set(sys.modules))"
    )
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *ids, imported = seen.stdout.splitlines()
    assert imported == ""
    assert ids == [row.id for row in rows.plan("jax")]


USAGE = {
    "framework": (["--framework", "tensorflow"], "invalid choice: 'tensorflow'"),
    "shape": (["--shapes", "32x"], "expected shapes such as 32x1024x1024"),
    "flat shape": (["--shapes", "32x16"], "expected shapes such as 32x1024x1024"),
    "no row": (["--match", "*diagonals*"], "no row is like '*diagonals*'; --list shows what there is"),
    "folder": (["--json", "/nowhere/at/all.json"], "expected a file in a folder that exists"),
    "figure": (["--plot", "curve.pdf"], "expected a .png or .svg file"),
    "baseline": (["--against", "/nowhere.json"], "expected a file that --json wrote"),
    "add": (["--add"], "expected --json FILE with it"),
}


@pytest.mark.parametrize("name", USAGE)
def test_bad_usage_is_two(name, capsys):
    arguments, says = USAGE[name]
    with pytest.raises(SystemExit, match="2"):
        command.main(arguments)
    assert says in capsys.readouterr().err


def test_a_run_leaves_every_figure_and_is_compared_with_itself(tmp_path):
    """Both frameworks, a process each; then the same file with one row made a tenth faster, as what was before."""
    file = tmp_path / "bench.json"
    arguments = ["--quick", "--only", "rows", "--match", "*/forward+backward/elements/*", "--json", str(file)]
    seen = subprocess.run([sys.executable, "-m", "benchmarks", *arguments], capture_output=True, text=True, check=False)
    assert seen.returncode == 0, seen.stdout + seen.stderr
    found = json.loads(file.read_text("utf-8"))
    assert [record["framework"] for record in found["rows"]] == ["torch", "torch", "jax", "jax"]
    assert found["machines"]["torch"]["threads"] >= 1
    assert found["environment"]["commit"] in seen.stdout
    assert found["line"] in seen.stdout.replace("\n", " ").replace("  ", " ")
    for record in found["rows"]:
        assert {"dense", "limit", "one-liner", "masked afterwards", "densified"} <= set(record["ratios"])
        assert all(low <= middle <= high for middle, low, high in record["ratios"].values())
        assert record["rounds"] >= 6
        assert set(record["bytes"]["dense"]) == {"kept for the backward", "peak", "optimizer state"}
    assert command.compare(found["rows"], found["rows"]) == []
    assert not list(tmp_path.glob("*.tmp"))


def test_an_absent_device_is_a_failure(capsys):
    assert command.main(["--framework", "torch", "--quick", "--device", "cuda"]) == 1
    assert "no device: torch sees no cuda here" in capsys.readouterr().out


def test_a_process_that_dies_is_a_failure(monkeypatch):
    job = Job("torch", "cpu", tuple(ONE), True, ("rows",))
    with pytest.raises(command.Failed, match="torch: the process ended with 1"):
        list(command._messages(job, target=len))  # len takes no three arguments


def test_records_are_replaced_by_a_later_run(monkeypatch):
    """And what a process says is kept by its section."""
    record = {"id": "a", "ratios": {"dense": [1, 1, 1]}, "large": False, "work": "forward", "kind": "rows"}
    found = {"machines": {}, "rows": [record | {"rounds": 1}], "growth": [], "overhead": []}
    said = [("machine", {"threads": 2}), ("rows", [record | {"rounds": 9}, record | {"id": "b", "rounds": 9}])]
    monkeypatch.setattr(command, "_messages", lambda job: iter(said))
    command.run([Job("torch", "cpu", tuple(ONE), True, ("rows",))], found, Console(quiet=True))
    assert [(one["id"], one["rounds"]) for one in found["rows"]] == [("a", 9), ("b", 9)]
    assert found["machines"]["torch"]["threads"] == 2


def test_a_run_that_was_cut_off_goes_on_from_its_file(tmp_path, monkeypatch):
    """All is kept after each part; what is there is not measured again."""
    first, second = rows.plan("torch", quick=True)[:2]
    record = {"ratios": {"dense": [1, 1, 1]}, "large": False, "work": "forward", "kind": "rows"}
    records = [record | {"id": f"{first.id}/{form}"} for form in worker.FORMS]
    file = tmp_path / "bench.json"

    def cut_off(job):
        yield "machine", {"threads": 2}
        yield "rows", records
        raise command.Failed("cut off")

    monkeypatch.setattr(command, "_messages", cut_off)
    job = Job("torch", "cpu", (first, second), True, worker.SECTIONS)
    found = {"machines": {}, "rows": [], "growth": [], "overhead": []}
    with pytest.raises(command.Failed, match="cut off"):
        command.run([job], found, Console(quiet=True), file)
    kept = json.loads(file.read_text("utf-8"))
    assert [one["id"] for one in kept["rows"]] == [one["id"] for one in records]
    rest = command._lacking(job, kept)
    assert (rest.rows, rest.sections) == ((second,), worker.SECTIONS)
    all_rows = command._lacking(Job("torch", "cpu", (first,), True, worker.SECTIONS), kept)
    assert all_rows.sections == ("growth", "overhead")


def test_adding_to_what_was_measured_elsewhere_is_refused(tmp_path, capsys):
    file = tmp_path / "bench.json"
    file.write_text(json.dumps({"environment": {"commit": "another"}}), "utf-8")
    with pytest.raises(SystemExit, match="2"):
        command.main(["--json", str(file), "--add"])
    assert "was measured elsewhere, or at another commit" in capsys.readouterr().err


def test_sections_are_counted_for_the_progress():
    job = Job("jax", "cpu", tuple(rows.plan("jax", quick=True)), True, worker.SECTIONS)
    assert job.parts == 4 + 1 + 1
