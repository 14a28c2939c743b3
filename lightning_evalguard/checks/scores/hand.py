"""What comes out of a loop over a loader that the user's own code runs, and is then logged.

Nothing says that a value comes from that loop but the value itself. So only what can be made of the
loop's numbers is told: of what each batch counted, of the numbers that lie in the loop's variables
and in attributes, of the metric objects that it updates.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor, nn

from lightning_evalguard.checks.scores.claims import (
    METRIC,
    NOT_A_MEAN,
    Claims,
)
from lightning_evalguard.checks.scores.heard import LogCall
from lightning_evalguard.checks.scores.kept import Owner, Series, on_host
from lightning_evalguard.checks.scores.logged import Tally
from lightning_evalguard.checks.scores.metrics import Metrics, mean_of_batches
from lightning_evalguard.checks.scores.summaries import (
    LOG_IT,
    WEIGH_IT,
    Numbers,
    by_chance,
)
from lightning_evalguard.confusion.by_batch import LoaderCounts, exactly, mean_of
from lightning_evalguard.confusion.differences import candidates, claim_of, fits
from lightning_evalguard.data.loaders import Fact

_KEY = "hand"
_ACCURACY = re.compile(r"(?<![a-z])(?:acc|accuracy|acc1|top1)(?![a-z])", re.IGNORECASE)
_FEWEST = 16  # answers below which a share is told from others by no count
_RESET = "Call `reset()` of `{}` before the loop."
_ONCE = "Keep what each batch predicts, and compute the score once after the loop."
_REMEDIES = {
    LOG_IT: "Add up all batches, each weighed by its samples.",
    WEIGH_IT: "Add up each batch's value times its samples, and divide by all samples.",
    METRIC: _ONCE,
}
_BEGIN = "Set it to 0 before the loop."


class Total(NamedTuple):
    """How many answers of one evaluation were right, of how many."""

    right: int
    answers: int


class HandTally(Tally):
    """The numbers of one loop of the user's.

    Attributes:
        of_batch: The names that the loop gives what is of one batch alone.
        sums: What losses of first batches were that are no mean of their batch.
    """

    of_batch: frozenset[str] = frozenset()
    sums: Sequence[float] = ()

    def __init__(self) -> None:
        self._summed: set[str] = set()  # names that held one of them
        super().__init__()

    @property
    def begun(self) -> int:
        """How many batches the loop took."""
        return len(self._elements)

    def numbers(self) -> list[Numbers]:
        """As of any evaluation; what is a count, or a sum, weighs as it is."""
        return [self._weighed(one) for one in super().numbers()]

    def _weighed(self, one: Numbers) -> Numbers:
        return replace(one, samples=()) if self._is_sum(one) else one

    def carries(self, total: float) -> bool:
        """Whether something that was kept holds this and what an evaluation before left."""
        for one in super().numbers():
            all_of_it = math.fsum(one.stale) + math.fsum(one.values)
            ends = any(exactly(v, total) for v in one.values[-1:])
            if ends or (one.stale and exactly(all_of_it, total)):
                return True
        lists = self._kept.lists().values()
        return any(before and came >= len(self.steps) for before, came in lists)

    def _is_sum(self, one: Numbers) -> bool:
        if any(exactly(v, total) for v in one.values[:1] for total in self.sums):
            self._summed.add(one.name)
        if one.name in self._summed:
            return True
        whole = all(v == round(v) for v in one.values if math.isfinite(v))
        return whole and max(map(abs, one.values), default=0) > 1

    def _is_by_batch(self, series: Series) -> bool:
        return series.name.partition("[")[0] in self.of_batch


class HandClaims(Claims):
    """Judges what is logged of the loops at one place, one evaluation after the other.

    Attributes:
        explained: Keys whose values were made of the loop's numbers, rightly or wrongly.
    """

    def __init__(self) -> None:
        super().__init__()
        self.explained: set[str] = set()
        self._metrics = Metrics()
        self._numbers = HandTally()
        self._sizes: Sequence[int] = ()
        self._last: Total | None = (
            None  # of the evaluation before, where that was followed
        )

    # one loop

    def opens(
        self, holder: nn.Module, owners: Sequence[Owner], sizes: Sequence[int]
    ) -> None:
        """A loop begins.

        Args:
            holder: Gives the metric objects that are within reach.
            owners: What may keep numbers, see `Kept.begin`.
            sizes: How many samples each batch has, where the loader says.
        """
        self.explained = set()
        self._sizes = sizes
        self._metrics.begin(holder)
        self._numbers.begin(owners)
        self.begin("evaluate", self._numbers)

    def fetched(self, batch: Any, of_batch: Callable[[], frozenset[str]]) -> None:
        """It takes a batch, and is done with the one before."""
        if not self._numbers.steps:
            self._numbers.of_batch = of_batch()
        self.batch_over()
        self._numbers.before_step(batch)

    def batch_over(self) -> None:
        """It is done with a batch, if it took one."""
        if len(self._numbers.steps) < self._numbers.begun:
            updates = self._metrics.step_over(0)
            self._numbers.after_step(None, 0, updates, 0, None)

    def over(self) -> None:
        """It took its last batch."""
        self.batch_over()
        self._numbers.ended((), {0: self._sizes})

    def summed(self, sums: Sequence[Tensor]) -> None:
        """Losses of first batches, each of all samples of its batch together."""
        self._numbers.sums = on_host(sums)

    def close(self) -> None:
        """Follow nothing more."""
        self._metrics.end()
        self._numbers.begin(())

    # what was logged since

    def facts(
        self,
        logged: Mapping[str, LogCall],
        counted: LoaderCounts | None,
        others: Others,
    ) -> list[Fact]:
        """What is wrong with the values that were logged after the loop.

        Args:
            logged: The last value of each key.
            counted: What was counted in the loop.
            others: Lengths of other sets, by which a share may have been divided.
        """
        self.counted = {_KEY: counted} if counted is not None else {}
        of_metrics = self._of_metrics()
        told = [float(v) for one in self._metrics.wrong for v in one.values]
        found = []
        for key, heard in logged.items():
            value = float(heard.value)
            if not math.isfinite(value) or value in told:
                self.explained.add(key)
                continue
            fact = self._of(heard, value, others)
            if fact is not None:
                self.explained.add(key)
                placed = fact._replace(location=fact.location or heard.location)
                found.append(_by_hand(placed))
        self.remember()
        self._last = self._total()
        return [*of_metrics, *found]

    def _of(self, heard: LogCall, value: float, others: Others) -> Fact | None:
        counted = self._counted_of(heard)
        claim = claim_of(heard.name)
        if counted is not None and claim is not None:
            named = candidates(counted.result, claim)
            if fits(value, named):
                self.explained.add(heard.key)
                return None
            series = counted.batches.series(claim)
            why, remedy = self._how(heard, value, series, counted)
            if why:
                said = f"is {value:.4f}; {why}"
                return Fact(said, remedy, heard.key, certain=False)
        if counted is not None and self._is_plain(heard, value):
            self.explained.add(heard.key)
            return None
        fact = (
            self._of_wrong_count(heard, value, others)
            or self._of_earlier(heard, value)
            or self._of_no_mean(heard, value)
            or self._of_metric(heard, value)
        )
        before = len(self.unexplained)
        fact = fact or self._of_numbers(heard, value)
        if fact is None and len(self.unexplained) == before:
            self.explained.add(heard.key)
            return None
        return fact or self._of_no_name(heard, value)

    def _counted_of(self, heard: LogCall) -> LoaderCounts | None:
        return self.counted.get(_KEY)

    def _of_metric(self, heard: LogCall, value: float) -> Fact | None:
        """Whether a value is the mean of what a metric object gave for each batch."""
        plain = [1.0] * len(self._numbers.steps)
        fact = mean_of_batches(self._metrics.followed, heard.key, value, plain)
        return fact._replace(remedy=_ONCE) if fact is not None else None

    def _is_plain(self, heard: LogCall, value: float) -> bool:
        """Whether it is the accuracy, by whatever name."""
        total = self._total()
        if total is None:
            return False
        share = total.right / total.answers
        return any(exactly(value, v) for v in (share, 1 - share, 100 * share))

    def _total(self) -> Total | None:
        counted = self.counted.get(_KEY)
        if counted is None or not counted.result.total:
            return None
        share = counted.result.scores.get("accuracy")
        if share is None or not math.isfinite(share):
            return None
        return Total(round(share * counted.result.total), counted.result.total)

    # what an accuracy was divided by

    def _of_wrong_count(
        self, heard: LogCall, value: float, others: Others
    ) -> Fact | None:
        total = self._total()
        if total is None or total.right < _FEWEST or not _ACCURACY.search(heard.name):
            return None
        for count, what in self._counts(others):
            if count in (0, total.answers):
                continue
            share = total.right / count
            if exactly(value, share) or exactly(value, 100 * share):
                return Fact(
                    f"is {value:.4f}, the {total.right:,} right answers of the loop divided by "
                    f"{count:,} ({what}), expected by the {total.answers:,} answers",
                    "Count the samples where the right answers are counted: "
                    "`total += len(target)`.",
                    heard.key,
                    certain=False,
                )
        return None

    def _counts(self, others: Others) -> Iterator[tuple[int, str]]:
        n = len(self._numbers.steps)
        yield n, "the number of batches"
        if self._sizes:
            yield n * max(self._sizes), f"{n} full batches"
        if len(self._sizes) > n:
            yield sum(self._sizes), "the size of the set, of which the loop took a part"
        yield from others()

    def _of_earlier(self, heard: LogCall, value: float) -> Fact | None:
        """Whether a value is the accuracy over this evaluation and the one before."""
        total, last = self._total(), self._last
        if total is None or last is None or by_chance(value):
            return None
        if not self._numbers.carries(total.right + last.right):
            return None
        both = (total.right + last.right) / (total.answers + last.answers)
        if not (exactly(value, both) or exactly(value, 100 * both)):
            return None
        return Fact(
            f"is {value:.4f}, the accuracy over this evaluation and the one before; over this one "
            f"it is {total.right / total.answers:.4f}",
            _BEGIN,
            heard.key,
            certain=False,
        )

    # scores that are no mean

    def _of_no_mean(self, heard: LogCall, value: float) -> Fact | None:
        """Whether a value is a mean of batches' values, and its key names a score that is none."""
        if not NOT_A_MEAN.search(heard.name) or self._numbers.of_micro_metrics(
            heard.name
        ):
            return None
        for one in self._numbers.numbers():
            values = [*one.values]
            n = len(values)
            if not one.by_batch or n < 2 or len({round(v, 6) for v in values}) < 2:
                continue
            if max(self._sizes, default=2) < 2 or by_chance(value):
                continue
            ways = [[1.0] * n, *one.weights()]
            if any(exactly(value, mean_of(values, way)) for way in ways):
                return Fact(
                    f"is the mean of {n} batches' values (`{one.name}`), not the score of all "
                    "samples",
                    _ONCE,
                    heard.key,
                    certain=False,
                )
        return None

    # metric objects

    def _of_metrics(self) -> list[Fact]:
        self._metrics.step_over(-1)
        steps = len(self._numbers.steps)
        facts = self._metrics.facts((), "the evaluation before", steps)
        self._metrics.end()
        return [f._replace(remedy=_RESET.format(f.subject)) for f in facts]


def _by_hand(fact: Fact) -> Fact:
    """A fact with the remedy of a loop, in which the Trainer averages nothing."""
    return fact._replace(remedy=_REMEDIES.get(fact.remedy, fact.remedy))


Others = Callable[[], Iterable[tuple[int, str]]]
"""Gives lengths of the run's sets, each with what it is."""
