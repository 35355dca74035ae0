"""The report of a comparison of models: every module, the first that is wrong, a tree to read, files to keep."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from parity.models.judging import AGREES
from parity.models.replay import Saved
from parity.models.weighing import Compared, Training
from parity.models.weights.weight_map import WeightMap
from parity.records import Diagnosis, Finding
from parity.report.environment import environment

KINDS = {"json": ("", ""), "html": ("page", "render"), "md": ("text", "markdown"), "txt": ("text", "render")}
"""Kinds of files, and the modules and functions that make their text."""


@dataclass
class Module:
    """A torch module and the JAX module that holds the same weights.

    Attributes:
        path: Of the torch module; "" for the model itself.
        jax_path: Of the JAX module; "layers[3]" is the fourth of a stack.
        verdict: "identical", "within bound", "differs", "unsupported" or "not judged".
        own_error: The largest error of the JAX module on torch's inputs, relative to a typical output; None if nothing
            was compared.
        inherited_error: The largest error of its output when the whole model runs.
        diagnosis: Why it differs, and the fix; only where it makes an error of its own.
        makes: Whether it makes an error of its own: it differs, and nothing in it does.
        reason: A remark on the verdict.
        finding: The worst element.
        ratio: The largest error over its bound.
        dtype: The dtype whose arithmetic the bound is for.
        torch_type: The class of the torch module.
        jax_type: The class of the JAX module.
        calls: How often the model calls it.
        call: The number of the call that is shown, which is the worst.
        perturbed: Whether the difference shows with perturbed weights only.
        parent: The module that contains it, as an index into `ModelReport.modules`.
        seconds: How long judging took.
        order: Its place in the order in which torch calls the modules.
    """

    path: str
    jax_path: str
    verdict: str
    own_error: float | None = None
    inherited_error: float | None = None
    diagnosis: Diagnosis | None = None
    makes: bool = False
    reason: str = ""
    finding: Finding | None = None
    ratio: float = 0.0
    dtype: str = "float64"
    torch_type: str = ""
    jax_type: str = ""
    calls: int = 1
    call: int = 0
    perturbed: bool = False
    parent: int | None = None
    seconds: float = 0.0
    order: int = 0


@dataclass
class ModelReport:
    """The result of a comparison of two models.

    Attributes:
        name: Of the pair.
        modules: Every pair of modules, in the order in which torch calls them: the model itself first.
        first: The first module that makes an error of its own, or None.
        weights: The `WeightMap`: `.pairs`, `.unpaired`, `.unequal`.
        gradients: Of every paired weight and input, as `Compared`: `.torch`, `.jax`, `.verdict`, `.error`.
        unpaired: Paths of modules that ran and have no partner, of "torch" and of "jax".
        training: The same for every running statistic after a forward in "train", and for every parameter after a step
            of the optimizer.
        steps: Of the optimizer: `.distances` and `.losses`, one a step; None where no step was asked for.
        notes: Remarks on the run.
        mode: "eval" or "train".
        framework: Of the JAX model: "nnx", "linen", "equinox" or "function".
        precision: The dtype in which both ran.
        seed: Of all random numbers.
        perturbed: Whether perturbed weights were tried too.
        strict: Whether weights without a partner are a failure.
        command: The command that makes this report, without --only; "" if there is none.
        saved: What the first modules that differ were called with: a file of JSON keeps it.
        options: Of the command, which change what is compared.
        replay: The file that keeps it, for the command that runs one module again; "" if there is none.
        environment: Versions, machine and commit.
    """

    name: str
    modules: list[Module]
    first: Module | None
    weights: WeightMap | None
    gradients: Sequence[Compared]
    unpaired: dict[str, list[str]]
    training: Sequence[Compared] = ()
    steps: Training | None = None
    notes: list[str] = field(default_factory=list)
    mode: str = "eval"
    framework: str = ""
    precision: str = "float64"
    seed: int = 0
    perturbed: bool = False
    strict: bool = False
    command: str = ""
    saved: Sequence[Saved] = ()
    replay: str = ""
    options: Sequence[str] = ()
    environment: dict[str, Any] = field(default_factory=environment)

    @property
    def ok(self) -> bool:
        """Whether no module differs, the weights are equal, and so are the gradients and what training changes."""
        if any(one.verdict in ("differs", "unsupported") for one in self.modules) or not self.modules:
            return False
        if (
            self.modules[0].verdict not in AGREES
            and not self.modules[0].path
            and self.modules[0].reason != "not asked for"
        ):
            return False
        if self.weights is not None and (self.weights.unequal or (self.strict and self.weights.unpaired)):
            return False
        return all(one.verdict not in ("differs", "unsupported") for one in (*self.gradients, *self.training))

    @property
    def failed(self) -> list[Module]:
        """The modules that make an error of their own."""
        return [one for one in self.modules if one.makes]

    def content(self) -> dict[str, Any]:
        """Return plain data, as it is written to files."""
        return {
            "name": self.name,
            "ok": self.ok,
            "mode": self.mode,
            "framework": self.framework,
            "precision": self.precision,
            "seed": self.seed,
            "perturbed": self.perturbed,
            "notes": self.notes,
            "first": None if self.first is None else self.first.path,
            "modules": [asdict(one) for one in self.modules],
            "unpaired": self.unpaired,
            "weights": None if self.weights is None else _weights(self.weights),
            "gradients": [_plain(one) for one in self.gradients],
            "training": [_plain(one) for one in self.training],
            "steps": None if self.steps is None else {"distances": self.steps.distances, "losses": self.steps.losses},
            "replay": {one.path: one.content() for one in self.saved},
            "environment": self.environment,
        }  # fmt: skip

    def save(self, path: str | Path, *, kind: str | None = None) -> None:
        """Write the report to a file, whole or not at all.

        Args:
            path: Ends in .txt, .json, .html or .md.
            kind: "txt", "json", "html" or "md", where the name does not tell.

        Raises:
            ValueError: It ends otherwise.
            FileNotFoundError: Its folder is not there.
        """
        from parity.report import content

        path = Path(path)
        kind = path.suffix.removeprefix(".") if kind is None else kind
        if kind not in KINDS:
            raise ValueError(f"path: expected a name that ends in .txt, .json, .html or .md, got {str(path)!r}")
        if not path.parent.is_dir():
            raise FileNotFoundError(f"path: expected a file in a folder that exists, got {str(path)!r}")
        if kind == "json":
            content.write_json(path, self.content())
            return
        file, function = KINDS[kind]
        text: str = getattr(importlib.import_module(f"parity.models.{file}"), function)(self)
        content.write_text(path, text.rstrip() + "\n")

    def save_steps(self, path: str | Path) -> None:
        """Write the training steps as a curve, in SVG.

        Raises:
            ValueError: No steps were compared, or the name does not end in .svg.
        """
        from parity.models import curve
        from parity.report import content

        if self.steps is None:
            raise ValueError("steps: expected a comparison with optimizer= and steps=, whose outputs agree; got none")
        if Path(path).suffix != ".svg":
            raise ValueError(f"path: expected a name that ends in .svg, got {str(path)!r}")
        content.write_text(Path(path), curve.svg(self.steps, self.name))

    def raise_if_failed(self) -> None:
        """Raise ModelError, an AssertionError, with the report as its text unless all is as it should be."""
        if not self.ok:
            raise ModelError(self)

    def __str__(self) -> str:
        from parity.models import text

        return text.render(self)


class ModelError(AssertionError):
    """Two models differ; `report` says where and why."""

    def __init__(self, report: ModelReport) -> None:
        super().__init__(f"{report.name}: the JAX model is not the torch model\n{report}")
        self.report = report

    def __reduce__(self) -> tuple[type[Self], tuple[ModelReport]]:
        """As of `parity.ParityError`."""
        return type(self), (self.report,)


def _plain(one: Compared) -> dict[str, Any]:
    return {name: getattr(one, name) for name in ("torch", "jax", "verdict", "error", "reason")}


def _weights(found: Any) -> dict[str, Any]:
    return {
        "pairs": [
            {"torch": list(one.torch), "jax": list(one.jax), "rule": one.rule, "evidence": one.evidence}
            for one in found.pairs
        ],
        "unpaired": {"torch": list(found.unpaired.torch), "jax": list(found.unpaired.jax)},
        "unequal": [str(one) for one in found.unequal],
        "ambiguous": [str(one) for one in found.ambiguous],
    }
