"""Small changes to a source file, made from its syntax tree in a fixed order.

A change swaps one operator, comparison, constant or flag, turns one condition round, or exchanges the two sides of a
choice. It is named by its file, its function and the expression before and after, so that the name stays when other
lines move.
"""

from __future__ import annotations

import ast
import copy
import itertools
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILES = (
    "rule.py", "products.py", "indexing.py", "lowering.py", "packing.py", "integer_products.py",
    "reproducible_products.py", "kinds/submatrix.py", "kinds/blocks.py", "kinds/dense_elements.py",
    "kinds/sparse_elements.py", "kinds/sums.py",
)  # fmt: skip
"""The files of a twin that compute: the rule, its products, the kinds, and reading and writing at positions."""

OUTSIDE = {
    "integer_products.py": {
        "Digits": "digits of 8 bits, for devices without float64; tests/test_exact_engines.py",
        "_digits": "the same", "_from_digits": "the same", "_carried": "the same", "_limbs": "the same",
        "_rounds_up": "the same", "_small_power": "the same", "_exponent_or_nan": "the same",
    },
    "rule.py": {
        "_laid_out_like": "other layouts in memory; tests/test_packed.py",
        "_alike": "shard_map; tests/test_engines_jax.py",
    },
    "reproducible_products.py": {"_check_group": "several workers; tests/test_workers.py"},
    "packing.py": {
        "repack": "not of the layer; tests/test_packed.py",
        "_check_values": "errors; tests/test_packed.py",
    },
    "lowering.py": {"read": "no arithmetic", "as_tensor": "no arithmetic", "bools": "no arithmetic"},
}  # fmt: skip
"""What the grid does not run, by file and name, and what tests it. No change is made there."""

_SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add,
    ast.FloorDiv: ast.Mod, ast.Mod: ast.FloorDiv, ast.RShift: ast.LShift, ast.LShift: ast.RShift,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
_CHOICES = ("where",)


@dataclass(frozen=True)
class Change:
    """One change.

    Attributes:
        framework: "torch" or "jax".
        file: File of the twin's package.
        where: The class and function, or "" for the module itself.
        before: The expression as it was.
        after: As it is now.
        lines: The lines of the expression, first and last.
        source: The whole file with the change.
        number: Tells changes apart that have all of the above in common.
    """

    framework: str
    file: str
    where: str
    before: str
    after: str
    lines: tuple[int, int]
    source: str
    number: int = 1

    @property
    def name(self) -> str:
        """What the change is called."""
        again = f" #{self.number}" if self.number > 1 else ""
        return f"{self.framework}/{self.file}: {self.where or 'module'}: {self.before} -> {self.after}{again}"


def every(framework: str, package: Path, files: Sequence[str] = FILES) -> list[Change]:
    """Return all changes to a twin, in the order of its files and lines.

    Args:
        framework: "torch" or "jax".
        package: The folder of the twin.
        files: In the package, of ASCII characters alone: Python counts columns in bytes.
    """
    found: list[Change] = []
    seen: Counter[tuple[str, ...]] = Counter()
    for file in files:
        text = (package / file).read_text("utf-8")
        starts = [0, *itertools.accumulate(len(line) for line in text.splitlines(keepends=True))]
        for where, node, after in _below(ast.parse(text), "", OUTSIDE.get(file, {})):
            before, now, lines = ast.unparse(node), ast.unparse(after), (node.lineno, node.end_lineno or node.lineno)
            first, last = starts[lines[0] - 1] + node.col_offset, starts[lines[1] - 1] + (node.end_col_offset or 0)
            seen[file, where, before, now] += 1
            number = seen[file, where, before, now]
            changed = f"{text[:first]}({now}){text[last:]}"
            found.append(Change(framework, file, where, before, now, lines, changed, number))
    return found


def chosen(changes: Sequence[Change], count: int, seed: int = 0) -> list[Change]:
    """Return so many of the changes, from every file its share, in their order; all of them if there are fewer.

    Args:
        changes: From `every`.
        count: How many.
        seed: Which.

    Example:
        >>> chosen([], 3)
        []
    """
    by_file: dict[str, list[Change]] = {}
    for change in changes:
        by_file.setdefault(change.file, []).append(change)
    rng, left, picked = random.Random(seed), min(count, len(changes)), set[str]()
    for number, group in enumerate(sorted(by_file.values(), key=len)):
        share = min(len(group), max(1, left // (len(by_file) - number)))
        picked.update(change.name for change in rng.sample(group, min(share, left)))
        left -= min(share, left)
    return [change for change in changes if change.name in picked]


def _below(node: ast.AST, where: str, outside: Any) -> Iterator[tuple[str, ast.expr, ast.expr]]:
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "bases", "keywords") and isinstance(
            node, ast.ClassDef | ast.FunctionDef | ast.AnnAssign | ast.arg
        ):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.Raise | ast.JoinedStr):
                continue
            if isinstance(child, ast.ClassDef | ast.FunctionDef):
                if child.name not in outside:
                    yield from _below(child, f"{where}.{child.name}" if where else child.name, outside)
                continue
            if isinstance(child, ast.expr) and where:  # constants of the module are speeds, or types
                yield from ((where, child, after) for after in _changed(child, node, name))
            yield from _below(child, where, outside)


def _changed(node: ast.expr, parent: ast.AST, field: str) -> Iterator[ast.expr]:
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _SWAPS:
        yield _with(node, ops=[_SWAPS[type(node.ops[0])]()])
    elif isinstance(node, ast.BoolOp) or (
        isinstance(node, ast.BinOp) and type(node.op) in _SWAPS and not _is_type(node)
    ):
        yield _with(node, op=_SWAPS[type(node.op)]())
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node.operand
    elif isinstance(node, ast.Constant) and type(node.value) is bool:
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and type(node.value) is int and field != "slice":
        yield ast.Constant(node.value + 1)
    elif isinstance(node, ast.IfExp):
        yield _with(node, body=node.orelse, orelse=node.body)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if node.func.attr in _CHOICES and len(node.args) == 3:
            yield _with(node, args=[node.args[0], node.args[2], node.args[1]])
        elif node.func.attr in ("round_", "round") and len(node.args) <= 1:
            yield node.args[0] if node.args else node.func.value
    if isinstance(parent, ast.If | ast.While) and field == "test" and isinstance(node, ast.Call | ast.Name):
        yield ast.UnaryOp(ast.Not(), node)


def _is_type(node: ast.BinOp) -> bool:
    # `A | B` of classes.
    def is_class(side: ast.expr) -> bool:
        if isinstance(side, ast.Name):
            return side.id[:1].isupper() and not side.id.isupper()
        return isinstance(side, ast.Constant) and side.value is None

    return is_class(node.left) or is_class(node.right)


def _with(node: ast.expr, **fields: Any) -> ast.expr:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed
