"""No test of ours can fail to fail: verdicts are used, `raises` has a match and one statement, nothing is skipped."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted([*ROOT.glob("tests/*.py"), *ROOT.glob("parity/**/*.py"), *ROOT.glob("examples/*.py")])
PREDICATES = {"allclose", "array_equal", "isclose", "equal", "array_equiv", "all", "any", "is_close", "gradcheck"}
SKIPS = {"skip", "skipif", "importorskip", "xfail"}


def faults(source):
    """Return what is wrong with a test file, as (line, fault)."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            name = _name(node.value.func)
            if name in PREDICATES:
                found.append((node.lineno, f"the result of {name} is thrown away"))
            if name == "set" and _is_at(node.value.func.value):
                found.append((node.lineno, "the result of .at[].set is thrown away"))
        if isinstance(node, ast.With):
            for item in node.items:
                call = item.context_expr
                if isinstance(call, ast.Call) and _name(call.func) == "raises":
                    if not any(keyword.arg == "match" for keyword in call.keywords):
                        found.append((node.lineno, "raises without match"))
                    if len(node.body) != 1:
                        found.append((node.lineno, "more than one statement under raises"))
        if isinstance(node, ast.Attribute) and node.attr in SKIPS:
            found.append((node.lineno, f"{node.attr}: nothing is skipped in silence"))
    return found


def _is_at(node):
    return isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute) and node.value.attr == "at"


def _name(function):
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_bare_verdicts(path):
    assert faults(path.read_text("utf-8")) == []


PLANTED = {
    "the result of allclose": "np.allclose(a, b)",
    "the result of .at": "x.at[0].set(1)",
    "raises without match": "with pytest.raises(ValueError):\n    f()",
    "more than one statement": "with pytest.raises(ValueError, match='x'):\n    f()\n    g()",
    "importorskip": "pytest.importorskip('torch')",
    "skipif": "@pytest.mark.skipif(True, reason='no')\ndef test(): pass",
}


@pytest.mark.parametrize("fault", PLANTED)
def test_planted_fault_is_found(fault):
    assert any(fault in text for _, text in faults(PLANTED[fault]))


def test_files_are_small_enough_to_find_ones_way():
    long = {str(path): n for path in ROOT.glob("*/**/*.py") if (n := path.read_text("utf-8").count("\n")) > 600}
    assert long == {}
