"""Is a logged score what it claims?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from torch import nn

from lightning_evalguard.checks.check import Check, Moment
from lightning_evalguard.checks.scores.logged import Tally
from lightning_evalguard.data import loaders as _loaders
from lightning_evalguard.data.loaders import Evaluated, Fact, Logged
from lightning_evalguard.report import Finding

_STEP = {"sanity_check": "validation_step", "validate": "validation_step", "test": "test_step"}
_LEFT = {"sanity_check": "the sanity check", "validate": "the validation before"}


class Loop(Protocol):
    """What the check asks of the loop that runs the evaluation."""

    def evaluated(self) -> Evaluated:
        """The loaders of the running evaluation, and those of training."""

    def logged(self) -> Sequence[Logged]:
        """What its steps logged, once the last one is over."""

    def pulse(self) -> tuple[int, int | None]:
        """How many values were logged so far, and the batch size taken from this batch."""

    def values(self) -> Mapping[str, Any]:
        """The scores that the trainer holds."""


class ScoresCheck(Check):
    """The `scores` check: a logged score is what its name claims.

    Args:
        loop: What the loop says.
    """

    name = "scores"

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.notes: list[str] = []
        self._forget(None)

    def open(self, root: nn.Module, now: Moment) -> Iterable[Finding]:
        self._forget(root)
        return ()

    def close(self, now: Moment) -> Iterable[Finding]:
        self._forget(None)
        return ()

    def _forget(self, root: nn.Module | None) -> None:
        self._root = root
        self._tally = Tally()
        self._explained: set[str] = set()
        self._follows = False
        self._sizes: dict[int, list[int]] = {}
        self._batches: dict[int, int] = {}

    def explained(self, keys: Iterable[str]) -> None:
        """Of these keys it was said already why they are wrong."""
        self._explained |= set(keys)

    def reason(self, key: str) -> str:
        """Why a logged score is not what its name says, where that is known."""
        return self._tally.reason(key)

    def start(self, now: Moment) -> Iterable[Finding]:
        self._follows = False
        return ()

    def before_step(self, now: Moment, args: tuple[Any, ...]) -> Iterable[Finding]:
        # a step that fetches its batches for itself says nothing of their sizes
        opaque = not args or isinstance(args[0], Iterator)
        if now.stage in _STEP and not now.rank and not opaque and not self._follows:
            self._begin()
        return ()

    def after_step(self, now: Moment, outputs: Any) -> Iterable[Finding]:
        if self._follows:
            self._tally.after_step(outputs, self._size(now.dataloader), *self._loop.pulse())
        return ()

    def steps_over(self) -> Iterable[Finding]:
        if self._follows:
            self._tally.ended(self._loop.logged())
        return ()

    def stop(self, now: Moment, error: BaseException | None) -> Iterable[Finding]:
        if error is not None or not self._follows:
            return ()
        left = _LEFT.get(now.stage, "the evaluation before")
        step = _loaders.source_of(getattr(type(self._root), _STEP[now.stage], None))
        facts = self._tally.facts(left, self._loop.values(), step)
        # the sanity check's scores are thrown away, and the next evaluation's say more
        return self._findings(now, facts if now.stage != "sanity_check" else ())

    def _begin(self) -> None:
        evaluated = self._loop.evaluated()
        self._follows = True
        self._sizes, self._batches = {}, {}
        for i, loader in enumerate(evaluated.loaders):
            limit = evaluated.limits[i] if i < len(evaluated.limits) else float("inf")
            taken = min(limit, _loaders.length(loader) or 0)
            self._sizes[i] = _loaders.batch_sizes(loader, int(taken)) or []
        self._tally.begin(self._root)

    def _size(self, dataloader: int) -> int | None:
        """How many samples the batch of the step that just ran has, where the loader says."""
        at = self._batches.get(dataloader, 0)
        self._batches[dataloader] = at + 1
        sizes = self._sizes.get(dataloader, [])
        return sizes[at] if at < len(sizes) else None

    def _findings(self, now: Moment, facts: Iterable[Fact]) -> Iterator[Finding]:
        for fact in facts:
            if fact.subject in self._explained:
                continue
            yield Finding(
                check="scores",
                stage=now.stage,
                fact=fact.fact,
                remedy=fact.remedy,
                subject=fact.subject,
                subject_type=fact.subject_type,
                location=fact.location,
                epoch=now.epoch,
                step=now.step,
                rank=now.rank,
                certain=fact.certain,
            )
