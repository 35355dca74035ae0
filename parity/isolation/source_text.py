"""The text of a function, to be shown beside its verdict: of a lambda, the expression it returns."""

from __future__ import annotations

import ast
import functools
import linecache
from collections.abc import Callable
from typing import Any


def text_of(function: Callable[..., Any]) -> str:
    """Return what a person would call a function: the body of a lambda, else the name.

    Example:
        >>> text_of(len)
        'len'
    """
    name = getattr(function, "__name__", None) or type(function).__name__
    code = getattr(function, "__code__", None)
    if name != "<lambda>" or code is None:
        return name
    source = "".join(linecache.getlines(code.co_filename))
    first = next(((line, column) for line, _, column, _ in _positions(code)), None)
    if not source or first is None:
        return name
    for node in _lambdas(source):
        if _starts(node) <= first <= _ends(node):
            return " ".join((ast.get_source_segment(source, node.body) or name).split())
    return name


def _positions(code: Any) -> list[tuple[int, int, int, int]]:
    # An instruction without a place in the text ends in column 0.
    return [place for place in code.co_positions() if None not in place and place[3]]


@functools.cache
def _lambdas(source: str) -> list[ast.Lambda]:
    found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Lambda)]
    return sorted(found, key=_starts, reverse=True)  # the innermost first


def _starts(node: ast.Lambda) -> tuple[int, int]:
    return node.body.lineno, node.body.col_offset


def _ends(node: ast.Lambda) -> tuple[int, int]:
    return node.body.end_lineno or 0, node.body.end_col_offset or 0
