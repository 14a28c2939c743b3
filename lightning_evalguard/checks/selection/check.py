"""Does the score justify what is chosen by it?"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from lightning_evalguard.checks.check import Check, Moment
from lightning_evalguard.checks.selection import tested
from lightning_evalguard.checks.selection.ages import Ages
from lightning_evalguard.checks.selection.aim import Aim, ChooserFact
from lightning_evalguard.checks.selection.choosers import Desk
from lightning_evalguard.checks.selection.noise import Noise
from lightning_evalguard.checks.selection.own import OwnChoosers
from lightning_evalguard.report import Finding
from lightning_evalguard.stages import is_sanity_check

_FIT_NUMBERS = itertools.count()


class SelectionCheck(Check):
    """The `selection` check: checkpoints, stops and schedules, and the scores they go by.

    A chooser must prefer the better score, which the score's name, its value or the metric behind
    it tells; it must compare the scores of the weights that it keeps; and it must not be shown the
    test set.

    Args:
        desk: What the check asks of the run.
    """

    name = "selection"

    def __init__(self, desk: Desk) -> None:
        self.notes: list[str] = []
        self._desk = desk
        self._fitting = False
        self._evaluating = False

    def open(self, root: nn.Module, now: Moment) -> Iterable[Finding]:
        self._fitting = self._desk.fitting()
        if not self._fitting:
            return ()
        self._fit = next(_FIT_NUMBERS)
        self._aim, self._ages, self._noise = (
            Aim(self._desk),
            Ages(self._desk),
            Noise(self._desk),
        )
        self._own = OwnChoosers(self._desk, self._aim.told)
        self._own.begin()
        self._ages.begin()
        self._desk.listen(self._saved)
        return [*self._pending(now), *self._findings(self._aim.by_name(), now)]

    def _saved(self, path: str) -> None:
        self._ages.saved(path)
        tested.wrote(str(path), self._fit)

    def start(self, now: Moment) -> Iterable[Finding]:
        if self._fitting:
            self._evaluating = now.stage == "validate"
            self._ages.loaded()
            self._ages.looked_again()
            facts = (*self._aim.by_name(), *self._aim.by_hand(), *self._looked())
            return [*self._pending(now), *self._findings(facts, now)]
        path = None
        if now.stage == "test":
            path = self._desk.checkpoint()
        many = 0
        if path:
            many = tested.tested(path)
        if not many:
            return ()
        return [_many_tested(many, now)]

    def scored(self, now: Moment) -> Iterable[Finding]:
        if self._fitting and is_sanity_check(now.stage):
            self._own.checked()
        if not (self._fitting and self._evaluating):
            return ()
        self._ages.scored()
        self._noise.scored()
        self._aim.learn()
        facts = [*self._aim.by_value(), *self._own.scored()]
        return list(self._findings(facts, now))

    def stop(self, now: Moment, error: BaseException | None) -> Iterable[Finding]:
        self._evaluating = False
        if not self._fitting:
            return ()
        return self._pending(now)

    def before_train_step(
        self, now: Moment, args: tuple[Any, ...]
    ) -> Iterable[Finding]:
        if not self._fitting:  # a dry run, which saves nothing and stops nothing
            return ()
        ages = self._ages
        if ages.follows:
            ages.before_train_step()
        if self._own.due:
            return list(self._findings(self._looked(), now))
        if ages.began and not ages.facts and ages.error is None:
            return ()
        ages.loaded()
        return [*self._pending(now), *self._findings(self._aim.by_name(), now)]

    def _looked(self) -> list[ChooserFact]:
        """What the user's own code remembers since the last validation."""
        if not self._own.due:
            return []
        return list(self._own.look())

    def close(self, now: Moment) -> Iterable[Finding]:
        if not self._fitting:
            return ()
        self._fitting = False
        self._desk.leave()
        self._ages.looked_again()
        self._ages.end()
        looked = self._looked()
        self._own.end()
        self.notes += self._noise.sentences()
        facts = [*self._aim.by_hand(), *looked]
        return [*self._pending(now), *self._findings(facts, now)]

    def _pending(self, now: Moment) -> list[Finding]:
        """What was found since the guard asked last: checkpoints are saved between its events."""
        ages = self._ages
        if ages.error is not None:
            error, ages.error = ages.error, None
            raise error
        facts, ages.facts = ages.facts, []
        return list(self._findings(facts, now))

    def _findings(self, facts: Iterable[ChooserFact], now: Moment) -> Iterator[Finding]:
        for chooser, fact, remedy in facts:
            yield Finding(
                check="selection",
                stage="fit",
                fact=fact,
                remedy=remedy,
                subject=chooser.key,
                leads="subject",
                epoch=now.epoch,
                step=now.step,
                rank=now.rank,
            )


def _many_tested(many: int, now: Moment) -> Finding:
    return Finding(
        check="selection",
        stage="test",
        fact=f"{many} checkpoints of one fit were scored on the test set, expected one chosen on "
        "the validation set",
        remedy="Choose among them with `trainer.validate(ckpt_path=...)` and test the chosen one.",
        epoch=now.epoch,
        step=now.step,
        rank=now.rank,
        certain=False,
    )
