"""Does training draw the same random numbers with and without the evaluations in it?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from lightning_evalguard.checks.check import Check, Moment
from lightning_evalguard.instruments.generators import Generators
from lightning_evalguard.instruments.source import Site
from lightning_evalguard.report import Finding
from lightning_evalguard.stages import is_sanity_check


class RngCheck(Check):
    """The `rng` check: every shared generator stands after an evaluation where it stood before.

    Shared are torch's default generators on each device, python's and numpy's. Lightning puts them
    back after the sanity check itself.

    Args:
        restore: Put them back at the end of each evaluation, also when an exception ends it, and
            find nothing. This is ``rng="fix"``.
    """

    name = "rng"

    def __init__(self, restore: bool = False) -> None:
        self._restore = restore
        self._at_start: list[Generators] = []
        self._before: Generators | None = None
        self._steps: set[str] = set()
        self._named: dict[str, Site] = {}

    def open(self, root: nn.Module, now: Moment) -> Iterable[Finding]:
        self._at_start.clear()
        self._named.clear()
        return ()

    def standing(self) -> Mapping[str, Any]:
        if self._restore:
            return {}
        return Generators.capture().values()

    def start(self, now: Moment) -> Iterable[Finding]:
        self._steps = set()
        self._at_start.append(Generators.capture())
        return ()

    def before_step(self, now: Moment, args: tuple[Any, ...]) -> Iterable[Finding]:
        self._before = None if self._restore else Generators.capture()
        return ()

    def after_step(self, now: Moment, outputs: Any) -> Iterable[Finding]:
        if self._before is not None:
            self._steps.update(Generators.capture().moved(self._before))
            self._before = None
        return ()

    def stop(self, now: Moment, error: BaseException | None) -> Iterable[Finding]:
        self._before = None
        if not self._at_start:
            return ()
        at_start = self._at_start.pop()
        if self._restore:
            at_start.restore()
            return ()
        if error is not None or is_sanity_check(now.stage):
            return ()
        moved = Generators.capture().moved(at_start)
        # a line that was named once stands for the evaluations that are not followed
        self._named |= {g: self.lines[g] for g in moved if g in self.lines}
        return [_finding(g, g in self._steps, now, self._named.get(g)) for g in moved]


_NAMES = {"torch": "torch's", "python": "Python's", "numpy": "NumPy's"}


def _finding(
    generator: str, by_a_step: bool, now: Moment, site: Site | None
) -> Finding:
    fact = f"the evaluation moved {_NAMES[generator]} global generator"
    remedy = "Draw from a generator of its own"
    if by_a_step:
        fact += " in its steps"
    elif generator == "torch" and site is None:
        fact += " outside its steps (each `iter(DataLoader)` draws a base seed)"
        remedy = "Give the loader a `generator=` of its own"
    return Finding(
        check="rng",
        stage=now.stage,
        fact=f"{fact}, expected training to draw the same numbers with and without it",
        remedy=f'{remedy}, or pass rng="fix".',
        location=site.location if site else None,
        expression=site.expression if site else None,
        function=site.function if site else None,
        epoch=now.epoch,
        step=now.step,
        rank=now.rank,
    )
