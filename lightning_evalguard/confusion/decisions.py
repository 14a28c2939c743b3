"""Are scores that rank samples given something to rank, or decisions: zeros and ones?

An area under a curve of ``argmax``, ``round`` or ``> 0.5`` is that of one threshold. It is
reported where each of the predictions of an evaluation is exactly 0 or 1, or -1 or 1, and both
occur: probabilities that saturate do so for some samples alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_evalguard.instruments.source import Site
from lightning_evalguard.report import Finding

FEWEST = 16  # samples
_FIRST = 64  # predictions of a batch, of which one that is no decision settles it
_THRESHOLDS = 4  # of a binned curve, between which no prediction lies
_CURVES = frozenset(
    f"{task}PrecisionRecallCurve" for task in ("Binary", "Multiclass", "Multilabel")
)  # of which all of torchmetrics' that rank are subclasses
SKLEARN_RANKS = (
    "average_precision_score", "det_curve", "precision_recall_curve", "roc_auc_score", "roc_curve",
)  # fmt: skip
_RANKS = ("roc", "average_precision", "precision_recall_curve")
REMEDY = "Give it probabilities or logits, as they are before `argmax`, `round` or a threshold."


def ranks(name: str) -> bool:
    """Whether a function of scikit-learn's or torchmetrics' ranks, by its name."""
    return name in SKLEARN_RANKS or name.endswith(_RANKS)


def said_of(samples: int) -> str:
    """What is so, in words."""
    return (
        f"is given decisions, expected scores that rank the samples: its {samples} predictions are "
        "all 0 or 1"
    )


def are_decisions(values: Any) -> bool:
    """Whether each of some predictions is 0 or 1, or each is -1 or 1."""
    flat = values.reshape(-1)
    for part in (flat[:_FIRST], flat):
        low = (
            (part == 0).all() or (part == 1).all() or ((part == 0) | (part == 1)).all()
        )
        if not (bool(low) or bool(((part == -1) | (part == 1)).all())):
            return False
    return True


class Decisions:
    """Follows what the functions that rank are given in one evaluation."""

    def __init__(self) -> None:
        self._given: dict[tuple[str, str | None], _Given] = {}

    def add(self, name: str, scores: Any, site: Site | None) -> None:
        """The function `name` was called with `scores`."""
        if isinstance(scores, (list, tuple)):
            scores = np.asarray(scores)
        if not isinstance(scores, (Tensor, np.ndarray)) or not scores.ndim:
            return
        key = name, site.location if site is not None else None
        self._given.setdefault(key, _Given()).add(scores)

    def clear(self) -> None:
        """Nothing was given so far."""
        self._given.clear()

    def findings(self, stage: str) -> list[Finding]:
        """Those that were given decisions alone."""
        if stage == "val":
            stage = "validate"
        findings = []
        for (name, location), given in self._given.items():
            if not given.only_decisions():
                continue
            finding = Finding(
                check="scores",
                stage=stage,
                fact=f"`{name}` {said_of(given.samples)}",
                remedy=REMEDY,
                location=location,
                certain=False,
            )
            findings.append(finding)
        return findings


class _Given:
    """What one call was given, batch after batch; no batch is kept."""

    def __init__(self) -> None:
        self.samples = 0
        self._ranks = False
        self._flags: list[Tensor] = []  # on their device, until the evaluation is over
        self._values: set[float] = set()

    def add(self, scores: Any) -> None:
        if self._ranks:
            return
        self.samples += len(scores)
        if isinstance(scores, Tensor) and scores.device.type != "cpu":
            with torch.no_grad():
                zeros = scores == 0
                ones = scores == 1
                flags = [(zeros | ones).all(), zeros.any(), ones.any()]
            self._flags.append(torch.stack(flags))
            return
        if are_decisions(scores):
            self._values |= {float(scores.min()), float(scores.max())}
        else:
            self._ranks = True

    def only_decisions(self) -> bool:
        if self._ranks or self.samples < FEWEST:
            return False
        if self._flags:
            each = torch.stack(self._flags)
            return bool(each[:, 0].all() & each[:, 1].any() & each[:, 2].any())
        return self._values in ({0.0, 1.0}, {-1.0, 1.0})


# --- torchmetrics' objects ----------------------------------------------------------------------


def is_curve(metric: Any) -> bool:
    """Whether a metric of torchmetrics' ranks."""
    return any(
        kind.__name__ in _CURVES and kind.__module__.startswith("torchmetrics.")
        for kind in type(metric).__mro__
    )


def decisions_in(metric: Any) -> int:
    """How many samples a metric that ranks holds decisions of; 0 where it holds a score."""
    held = vars(metric)
    kept = held.get("preds")
    binned = held.get("confmat")
    if isinstance(kept, list):
        return _of_list([t for t in kept if isinstance(t, Tensor) and t.numel()])
    if isinstance(binned, Tensor):
        return _of_bins(binned, held.get("_buffers", {}).get("thresholds"))
    return 0


def _of_list(kept: list[Tensor]) -> int:
    samples = sum(len(t) for t in kept)
    if samples < FEWEST or not all(are_decisions(t) for t in kept):
        return 0
    lowest = {float(t.min()) for t in kept}
    highest = {float(t.max()) for t in kept}
    if lowest | highest == {0.0, 1.0}:
        return samples
    return 0


def _of_bins(confmat: Tensor, thresholds: Any) -> int:
    if not isinstance(thresholds, Tensor) or len(thresholds) != len(confmat):
        return 0
    above = (thresholds > 0) & (thresholds <= 1)
    if int(above.sum()) < _THRESHOLDS or float(thresholds.max()) != 1:
        return 0
    cells = confmat[above]
    samples = int(cells[0].sum())
    positive = int(cells[0][..., 1].sum())
    same = bool((cells == cells[:1]).all())
    if same and 0 < positive < samples and samples >= FEWEST:
        return samples
    return 0
