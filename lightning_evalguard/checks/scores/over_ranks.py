"""What a value is where several ranks evaluate: one rank's alone, or a mean of what each has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from lightning_evalguard.checks.scores.by_class import is_a_score
from lightning_evalguard.checks.scores.heard import LogCall
from lightning_evalguard.checks.scores.summaries import by_chance
from lightning_evalguard.confusion.by_batch import (
    Batches,
    LoaderCounts,
    Summed,
    exactly,
)
from lightning_evalguard.confusion.differences import Claim, candidates, close, fits
from lightning_evalguard.data.batches import sized
from lightning_evalguard.data.loaders import Fact

_UNEVEN = 0.01  # of the samples must be weighed wrongly before it is worth a line
_OF_ALL = (
    "Compute it from all ranks' answers: log a torchmetrics object, or gather them with "
    "self.all_gather."
)
_SYNC = "Pass sync_dist=True to self.log, or log a torchmetrics object."


class OnRanks(NamedTuple):
    """How a value was logged on several ranks.

    Attributes:
        heard: The call on rank 0.
        value: What came of it.
        in_steps: Whether the steps logged it.
        ranks: How many there are.
        answers: How many answers all of them counted.
    """

    heard: LogCall
    value: float
    in_steps: bool
    ranks: int
    answers: int


def of_one_rank(
    logged: OnRanks, claim: Claim, batches: Batches, all_named: Mapping[str, float]
) -> tuple[str, str]:
    """Whether a value is the score of one rank's answers, or the mean of such: why, and the fix.

    Args:
        logged: The value.
        claim: What its key claims.
        batches: What rank 0's batches counted.
        all_named: The scores of all ranks' answers that the key may mean.
    """
    heard = logged.heard
    own = batches.summed()
    if own is None:
        return "", ""
    named = candidates(own, claim)
    if fits(logged.value, named):
        remedy = _SYNC if logged.in_steps else _OF_ALL
        return f"it is the score of rank 0's {own.answers:,} answers alone", remedy
    averaged = heard.over_ranks and not logged.in_steps
    even = is_even(own, logged.ranks, logged.answers)
    exact = even and claim.family == "accuracy" and not claim.average
    if averaged and not exact and fits(float(heard.value), named):
        return (
            "it is the mean of the ranks' scores, each of a rank's own answers",
            _OF_ALL,
        )
    if heard.over_ranks and logged.in_steps:
        return _rounded(logged, all_named)
    return "", ""


def is_even(own: Summed, ranks: int, answers: int) -> bool:
    """Whether all ranks have equal parts, of which some answers may have been given twice."""
    return abs(own.answers * ranks - answers) <= ranks


def mean_of_scores(
    heard: LogCall, value: float, counted: LoaderCounts, ranks: int
) -> Fact | None:
    """Whether a value of any name is a mean over ranks of scores that are no means.

    Each rank's is a score of its own answers, of all classes or of one, and the mean is none of
    all answers, as that of accuracies is where all have as many.
    """
    own = counted.batches.summed()
    alone = float(heard.value)
    if own is None or by_chance(alone) or not is_a_score(alone, own):
        return None
    exact = is_even(own, ranks, counted.result.total)
    if exact and close(alone, own.scores.get("accuracy", math.nan)):
        return None
    if is_a_score(value, counted.result):
        return None
    return Fact(
        f"is {value:.4f}, the mean of the ranks' scores, each of a rank's own answers",
        _OF_ALL,
        heard.key,
        certain=False,
    )


def _rounded(logged: OnRanks, named: Mapping[str, float]) -> tuple[str, str]:
    """Whether a mean is divided by a number of samples that the loop rounded down."""
    samples, whole = logged.answers / logged.ranks, logged.answers // logged.ranks
    if not whole or samples == whole:
        return "", ""
    rounded = {name: score * samples / whole for name, score in named.items()}
    if not fits(logged.value, rounded):
        return "", ""
    return (
        f"Lightning divides by the ranks' mean number of samples, rounded down from {samples:,} "
        f"to {whole:,}",
        "Log a torchmetrics object.",
    )


class UnevenRanks:
    """Means of each rank's samples that are averaged over ranks with other numbers of samples."""

    def __init__(self) -> None:
        self.counts = False
        self._samples = 0
        self._means: dict[str, LogCall] = {}

    def begin(self, several: bool) -> None:
        """An evaluation begins, of one rank or of several."""
        self.counts = several
        self._samples = 0
        self._means = {}

    def add(self, batch: Any) -> None:
        """A step gets `batch`."""
        self._samples += sized(batch, 0)[0]

    def take(self, heard: LogCall, value: float) -> None:
        """A mean over this rank's samples is logged, and is `value` once all ranks' are averaged.

        Where that changes nothing, each rank holds the mean of all.
        """
        if heard.over_ranks and not exactly(float(heard.value), value):
            self._means[heard.key] = heard

    def say(self) -> int | None:
        """How many samples this rank evaluated."""
        return self._samples if self.counts else None

    def hear(self, everyone: Mapping[int, int]) -> list[Fact]:
        """What each rank said."""
        samples = list(everyone.values())
        total, most = sum(samples), max(samples)
        apart = (
            sum(abs(n / total - 1 / len(samples)) for n in samples) / 2 if total else 0
        )
        means, self._means = self._means, {}
        if apart < _UNEVEN:
            return []
        return [
            Fact(
                f"is the plain mean of {len(samples)} ranks' means, though they evaluated "
                f"{min(samples):,} to {most:,} samples: few weigh too much",
                "Log it in the step with sync_dist=True, or share the samples out evenly.",
                key,
                location=heard.location,
                certain=False,
            )
            for key, heard in means.items()
        ]
