"""The table of docs/evidence/speed.md: made from the stored file, never by hand."""

from __future__ import annotations

from typing import Any

from benchmarks.rows import KINDS, LARGE
from benchmarks.targets import VERDICTS
from benchmarks.timing import Ratio

COLUMNS = {
    "torch": ("dense", "limit", "one-liner", "masked afterwards", "densified"),
    "jax": ("dense", "limit", "one-liner", "masked afterwards", "densified"),
}
P = 0.1


def section(found: dict[str, Any]) -> str:
    """Return the section of docs/evidence/speed.md from what `python -m benchmarks --json FILE` kept.

    Args:
        found: The file's content.
    """
    env = found["environment"]
    batch, outputs, inputs = LARGE
    frameworks = " and ".join(f"{'JAX' if name == 'jax' else name} {env[name]}" for name in found["machines"])
    lines = [
        f"`python -m benchmarks` on a CPU ({env['processor']}, {env['cpus']} cores; Python {env['python']}, "
        f"{frameworks}; commit {env['commit']}). Time of forward and backward over that of what stands at the head, "
        f"float32, batch {batch}, {inputs} to {outputs} features, a tenth learns, torch eager and JAX jit; medians of "
        "ratios taken round by round; an interval where the spread is larger than the effect:",
        "",
        "| | torch: dense | the limit | the one-liner | a hook | SHiRA's delta "
        "| JAX: dense | the limit | the one-liner | a mask on gradients | `.at[].add` |",
        "|" + "---|" * (1 + sum(map(len, COLUMNS.values()))),
    ]
    by_id = {record["id"]: record for record in found["rows"]}
    for kind in KINDS:
        for form in ("masked", "packed"):
            cells = [f"`{kind}`, {form}"]
            for framework, columns in COLUMNS.items():
                record = by_id.get(_id(framework, kind, form))
                cells += [_cell(record, column) for column in columns]
            lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| target | at most | met | missed | unclear | worst miss |", "|---|---|---|---|---|---|"]
    for name, one in found["summary"].items():
        worst = one["misses"][0] if one["misses"] else None
        told = f"{worst['value']:.2f}: {worst['id']}" if worst else ""
        lines.append(f"| {name} | {one['at most']:g} | " + " | ".join(str(one[v]) for v in VERDICTS) + f" | {told} |")
    lines += ["", f"{found['line']}. A GPU: [one run](gpu.md)."]
    lines += [_growth(curve) for curve in found["growth"] if curve["over"] == "p"]
    return "\n".join(lines) + "\n"


def _id(framework: str, kind: str, form: str) -> str:
    how = {"torch": "eager", "jax": "jit"}[framework]
    return f"{framework}/forward+backward/{kind}/{P:g}/{'x'.join(map(str, LARGE))}/float32/{how}/inner/{form}"


def _cell(record: dict[str, Any] | None, column: str) -> str:
    if record is None or column not in record["ratios"]:
        return "not measured"
    return str(Ratio(*record["ratios"][column])).replace("unclear ", "")


def _growth(curve: dict[str, Any]) -> str:
    texts = []
    for form, fit in curve["fits"].items():
        line = f"{fit['intercept']:.2f} + {fit['slope']:.2f} p"
        texts.append(f"{line} ({form}, no point further off than {fit['worst']:.2f})")
    shares, framework = [point["p"] for point in curve["points"]], curve["framework"]
    return (
        f"With `columns` from p = {min(shares):.2g} to {max(shares):g} a step of {framework} costs "
        f"{' and '.join(texts)} of the dense one, and a frozen layer {curve['frozen'][0]:.2f}; "
        "the limit is 0.67 + 0.33 p."
    )
