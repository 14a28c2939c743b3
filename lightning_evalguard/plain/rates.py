"""Does a pass over a training set train anything, or is each of its steps taken at a rate of 0?"""

from __future__ import annotations

import sys
from typing import Any

from lightning_evalguard.checks.check import Moment
from lightning_evalguard.checks.weights.rates import FEWEST_STEPS, NO_RATE, at_zero
from lightning_evalguard.checks.weights.words import weights_finding
from lightning_evalguard.instruments.source import Site, site_of
from lightning_evalguard.plain.frames import user_frame
from lightning_evalguard.plain.window import Loop
from lightning_evalguard.report import Finding


class PassRates:
    """Follows the learning rates of one pass after the other; reports once.

    A pass in which any optimizer has another rate is not followed further.
    """

    def __init__(self) -> None:
        self._loop: Loop | None = None
        self._idle = self._reported = False
        self._steps = 0
        self._names: list[str] = []
        self._site: Site | None = None

    def step(self, optimizer: Any, loop: Loop | None) -> None:
        """An optimizer is about to make a step."""
        if loop is not self._loop:
            self._loop = loop
            self._steps = 0
            self._names = []
            self._idle = loop is not None and not self._reported
        if not self._idle:
            return
        self._idle = at_zero([optimizer])
        if not self._idle:
            return
        self._steps += 1
        if self._steps == 1:
            user = user_frame(sys._getframe(1))
            self._site = site_of(user) if user is not None else None
        name = type(optimizer).__name__
        if name not in self._names:
            self._names.append(name)

    def over(self, loop: Loop) -> list[Finding]:
        """A pass is over."""
        if loop is not self._loop or not self._idle or self._steps < FEWEST_STEPS:
            return []
        self._loop, self._reported = None, True
        fact = (
            f"{' and '.join(self._names)} had a learning rate of 0 in all {self._steps} steps of "
            "a pass over the training set: nothing was learned in it"
        )
        now = Moment("fit", fitting=True)
        return [weights_finding(now, fact, NO_RATE, site=self._site, certain=False)]
