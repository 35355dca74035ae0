"""`python -m parity compare-records`: a difference between two records is seen, and none where there is none."""

import json

import pytest

from parity.cli import main as cli

CELL = {
    "id": "a/float32", "verdict": "identical", "reason": "", "ratio": None, "known": False, "judged": "bits",
    "clause": "S11", "diagnosis": None, "twin_ratio": None, "inputs_sha256": "0", "seconds": 1.0,
}  # fmt: skip
OTHER = CELL | {"id": "b/float32"}


@pytest.fixture
def compare(tmp_path, capsys):
    def compared(before, after, *options):
        for name, cells in (("a", before), ("b", after)):
            (tmp_path / name).write_text(json.dumps({"cells": cells}), "utf-8")
        code = cli.main(["compare-records", str(tmp_path / "a"), str(tmp_path / "b"), *options])
        return code, capsys.readouterr().out

    return compared


def test_the_same_cells_in_another_order_and_time_are_the_same(compare):
    assert compare([CELL, OTHER], [OTHER, CELL | {"seconds": 2.0}]) == (0, "2 cells compared: 0 differences\n")


@pytest.mark.parametrize("change", [{"verdict": "differs"}, {"reason": "why"}, {"ratio": 0.5}, {"inputs_sha256": "1"}])
def test_a_changed_cell_is_seen(compare, change):
    ((field, value),) = change.items()
    code, printed = compare([CELL, OTHER], [CELL, OTHER | change])
    assert code == 1
    assert f"b/float32: {field}: {OTHER[field]!r} before, {value!r} after" in printed


def test_a_missing_and_a_new_cell_are_seen(compare):
    assert "b/float32: is missing after" in compare([CELL, OTHER], [CELL])[1]
    assert "b/float32: is new" in compare([CELL], [CELL, OTHER])[1]
    assert compare([CELL, OTHER], [CELL], "--part")[0] == 0


def test_one_field_can_be_asked_for(compare):
    assert compare([CELL], [CELL | {"ratio": 0.5}], "--field", "verdict")[0] == 0


def test_a_file_that_is_no_record_is_bad_usage(tmp_path, capsys):
    (tmp_path / "a").write_text("{}", "utf-8")
    with pytest.raises(SystemExit, match="2"):
        cli.main(["compare-records", str(tmp_path / "a"), str(tmp_path / "a")])
    assert "is no record that --json wrote" in capsys.readouterr().err
