"""Syncs of a plain script: what happens at every step, and not where it logs now and then."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import Any

from lightning_evalguard.checks.check import Moment
from lightning_evalguard.checks.sync.check import SyncCheck
from lightning_evalguard.instruments.source import owner_of
from lightning_evalguard.report import Finding, Sync
from lightning_evalguard.stages import spelling

_FIRST, _EVERY = 3, 50
_BESIDE = 3  # further than a multiple of 50: there a script logs
_TO_DEVICE = "copy to the device"
_COUNTS = os.path.join("nn", "modules", "batchnorm.py")
_OF = " of "


class PlainSync(SyncCheck):
    """Says a line once it was reached in two watched steps, and in half of them.

    A script logs every so many steps, the first among them; and what follows the last batch stands
    in the last step.

    Args:
        allowed: Whether the running code is inside ``allow("sync")``.

    Attributes:
        deaf: Whether what runs is the guard's own.
        moves: Whether a batch was fetched and no model called since: what is copied to the device
            is that batch.
        place: The function whose steps run: the first steps of each are watched.
    """

    logs = False

    def __init__(self, allowed: Callable[[], bool]) -> None:
        super().__init__((_FIRST, _EVERY), allowed)
        self.deaf = False
        self.moves = False
        self.place = ""
        self._counted: dict[object, float] = {}
        self._reached: Counter[object] = Counter()

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """What runs meanwhile is the guard's own."""
        before, self.deaf = self.deaf, True
        try:
            yield
        finally:
            self.deaf = before

    def _hear(self, op: str, frame: FrameType | None, seconds: float) -> None:
        if self.deaf or (self.moves and op == _TO_DEVICE) or _counts_batches(frame):
            return
        super()._hear(op, frame, seconds)

    def records(self) -> list[Sync]:
        """One record a site, dearest first."""
        return [replace(sync, stage=_stage(sync.stage)) for sync in super().records()]

    def before_step(self, now: Moment, args: tuple[Any, ...]) -> Iterable[Finding]:
        """A step of that function begins."""
        stage = f"{now.stage}{_OF}{self.place}"
        if self._passes(stage):
            return ()
        return self._safely(self._step, replace(now, stage=stage), args)

    before_train_step = before_step

    def _finding(self, now: Moment, at: Any, op: str, cost: list[float]) -> Finding:
        finding = super()._finding(now, at, op, cost)
        stage = _stage(now.stage)
        fact = finding.fact.replace("per step", f"per {spelling(stage).step_words}")
        return replace(finding, stage=stage, fact=fact)

    def _is_due(self, n: int) -> bool:
        return n > _BESIDE and super()._is_due(n - _BESIDE)

    def _is_rare(self, key: Any) -> bool:
        """Whether it was reached in one step alone, or in fewer than half of them."""
        steps = self._reached[key]
        return steps < 2 or 2 * steps < self._watched[self._stage]

    def _findings(self) -> list[Finding]:
        for key, (count, _) in self._sites.items():
            if count > self._counted.get(key, 0):
                self._counted[key] = count
                self._reached[key] += 1
        sites = self._sites
        self._sites = {k: cost for k, cost in sites.items() if not self._is_rare(k)}
        try:
            return super()._findings()
        finally:
            self._sites = sites


def _counts_batches(frame: FrameType | None) -> bool:
    """Whether a batch norm reads how many batches it met, as in `update_bn`: no user's line."""
    while frame is not None and owner_of(frame.f_code.co_filename) != "user":
        if frame.f_code.co_filename.endswith(_COUNTS):
            return True
        frame = frame.f_back
    return False


def _stage(place: str) -> str:
    return place.partition(_OF)[0]
