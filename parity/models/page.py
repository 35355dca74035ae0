"""A report as one HTML page that needs nothing beside it: the tree of modules to unfold, weights, gradients."""

from __future__ import annotations

import html
import math
from typing import TYPE_CHECKING, Any

from parity.models import text
from parity.models.judging import AGREES
from parity.report import content

if TYPE_CHECKING:
    from parity.models.report import ModelReport, Module

SMALLEST, LARGEST = 1e-17, 1.0
"""What the bars reach from and to: their length is the logarithm of an error."""

STYLE = """
:root { --paper: #faf8f4; --ink: #1c2227; --soft: #5b646c; --line: #ddd8ce; --good: #0c5647; --bad: #c2331f;
  --own: #c2331f; --inherited: #b9b2a3; --raised: #fff; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181c; --ink: #e8e6e1; --soft: #9aa4ac; --line: #333c43;
  --good: #9fdccb; --bad: #ff8a70; --own: #ff8a70; --inherited: #5b646c; --raised: #1c2227; } }
body { margin: 0 auto; max-width: 1180px; padding: 24px clamp(14px, 3vw, 36px); background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.15rem; margin: 32px 0 8px; }
code, td { font-family: ui-monospace, Menlo, Consolas, monospace; font-size: .86rem; }
.verdict { font-size: 1.1rem; } .bad { color: var(--bad); } .good { color: var(--good); } .soft { color: var(--soft); }
.cause { border-left: 4px solid var(--bad); background: var(--raised); padding: 10px 16px; margin: 12px 0; }
details, .leaf { margin-left: .9rem; } .leaf { padding-left: 1rem; } td details, section details { margin-left: 0; }
summary { cursor: pointer; } .tree summary { display: flex; align-items: baseline; }
.tree summary::before { content: "▸"; width: 1rem; flex: none; } .tree details[open] > summary::before { content: "▾"; }
summary:hover, .leaf:hover { background: var(--raised); }
.row { display: grid; grid-template-columns: 1.2em minmax(0, 1fr) 150px 16.5em 24em; gap: 0 12px; flex: 1;
  align-items: center; padding: 2px 0; font-size: .9rem; font-variant-numeric: tabular-nums; }
.row b { overflow-wrap: anywhere; font-weight: 600; } .about { font-size: .82rem; overflow-wrap: anywhere; }
@media (max-width: 900px) { .row { grid-template-columns: 1.2em minmax(0, 1fr) 90px; }
  .errors, .about { grid-column: 2 / -1; font-size: .8rem; } .tree { margin-left: -.9rem; } }
.bars { display: block; }
.bars i { display: block; height: 5px; margin: 1px 0; border-radius: 2px; min-width: 1px; }
.own { background: var(--own); } .inherited { background: var(--inherited); }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; padding: 3px 10px 3px 0;
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere; vertical-align: top; }
"""


def render(report: ModelReport) -> str:
    """Return the page."""
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>{_safe(report.name)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{_safe(report.name)}</h1>",
        f"<p class='verdict {'good' if report.ok else 'bad'}'>{_safe(text.headline(report))}</p>",
        *(_cause(*alike) for alike in text.by_cause(report)),
        "<h2>Modules</h2><p class='soft'>The upper bar is a module's own error, on the torch module's inputs; the "
        "lower one is what it inherits where the whole model runs. A tenth of a bar is a factor of 50.</p>",
        "<div class='tree'>",
        *_tree(report),
        "</div>",
        *_weights(report.weights),
        *_gradients("Gradients", report.gradients),
        *_gradients("After training", report.training),
        *(f"<p class='soft'>{_safe(note)}</p>" for note in report.notes),
        "<h2>Environment</h2><table>",
        *(
            f"<tr><td>{_safe(name)}</td><td>{_safe(value)}</td></tr>"
            for name, value in content.flat(report.environment)
        ),
        "</table></body></html>",
    ]
    return "\n".join(parts)


def _safe(value: Any) -> str:
    return html.escape(content.visible(str(value)))


def _cause(one: Module, *others: Module) -> str:
    lines = [
        f"<b>{_safe(one.path or 'the code of the model itself')}</b> &harr; {_safe(one.jax_path or 'the JAX model')}"
    ]
    if one.diagnosis is not None:
        lines += [
            f"{_safe(one.diagnosis.cause)}: {_safe(one.diagnosis.text)}",
            f"<b>Fix:</b> {_safe(one.diagnosis.fix)}",
        ]
    if one.finding is not None:
        where = f"{one.finding.output}{list(one.finding.index)}"
        lines.append(f"Worst element: {_safe(where)}: torch {one.finding.want:.9g}, JAX {one.finding.got:.9g}")
    if one.perturbed:
        lines.append("It shows with perturbed weights, the same on both sides.")
    if others:
        lines.append(f"Also in: {', '.join(_safe(text.place(other)) for other in others)}")
    return f"<div class='cause'>{'<br>'.join(lines)}</div>"


def _tree(report: ModelReport) -> list[str]:
    children: dict[int | None, list[int]] = {}
    for at, one in enumerate(report.modules):
        children.setdefault(one.parent, []).append(at)
    parts: list[str] = []
    # A stack instead of recursion: models may be deeper than Python's.
    todo: list[int | str] = [*reversed(children.get(None, []))]
    while todo:
        item = todo.pop()
        if isinstance(item, str):
            parts.append(item)
            continue
        one, below = report.modules[item], children.get(item, [])
        if not below:
            parts.append(f"<div class='leaf'>{_row(one)}</div>")
            continue
        unfolded = " open" if one.verdict not in AGREES or one.parent is None else ""
        parts.append(f"<details{unfolded}><summary>{_row(one)}</summary>")
        todo.append("</details>")
        todo.extend(reversed(below))
    return parts


def _row(one: Module) -> str:
    good = one.verdict in AGREES
    bars = "".join(
        f"<i class='{name}' style='width:{_length(value):.0f}%'></i>"
        for name, value in (("own", one.own_error), ("inherited", one.inherited_error))
    )
    errors = ", ".join(
        f"{name} {value:.2g}"
        for name, value in (("own", one.own_error), ("inherited", one.inherited_error))
        if value is not None
    )
    types = f"{one.torch_type} / {one.jax_type}"
    about = " &middot; ".join(_safe(part) for part in (one.jax_path or "(model)", types, one.reason) if part)
    return (
        f"<span class='row'><span class='{'good' if good else 'bad'}' title='{_safe(one.verdict)}'>"
        f"{text.SIGN[one.verdict]}</span> <b>{_safe(one.path or '(model)')}</b>"
        f"<span class='bars' title='{_safe(errors)}'>{bars}</span><span class='errors'>{_safe(errors)}</span>"
        f"<span class='soft about'>{about}</span></span>"
    )


def _length(error: float | None) -> float:
    if error is None or error <= SMALLEST:
        return 0.0
    if not math.isfinite(error):
        return 100.0
    return min(100.0, 100 * math.log(error / SMALLEST) / math.log(LARGEST / SMALLEST))


def _weights(found: Any) -> list[str]:
    if found is None:
        return []
    wrong = {id(one.pair): one.text for one in found.unequal}
    rows = [
        f"<tr><td>{_safe(' + '.join(one.torch))}</td><td>{_safe(', '.join(one.jax))}</td><td>{_safe(one.rule)}</td>"
        f"<td>{_safe(one.evidence)}</td><td class='bad'>{_safe(wrong.get(id(one), ''))}</td></tr>"
        for one in found.pairs
    ]
    lone = [f"<p class='bad'>{_safe(line)}</p>" for line in found.unpaired.lines()]
    lone += [f"<p class='bad'>{_safe(one)}</p>" for one in found.ambiguous]
    head = "<tr><th>torch</th><th>JAX</th><th>rule</th><th>evidence</th><th>values</th></tr>"
    unfolded = " open" if found.unequal else ""
    title = f"{content.plural(len(rows), 'pair')}, {len(found.unequal)} not equal"
    return [
        f"<h2>Weights</h2>{''.join(lone)}<details{unfolded}><summary>{title}</summary><table>{head}",
        *rows,
        "</table></details>",
    ]


def _gradients(title: str, found: Any) -> list[str]:
    if not found:
        return []
    rows = [
        f"<tr><td>{_safe(one.torch)}</td><td>{_safe(one.jax)}</td>"
        f"<td class='{'good' if one.verdict in AGREES else 'bad'}'>{_safe(one.verdict)}</td>"
        f"<td>{_safe('' if one.error is None else format(one.error, '.2g'))}</td>"
        f"<td>{_safe(getattr(one, 'reason', ''))}</td></tr>"
        for one in found
    ]
    head = "<tr><th>torch</th><th>JAX</th><th>verdict</th><th>error</th><th></th></tr>"
    return [f"<h2>{title}</h2><table>{head}", *rows, "</table>"]
