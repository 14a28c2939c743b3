"""Does a user's own code keep the best score, or the worst one, or an old one?

A callback or the module itself compares each validation's score with a number that it holds, and
saves the weights. Such a number is known by what it does: after each validation it is the best of
one score so far. What follows the worst one and calls itself the best, or comes with the saved
weights, keeps the wrong model; what is set to the score of the validation before, when weights of
later steps are saved, speaks of others. Who keeps both ends keeps the worst one on purpose.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from lightning_evalguard.checks.selection.aim import ChooserFact
from lightning_evalguard.checks.selection.choosers import Chooser, Desk, number_of
from lightning_evalguard.checks.selection.direction import (
    Direction,
    by_name,
    is_same,
)
from lightning_evalguard.data.batches import is_array
from lightning_evalguard.instruments.patch import Wrap
from lightning_evalguard.instruments.variables import variable

_FEWEST = 3  # validations
_IGNORED = 2  # improvements that were none to it
_NUMBERS = 64  # that one owner holds
_FRAMES = 24
_BEST = re.compile(r"best|record|top_?(?:acc|score|f1)", re.IGNORECASE)
_WORST = re.compile(
    r"worst|lowest|highest|min|max|low|high|bad|hard|first|initial|base"
)
_ENTRY = "_check_save_filelike"  # the first thing that torch.save calls

OwnNumber = tuple[int, str]
"""An owner, by its ``id``, and the name of what it holds."""
AfterEach = list[float | None]
"""A number after each validation; None where it was none."""


class OwnChoosers:
    """What the module and the user's callbacks remember of the scores of one fit.

    Args:
        desk: What is asked of the run.
        told: Says which way a score is better, by its key.

    Attributes:
        due: Whether a validation is over since they were looked at last.
    """

    def __init__(
        self, desk: Desk, told: Callable[[str], Direction | None] = by_name
    ) -> None:
        self._desk, self._told = desk, told
        self.due = False
        self._scores: dict[str, list[float]] = {}
        self._bests: dict[str, list[float]] = {}  # what is logged as the best
        self._sanity: dict[str, float] = {}
        self._steps: list[int] = []
        self._held: dict[OwnNumber, AfterEach] = {}
        self._owners: dict[int, Any] = {}
        self._saved: dict[int, list[int]] = {}  # steps at which an owner saved
        self._reported: set[OwnNumber] = set()
        self._wrap: Wrap | None = None

    def begin(self) -> None:
        """The fit begins: who saves weights is noted from here on."""
        if hasattr(torch.serialization, _ENTRY):
            self._wrap = Wrap(torch.serialization, _ENTRY, self._saves)
        self._look_around()

    def end(self) -> None:
        """The fit is over."""
        if self._wrap is not None:
            self._wrap.remove()
            self._wrap = None
        self._owners.clear()

    def _saves(self, check: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        frame: Any = sys._getframe(1)
        for _ in range(_FRAMES):
            if frame is None:
                break
            own = variable(frame, "self")
            if id(own) in self._owners and self._owners[id(own)] is own:
                self._saved.setdefault(id(own), []).append(self._desk.step())
                break
            frame = frame.f_back
        return check(*args, **kwargs)

    # what is looked at, and when

    def checked(self) -> None:
        """The sanity check logged its scores, which an owner may have taken for the first."""
        self._sanity = self._values()

    def scored(self) -> Iterator[ChooserFact]:
        """A validation logged its scores."""
        now = self._values()
        if self._steps:
            yield from self._stale(now)
        self._steps.append(self._desk.step())
        for key, value in now.items():
            series = self._bests if _BEST.search(key) else self._scores
            series.setdefault(key, []).append(value)
        self._look_around()
        self.due = True

    def _values(self) -> dict[str, float]:
        logged = self._desk.logged()
        held = self._desk.values()
        return {key: value for key, value in held.items() if key in logged}

    def _look_around(self) -> None:
        for owner in self._desk.owners():
            self._owners[id(owner)] = owner

    def look(self) -> Iterator[ChooserFact]:
        """Whoever chooses after a validation has chosen: the next step begins, or the fit ends."""
        self.due = False
        n = len(self._steps)
        for place, value in self._numbers():
            series = self._held.setdefault(place, [None] * (n - 1))
            if len(series) == n - 1:
                series.append(value)
        if n < _FEWEST:
            return
        module = id(self._desk.module())
        logged: dict[OwnNumber, AfterEach] = {
            (module, key): [*held] for key, held in self._bests.items()
        }
        for place, series in (self._held | logged).items():
            if len(series) == n and place not in self._reported:
                yield from self._judge(place, series)

    def _numbers(self) -> Iterator[tuple[OwnNumber, float]]:
        for owner in self._owners.values():
            numbers = 0
            for name, value in _below(owner):
                number = number_of(value)
                if number is not None and numbers < _NUMBERS:
                    numbers += 1
                    yield (id(owner), name), number

    # what it shows

    def _judge(self, place: OwnNumber, held: AfterEach) -> Iterator[ChooserFact]:
        if self._explained(held) or not self._chooses(place, held):
            return
        for key, values in self._scores.items():
            direction = self._told(key)
            if direction is None or len(values) != len(held):
                continue
            if self._follows_worst(key, values, direction, held):
                self._reported.add(place)
                yield self._wrong(place, key, direction)
                return

    def _explained(self, held: AfterEach) -> bool:
        """Whether it is the best of some score so far."""
        for key, values in self._scores.items():
            direction = self._told(key)
            if direction is None or len(values) != len(held):
                continue
            if self._follows(key, values, direction.mode, held):
                return True
        return False

    def _follows(
        self, key: str, values: list[float], mode: str, held: AfterEach
    ) -> bool:
        pick = max if mode == "max" else min
        first = self._sanity.get(key)
        for start in ([], [first] if first is not None else []):
            best = [pick([*start, *values[: k + 1]]) for k in range(len(values))]
            if all(
                h is not None and is_same(h, b) for h, b in zip(held, best, strict=True)
            ):
                return True
        return False

    def _follows_worst(
        self,
        key: str,
        values: list[float],
        direction: Direction,
        held: AfterEach,
    ) -> bool:
        opposite = "min" if direction.mode == "max" else "max"
        if not self._follows(key, values, opposite, held):
            return False
        ignored = 0
        for before, value in zip(held, values[1:], strict=False):
            if before is not None and not is_same(value, before):
                ignored += (value > before) == (direction.mode == "max")
        return ignored >= _IGNORED

    def _chooses(self, place: OwnNumber, held: AfterEach) -> bool:
        """Whether it calls itself the best, or changed whenever its owner saved."""
        name = place[1]
        if _BEST.search(name):
            return not _WORST.search(name)
        changes = {
            self._steps[k] for k in range(len(held)) if k == 0 or held[k] != held[k - 1]
        }
        if _WORST.search(name) or len(changes) < 2:
            return False
        siblings = [h for p, h in self._held.items() if p[0] == place[0] and p != place]
        if any(len(h) == len(held) and self._explained(h) for h in siblings):
            return False
        saved = set(self._saved.get(place[0], ()))
        return changes <= saved and not saved.issuperset(self._steps)

    def _stale(self, now: dict[str, float]) -> Iterator[ChooserFact]:
        """What took the score of the validation before, and saved later weights under it."""
        last = self._steps[-1]
        step = self._desk.step()
        if step <= last:
            return
        for place, value in self._numbers():
            series = self._held.get(place)
            saved = self._saved.get(place[0], ())
            if not series or series[-1] == value or place in self._reported:
                continue
            if not any(last < at <= step for at in saved):
                continue
            for key, values in self._scores.items():
                direction = self._told(key)
                fresh = now.get(key)
                if direction is None or fresh is None or is_same(value, fresh):
                    continue
                if is_same(value, values[-1]) and _is_best(values, direction.mode):
                    self._reported.add(place)
                    yield self._old(place, key, direction, step - last)
                    break

    def _wrong(self, place: OwnNumber, key: str, direction: Direction) -> ChooserFact:
        chooser = self._chooser(place, key, direction)
        highest = direction.mode == "max"
        best, worst = ("highest", "lowest") if highest else ("lowest", "highest")
        begins = '-float("inf")' if highest else 'float("inf")'
        return (
            chooser,
            f"`{place[1]}` of {chooser.name} takes its {worst} value for the best, expected the "
            f"{best}: {direction.why}",
            f"Let `{place[1]}` begin at `{begins}`, and replace it where `{key}` is "
            f"{'higher' if highest else 'lower'}.",
        )

    def _old(
        self, place: OwnNumber, key: str, direction: Direction, steps: int
    ) -> ChooserFact:
        chooser = self._chooser(place, key, direction)
        age = "1 step older" if steps == 1 else f"{steps} steps older"
        return (
            chooser,
            f"is {age} than the weights that {chooser.name} saves under it, expected one of those",
            f"Compare `{key}` and save in `on_validation_end`, before the next step.",
        )

    def _chooser(self, place: OwnNumber, key: str, direction: Direction) -> Chooser:
        owner = self._owners[place[0]]
        name = type(owner).__name__
        return Chooser(name, "checkpoint", key, direction.mode, 1, owner)


def _is_best(values: list[float], mode: str) -> bool:
    pick = max if mode == "max" else min
    return values[-1] == pick(values)


def _below(owner: Any) -> Iterator[tuple[str, Any]]:
    """What an owner holds under a name, also in its dictionaries."""
    for name, value in list(vars(owner).items()):
        if isinstance(value, dict) and not name.startswith("_"):
            for key, inner in list(value.items())[:_NUMBERS]:
                if isinstance(key, str):
                    yield f"{name}[{key!r}]", inner
        elif isinstance(value, (int, float, Tensor)) or is_array(value):
            yield name, value
