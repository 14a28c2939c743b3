"""Which summary of the steps' numbers a value is, that was logged when they were over."""

from __future__ import annotations

import itertools
import math
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from lightning_evalguard.confusion.by_batch import exactly, mean_of
from lightning_evalguard.data.loaders import Fact

LOG_IT = "Log it in the step, with self.log."
WEIGH_IT = "Weigh each batch by its samples, or log it in the step, with self.log."
_TELLS_A_CHOICE = (
    "best",
    "max",
    "min",
    "prev",
    "last",
    "ema",
    "high",
    "low",
    "old",
    "record",
    "worst",
)
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_LONG = 4  # letters from which on a word is no part of another one by chance
_UNEVEN = 1e-3  # a mean that is weighed wrongly and differs by less is not worth a line
# ratios of this denominator are values that many scores have by chance
_DENOMINATOR = 5040


@dataclass
class Numbers:
    """One number a step, and how the steps weigh.

    Attributes:
        name: Where it is kept or logged.
        values: One a step.
        samples: How many samples each step had; empty where the loader does not say.
        answers: How many answers each step counted; empty where none were.
        stale: Numbers of before the evaluation that lie in the same list.
        by_batch: Whether each number is known to be of its batch alone, not of all batches so far.
    """

    name: str
    values: Sequence[float]
    samples: Sequence[int] = ()
    answers: Sequence[int] = ()
    stale: Sequence[float] = ()
    by_batch: bool = False

    def weights(self) -> list[Sequence[float]]:
        """The ways in which these steps may rightly be weighed."""
        n = len(self.values)
        return [w for w in (self.samples, self.answers) if len(w) == n]

    @property
    def adds_up(self) -> bool:
        """Whether each step added to one number: a total of what each step had."""
        pairs = itertools.pairwise(self.values)
        return (
            not self.by_batch and len(self.values) > 1 and all(a < b for a, b in pairs)
        )

    def added(self) -> Numbers:
        """What each step added to a total that began at 0."""
        before = [0.0, *self.values[:-1]]
        values = [b - a for a, b in zip(before, self.values, strict=True)]
        return replace(self, values=values, stale=())

    @property
    def uneven(self) -> bool:
        """Whether the steps had samples, or answers, of different number."""
        ways = self.weights()
        return bool(ways) and all(len(set(way)) > 1 for way in ways)


class Summary(NamedTuple):
    """What a value was found to be.

    Attributes:
        kind: ``honest``, ``plain mean``, ``last``, ``first``, ``stale mean`` or ``before``.
        of: The numbers.
    """

    kind: str
    of: Numbers


def summary_of(value: float, key: str, known: Iterable[Numbers]) -> Summary | None:
    """What a value is of the numbers that the steps kept; None where it is nothing known.

    An honest reading of any of them comes before every other.
    """
    numbers = [
        one
        for one in known
        if len(one.values) > 1 and all(map(math.isfinite, one.values))
    ]
    chooses = _tells_a_choice(key)
    for one in numbers:
        if any(exactly(value, mean) for mean in _means(one)):
            return Summary("honest", one)
    for one in numbers:
        at_an_end = exactly(value, one.values[-1]) or exactly(value, one.values[0])
        others = (
            _other_summaries(one) if one.by_batch and (chooses or not at_an_end) else ()
        )
        if any(exactly(value, other) for other in others):
            return Summary("honest", one)
    for one in numbers:
        plain = mean_of(one.values, [1.0] * len(one.values))
        right = [mean_of(one.values, way) for way in one.weights()]
        apart = right and all(abs(plain - r) > _UNEVEN * abs(r) for r in right)
        if (
            one.uneven
            and apart
            and exactly(value, plain)
            and not by_chance(value, one.samples)
        ):
            return Summary("plain mean", one)
    for one in numbers:
        all_of_it = [*one.stale, *one.values]
        mean = mean_of(all_of_it, [1.0] * len(all_of_it))
        if one.stale and exactly(value, mean) and not by_chance(value, one.samples):
            return Summary("stale mean", one)
    if chooses:
        return None
    for one in numbers:
        if (
            not one.by_batch
            or by_chance(value, ())
            or exactly(one.values[0], one.values[-1])
        ):
            continue
        if exactly(value, one.values[-1]):
            return Summary("last", one)
        if exactly(value, one.values[0]):
            return Summary("first", one)
    return None


def _tells_a_choice(key: str) -> bool:
    """Whether a key names one value among several: `val_acc_best`, `lowest_loss`; no `holdout`."""
    said = [word.lower() for word in _WORDS.findall(key)]
    return any(
        word.startswith(told) or (len(told) >= _LONG and told in word)
        for word in said
        for told in _TELLS_A_CHOICE
    )


def of_totals(value: float, key: str, numbers: list[Numbers]) -> Summary | None:
    """Whether a value is a total of batches' means over their number."""
    added = [one.added() for one in numbers if one.adds_up]
    summary = summary_of(value, key, added) if added else None
    if summary is None or summary.kind != "plain mean":
        return None
    return summary


def _means(one: Numbers) -> Iterable[float]:
    """What is right of numbers that are means, or sums, of their batches."""
    values = one.values
    ways = one.weights() if one.uneven else [*one.weights(), [1.0] * len(values)]
    means = [mean_of(values, way) for way in ways]
    yield from means
    yield math.fsum(values)
    for mean in means:
        if 0 < abs(mean) < 50:  # a perplexity, a root of a mean square
            yield math.exp(mean)
            yield math.sqrt(abs(mean))


def _other_summaries(one: Numbers) -> Iterable[float]:
    values = one.values
    yield from (max(values), min(values), statistics.median(values))
    yield from (statistics.pstdev(values), statistics.stdev(values))


def by_chance(value: float, samples: Sequence[int] = ()) -> bool:
    """Whether a value is one that other scores may have too: 0, 1, 3/4, or right answers of all."""
    if not math.isfinite(value):
        return True
    of = [1, 2, sum(samples)] if samples else [_DENOMINATOR]
    room = 1e-3 * max(1.0, abs(value))
    return any(abs(value * n - round(value * n)) < room for n in of if n)


def over_samples(value: float, means: Numbers) -> float | None:
    """The mean by samples, where a value is the sum of batches' means over all samples."""
    one = means.added() if means.adds_up else means
    samples = sum(one.samples)
    if len(one.samples) != len(one.values) or samples < 2 * len(one.values):
        return None
    if not exactly(value * samples, math.fsum(one.values)):
        return None
    return mean_of(one.values, one.samples)


def over_full_batches(value: float, numbers: Numbers) -> int | None:
    """How many samples all batches would have if none were smaller, where a total is over those."""
    one = numbers.added() if numbers.adds_up else numbers
    if len(one.samples) != len(one.values) or len(one.values) < 2:
        return None
    places = max(one.samples) * len(one.samples)
    few = places <= sum(one.samples) * (1 + _UNEVEN)
    if few or not exactly(value * places, math.fsum(one.values)):
        return None
    return places


def fact_of_summary(summary: Summary, key: str) -> Fact:
    """What is wrong with a value logged under `key` that is such a summary."""
    one = summary.of
    n = len(one.values)
    if summary.kind == "plain mean":
        sizes = one.samples or one.answers
        fact = (
            f"is the plain mean of {n} batches' means, though batches have {min(sizes)} to "
            f"{max(sizes)} samples: small ones weigh too much"
        )
        return Fact(fact, WEIGH_IT, key, certain=False)
    if summary.kind == "stale mean":
        return Fact(
            f"is the mean of all of `{one.name}`: {len(one.stale)} of its "
            f"{n + len(one.stale)} values are from before this evaluation",
            f"Clear `{one.name}` when the epoch ends.",
            key,
            certain=False,
        )
    return Fact(
        f"is the {summary.kind} batch's value, expected the mean of {n} batches",
        LOG_IT,
        key,
        certain=False,
    )


def over_all_samples(means: Iterable[Numbers], value: float, key: str) -> Fact | None:
    """What is wrong with a value that is a sum of batches' means over the number of samples."""
    for one in means:
        right = over_samples(value, one)
        if right is None or by_chance(value):
            continue
        n = sum(one.samples)
        return Fact(
            f"is {value:.4g}, the sum of {len(one.values)} batches' means divided by the "
            f"number of samples ({n:,}); weighed by its samples it is {right:.4g}",
            "Add up each batch's mean times its number of samples, or log it in the step, "
            "with self.log.",
            key,
            certain=False,
        )
    return None


def over_full_places(numbers: Iterable[Numbers], value: float, key: str) -> Fact | None:
    """What is wrong with a value that is a total over full batches, of which some were smaller."""
    for one in numbers:
        places = over_full_batches(value, one)
        if places is None or by_chance(value):
            continue
        n = sum(one.samples)
        return Fact(
            f"is {value:.4g}, the total of `{one.name}` divided by {places:,}: "
            f"{len(one.samples)} full batches, though they had {n:,} samples",
            "Divide by the number of samples that the steps were given.",
            key,
            certain=False,
        )
    return None
