"""What each batch counted for itself: were its scores averaged where no mean is the score?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_evalguard.confusion import scores as _scores
from lightning_evalguard.confusion.differences import Claim, close
from lightning_evalguard.confusion.result import ConfusionResult

_CELLS = 1 << 20  # counts that are kept, 8 MiB; above it the batches are not told apart
_BATCHES = 512

# Scores whose mean over batches is not the score of all samples.
NO_MEANS = tuple(
    Claim(family, "", "")
    for family in (
        "f1", "precision", "recall", "specificity", "balanced_accuracy", "mcc", "kappa", "accuracy",
    )
)  # fmt: skip


class LoaderCounts(NamedTuple):
    """What one evaluation counted of one loader: all of it, and batch by batch."""

    result: ConfusionResult
    batches: Batches


Margins = tuple[Tensor, Tensor, Tensor, Tensor]
"""Support, predicted and true positives ``(B, C)`` and answers judged ``(B, C)`` or ``(B, 1)``."""


@dataclass
class Summed:
    """The counts of several batches together, of which no matrix is kept.

    Attributes:
        task: ``multiclass``, ``binary`` or ``multilabel``.
        support: Answers of each class in the targets, ``(C,)``.
        predicted: Answers predicted as each class, ``(C,)``.
        true_positives: Answers of each class predicted as such, ``(C,)``.
        judged: Answers judged of each label; None unless the task is multilabel.
        scores: By name.
    """

    task: str
    support: Tensor
    predicted: Tensor
    true_positives: Tensor
    judged: Tensor | None
    scores: dict[str, float]
    matrix: Tensor | None = None

    @property
    def answers(self) -> int:
        """How many there are."""
        return int((self.support if self.judged is None else self.judged).sum())


class Batches:
    """The counts of one evaluation after each of its batches.

    Nothing but counts is kept, and they stay on the device until somebody asks.
    """

    def __init__(self) -> None:
        self._totals: list[Tensor] = []
        self._cells = 0
        self._read: Callable[[Tensor], Margins] | None = None
        self._task = ""
        self._margins: Margins | None = None
        self._answers: list[int] | None = None
        self._series: dict[Claim, dict[str, list[float]]] = {}

    def takes(self, batches: int, bins: int) -> bool:
        """Whether there is room for what so many batches counted; else all is forgotten."""
        enough = self._cells + batches * bins <= _CELLS
        if not enough or len(self._totals) + batches > _BATCHES:
            self._totals.clear()
            self._cells = _CELLS + 1
        return self._cells <= _CELLS

    def take(self, totals: Tensor) -> None:
        """Batches are over: what was counted up to the end of each, a row each."""
        self._cells += totals.numel()
        self._totals += totals.unbind(0)

    def close(self, task: str, read: Callable[[Tensor], Margins]) -> None:
        """The evaluation is over: how to read what its batches counted."""
        self._task, self._read = task, read

    def totals(self) -> list[int]:
        """How many answers each batch counted; empty where that is not known."""
        margins = self.margins()
        if margins is None:
            return []
        if self._answers is None:
            counted = margins[3] if self._task == "multilabel" else margins[0]
            self._answers = [int(n) for n in counted.sum(1).tolist()]
        return self._answers

    def series(self, claim: Claim) -> dict[str, list[float]]:
        """Each score of one family, batch by batch."""
        claim = claim._replace(stage="")
        if claim not in self._series:
            margins = self.margins()
            named = (
                {}
                if margins is None
                else _scores_of(self._task, *margins, claim.family)
            )
            if claim.average:
                named = {
                    k: v for k, v in named.items() if claim.average in k.split("_")
                }
            self._series[claim] = {
                k: v.tolist() for k, v in named.items() if not v.isnan().any()
            }
        return self._series[claim]

    def summed(self) -> Summed | None:
        """What all of them counted together; None where that is not known."""
        margins = self.margins()
        if margins is None:
            return None
        s, p, tp, judged = (each.sum(0, keepdim=True) for each in margins)
        scores = {
            name: float(value)
            for claim in NO_MEANS
            for name, value in _scores_of(
                self._task, s, p, tp, judged, claim.family
            ).items()
        }
        of_labels = judged[0] if self._task == "multilabel" else None
        return Summed(self._task, s[0], p[0], tp[0], of_labels, scores)

    def margins(self) -> Margins | None:
        """What each batch counted; None where that is not known."""
        if self._margins is None and self._read is not None and self._totals:
            totals = torch.stack(self._totals).cpu()
            self._totals.clear()
            self._margins = self._read(
                torch.diff(totals, dim=0, prepend=totals[:1] * 0)
            )
        return self._margins


def _scores_of(
    task: str, s: Tensor, p: Tensor, tp: Tensor, judged: Tensor, family: str
) -> dict[str, Tensor]:
    """The scores of one family, ``(B,)`` each, the plainest first."""
    each = _scores.per_class(s, p, tp, judged)
    n = judged.sum(1).double() if task == "multilabel" else s.sum(1).double()
    right = tp.sum(1).double()
    accuracy = right / n
    if task == "multilabel":
        accuracy = 1 - ((s - tp) + (p - tp)).sum(1).double() / n
    if family == "accuracy":
        if task == "multilabel":
            return {"hamming_accuracy": accuracy}
        return {"accuracy": accuracy, "accuracy_macro": _mean(each.recall, (s + p) > 0)}
    if family == "balanced_accuracy":
        return {"balanced_accuracy": _mean(each.recall, s > 0)}
    if family in ("mcc", "kappa"):
        if task == "multilabel":
            return {}
        return {family: _chance_corrected(s, p, right, n, family)}
    values = getattr(each, family)
    support = s.double()
    made = {
        f"{family}_macro": _mean(values, (s + p) > 0),
        f"{family}_macro_of_present_classes": _mean(values, s > 0),
        f"{family}_macro_of_all_classes": values.mean(1),
        f"{family}_weighted": (values * support).sum(1) / support.sum(1),
    }
    if task == "multilabel":
        micro = _scores.per_class(s.sum(1), p.sum(1), tp.sum(1), judged.sum(1))
        made[f"{family}_micro"] = getattr(micro, family)
    elif family != "specificity":
        made[f"{family}_micro"] = accuracy
    if task != "multilabel" and values.shape[1] == 2:
        made = {family: values[:, 1], **made, f"{family}_of_class_0": values[:, 0]}
    return made


def _mean(values: Tensor, where: Tensor) -> Tensor:
    return (values * where).sum(1) / where.sum(1)


def _chance_corrected(
    s: Tensor, p: Tensor, right: Tensor, n: Tensor, which: str
) -> Tensor:
    s, p = s.double(), p.double()
    by_chance = (s * p).sum(1)
    gain = right * n - by_chance
    room = n * n - by_chance
    if which == "mcc":
        room = ((n * n - (s * s).sum(1)) * (n * n - (p * p).sum(1))).sqrt()
    return torch.where(room > 0, gain / room, 0.0)


def mean_of(values: Sequence[float], weights: Sequence[float]) -> float:
    """The weighted mean, NaN where nothing weighs."""
    total = sum(weights)
    pairs = zip(values, weights, strict=True)
    if total:
        return sum(v * w for v, w in pairs) / total
    return math.nan


def ways_to_weigh(n: int, *weights: list[float]) -> list[list[float]]:
    """The ways to weigh `n` batches that differ, of which one is to weigh all alike."""
    ways = [[1.0] * n]
    for way in weights:
        if len(way) == n and len(set(way)) > 1 and way not in ways:
            ways.append(way)
    return ways


def varies(values: Sequence[float]) -> bool:
    """Whether they are not all the same."""
    return max(values) - min(values) > 1e-6


def is_summary(
    value: float, series: dict[str, list[float]], weights: Sequence[Sequence[float]]
) -> tuple[str, str]:
    """Which summary of which series a value is, in words; empty where it is none.

    Args:
        value: What was logged.
        series: Scores by name, batch by batch.
        weights: Ways to weigh the batches.

    Returns:
        The score's name, and ``mean``, ``last`` or ``first``.
    """
    for name, values in series.items():
        if len(values) < 2:
            continue
        for each in weights:
            if len(each) == len(values) and exactly(value, mean_of(values, each)):
                return name, "mean"
        if exactly(value, values[-1]) and not close(values[-1], values[0]):
            return name, "last"
        if exactly(value, values[0]) and not close(values[-1], values[0]):
            return name, "first"
    return "", ""


def exactly(a: float, b: float) -> bool:
    """Whether two values are the same to the last digit of float32, summed over many batches."""
    return math.isclose(a, b, rel_tol=3e-6, abs_tol=1e-7)
