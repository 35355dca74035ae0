"""`python -m parity mutants`: what it changes, and that it tells a change that matters from one that does not."""

import dataclasses
import datetime

import pytest

from parity.cli import main as cli
from parity.report.environment import environment
from parity.suites.masked_linear import grid
from parity.suites.mutants import by_hand, changes, equivalent, record, suite, trial, view
from parity.suites.mutants.trial import ROOT, Found, Trials


@pytest.fixture(scope="module")
def picked():
    return suite.planned()


def test_at_least_80_changes_by_rule_each_with_a_name_of_its_own(picked):
    by_rule = [change for change in picked if change.where != "by hand"]
    assert len(by_rule) >= 80
    assert len({change.name for change in picked}) == len(picked)
    assert {change.framework for change in by_rule} == {"torch", "jax"}
    for framework in ("torch", "jax"):
        assert {change.file for change in by_rule if change.framework == framework} == set(changes.FILES)


def test_a_change_is_another_program_and_the_same_every_time(picked):
    assert [change.name for change in suite.planned()] == [change.name for change in picked]
    for change in picked:
        compile(change.source, change.file, "exec")
        before = (ROOT / f"maskedlinear_{change.framework}" / change.file).read_text("utf-8")
        assert before.split("\n")[: change.lines[0] - 1] == change.source.split("\n")[: change.lines[0] - 1]
        assert before != change.source


def test_what_is_left_out_is_there(picked):
    for file, names in changes.OUTSIDE.items():
        for name, why in names.items():
            found = [
                framework for framework in ("torch", "jax")
                if any(f"{word} {name}" in (ROOT / f"maskedlinear_{framework}" / file).read_text("utf-8")
                       for word in ("def", "class"))
            ]  # fmt: skip
            assert found, f"{file} has no {name}"
            if "tests/" in why:
                assert (ROOT / why.split("; ")[-1]).is_file(), why
            assert not [change for change in picked if (change.file, change.where.split(".")[0]) == (file, name)]


def test_the_list_of_equivalent_changes_is_of_changes():
    assert view.stale(suite.planned(only=[""]), equivalent.EQUIVALENT) == []
    assert all(why.strip() for why in equivalent.EQUIVALENT.values())


def test_faults_are_rejected_and_a_change_of_speed_is_not(monkeypatch):
    """Digits that are a bit too long, either way; and which operand is cut, which is a matter of time alone."""
    faults = [one.change(ROOT / "maskedlinear_torch") for one in by_hand.BY_HAND
              if (one.framework, one.file) == ("torch", "integer_products.py")]  # fmt: skip
    (speed,) = suite.planned(only=["torch/integer_products.py: Float64.multiply: x.values.numel() < w.values.numel()"])
    monkeypatch.setitem(trial.EQUIVALENT, speed.name, "a matter of time")
    cells = grid.plan(cases=["real-digits", "real-high-digits"], worlds=["torch-eager"])
    found = {one.change.name: one for one in Trials("torch", cells).run([*faults, speed])}
    assert [found[fault.name].verdict for fault in faults] == ["killed", "killed"]
    assert {found[fault.name].killed.split("/")[0] for fault in faults} == {"real-digits", "real-high-digits"}
    assert "elements differ" in found[faults[0].name].why
    assert found[speed.name].verdict == "equivalent"
    assert found[speed.name].ran == 2


def test_what_survives_fails_and_so_does_what_is_listed_and_does_not(monkeypatch, picked):
    survived, killed = Found(picked[0], None, "", 1, 0.0), Found(picked[1], "a/cell", "differs", 1, 0.0)
    assert (survived.verdict, survived.failed) == ("survived", True)
    assert (killed.verdict, killed.failed) == ("killed", False)
    monkeypatch.setitem(trial.EQUIVALENT, picked[1].name, "a mistake")
    assert (killed.verdict, killed.failed) == ("not equivalent", True)


def test_the_page(tmp_path, picked):
    found = [Found(picked[0], "a/cell", "differs", 1, 0.0), Found(picked[1], None, "", 1, 0.0)]
    view.write(tmp_path / "page.md", found, 5, environment(), datetime.date(2026, 1, 2))
    text = (tmp_path / "page.md").read_text("utf-8")
    assert "2026-01-02" in text
    assert "2 changes: 1 killed, 1 survived" in text
    assert "The run ended before the last 3" in text
    assert "`a/cell`" in text


def test_a_run_goes_on_where_it_was(tmp_path, picked):
    """With what was found of the same text; a file that was edited is tried again."""
    path = tmp_path / "record"
    assert record.read(path, picked) == []
    one, other = Found(picked[0], "a/cell", "differs", 3, 1.5), Found(picked[1], None, "", 1, 0.0)
    for found in (one, other):
        record.add(path, found)
    assert record.read(path, picked) == [one, other]
    edited = [dataclasses.replace(picked[0], source=picked[0].source + "\n"), *picked[1:]]
    assert record.read(path, edited) == [other]
    path.write_text("{}\n")
    with pytest.raises(ValueError, match=r"record:1 is no line that --record wrote"):
        record.read(path, picked)


def test_the_command_says_what_is_wrong(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["mutants", "--only", "no such change"])
    assert "no change has that in its name" in capsys.readouterr().err
    assert cli.main(["mutants", "--list", "--only", "by hand"]) == 0
    assert capsys.readouterr().out.count("by hand") == len(by_hand.BY_HAND)


def test_a_change_by_hand_must_be_where_it_was(tmp_path):
    (tmp_path / "kinds").mkdir()
    (tmp_path / "kinds" / "sums.py").write_text("nothing of it")
    with pytest.raises(ValueError, match=r"expected .* once, found it 0 times"):
        by_hand.BY_HAND[0].change(tmp_path)
