"""What each batch counted for itself: were its scores averaged where no mean is the score?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from lightning_evalguard.confusion.differences import Claim, candidates, close
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


class Batches:
    """The counts of one evaluation after each of its batches.

    Nothing but counts is kept, and they stay on the device until somebody asks.
    """

    def __init__(self) -> None:
        self._totals: list[tuple[Tensor, Tensor]] = []
        self._cells = 0
        self._read: Callable[[Tensor, Tensor], ConfusionResult] | None = None
        self._results: list[ConfusionResult] | None = None

    def take(self, counts: Tensor, hits: Tensor) -> None:
        """A batch is over: remember what was counted so far."""
        self._cells += counts.numel()
        if self._cells <= _CELLS and len(self._totals) < _BATCHES:
            self._totals.append((counts.clone(), hits.clone()))
        else:
            self._totals.clear()
            self._cells = _CELLS + 1

    def close(self, read: Callable[[Tensor, Tensor], ConfusionResult]) -> None:
        """The evaluation is over: how to read what one batch counted."""
        self._read = read

    def results(self) -> list[ConfusionResult]:
        """What each batch counted, empty where that is not known."""
        if self._results is None:
            self._results = list(self._differences())
            self._totals.clear()
        return self._results

    def _differences(self) -> Iterator[ConfusionResult]:
        if self._read is None or not self._totals:
            return
        counts = torch.stack([c for c, _ in self._totals]).cpu()
        hits = torch.stack([h for _, h in self._totals]).cpu()
        for batch in range(len(counts)):
            before = batch - 1
            if batch:
                yield self._read(counts[batch] - counts[before], hits[batch] - hits[before])
            else:
                yield self._read(counts[0], hits[0])

    def totals(self) -> list[int]:
        """How many answers each batch counted."""
        return [result.total for result in self.results()]

    def series(self, claim: Claim) -> dict[str, list[float]]:
        """Each score of one family, batch by batch; those that every batch has."""
        of_each = [candidates(result, claim) for result in self.results()]
        if not of_each:
            return {}
        names = [n for n in of_each[0] if all(n in one for one in of_each)]
        names.sort(key=lambda n: (n != claim.family, not n.endswith("_macro")))
        return {name: [one[name] for one in of_each] for name in names}


def mean_of(values: Sequence[float], weights: Sequence[float]) -> float:
    """The weighted mean, NaN where nothing weighs."""
    total = sum(weights)
    pairs = zip(values, weights, strict=True)
    return sum(v * w for v, w in pairs) / total if total else math.nan


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
