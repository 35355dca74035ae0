"""`--replay` of a report that was changed by hand: each mistake is a sentence, and NaN is no agreement."""

import json

import numpy as np
import pytest

from parity.cli.main import main
from parity.isolation.inputs import pack, unpack
from parity.models.replay import _digest
from tests.test_models_command import file


@pytest.fixture(scope="module")
def replayed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replay")
    models, report = file(folder, "1e-3"), folder / "r.json"
    assert main(["model", models, "--json", str(report), "--no-perturb"]) == 1
    return models, folder, json.loads(report.read_text())


def with_inputs(change):
    def changed(kept):
        arrays = tuple(np.array(one) for one in unpack(kept["0"]["inputs"]))
        change(arrays[0])
        kept["0"].update(inputs=pack(arrays), inputs_sha256=_digest(arrays))

    return changed


def said(replayed, capsys, change):
    models, folder, content = replayed
    content = json.loads(json.dumps(content))
    if change is None:
        del content["replay"]
    else:
        change(content["replay"])
    report = folder / "changed.json"
    report.write_text(json.dumps(content))
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        main(["model", models, "--replay", f"{report}#0"])
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (None, "it keeps no inputs, under 'replay'"),
        (lambda kept: kept.clear(), "keeps the inputs of no module: none of its modules differs"),
        (lambda kept: kept["0"].update(call=-1), "call of 0 in"),
        (lambda kept: kept["0"].update(seed=-3), "expected a number from 0 on, got -3"),
        (lambda kept: kept["0"].update(mode="test"), "expected one of eval, train, got 'test'"),
        (lambda kept: kept["0"].update(verdict="wrong"), "verdict of 0 in"),
        (lambda kept: kept["0"].update(call=5), "0 is not called 6 times now"),
        (with_inputs(lambda array: array.fill(np.nan)), "12 are NaN or infinite: nothing can be told from that"),
    ],
    ids=["none", "empty", "call", "seed", "mode", "verdict", "often", "nan"],
)
def test_each_mistake_is_a_sentence(replayed, capsys, change, text):
    assert text in said(replayed, capsys, change)


def test_nan_in_some_rows_is_said(replayed, capsys):
    models, folder, content = replayed
    content = json.loads(json.dumps(content))
    with_inputs(lambda array: array[0].fill(np.nan))(content["replay"])
    (folder / "some.json").write_text(json.dumps(content))
    assert main(["model", models, "--replay", f"{folder / 'some.json'}#0"]) == 1
    assert "4 of 12 elements of torch's output are NaN or infinite" in " ".join(capsys.readouterr().out.split())
