"""Does a chooser keep the better score, or the worse one?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from lightning_evalguard.checks.selection.choosers import Chooser, Desk, LoggedNow
from lightning_evalguard.checks.selection.direction import (
    UNSAID,
    Direction,
    by_matrix,
    by_name,
    is_of_test,
    is_same,
    words,
)

_SURE = 30  # samples from which on a value that equals a score is no coincidence
_KEYS = 32  # whose values are looked at, of those with a name that tells nothing
_LEARNS = 3  # evaluations
_LOWERED = "training makes small"
_SIMPLE = frozenset((0.0, 1.0, -1.0, 0.5, 100.0))

ChooserFact = tuple[Chooser, str, str]
"""Who chooses wrongly, what is so, and what to do."""


class Aim:
    """Judges each chooser once by the name of its score, and once by what the score is."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._named: set[tuple[int, str | None, str]] = set()
        self._settled: set[tuple[int, str | None, str]] = set()
        self._matched: dict[str, tuple[str, float]] = {}
        self._learnt = 0
        self._told: dict[
            str, Direction | None
        ] = {}  # by value, of keys whose name tells nothing

    def by_name(self) -> Iterator[ChooserFact]:
        """What the names of the monitored scores say, of choosers that are new."""
        for chooser in self._desk.choosers():
            identity = id(chooser.itself), chooser.key, chooser.mode
            if identity in self._named or not _chooses(chooser):
                continue
            self._named.add(identity)
            assert chooser.key is not None
            if chooser.kind != "schedule" and is_of_test(chooser.key):
                yield _of_test(chooser)
            direction = by_name(chooser.key)
            if direction is not None and direction.mode != chooser.mode:
                self._settled.add(identity)
                yield _wrong(chooser, direction)

    def by_value(self) -> Iterator[ChooserFact]:
        """What the scores of this evaluation are, of choosers that no name settled."""
        logged = self._desk.logged()
        for chooser in self._desk.choosers():
            key = chooser.key
            identity = (id(chooser.itself), chooser.key, chooser.mode)
            if identity in self._settled or not _chooses(chooser):
                continue
            if key is None or key not in logged:
                continue
            direction = self._direction(key, logged[key])
            if direction is None:
                continue
            self._settled.add(identity)
            if direction.mode != chooser.mode:
                yield _wrong(chooser, direction)

    def told(self, key: str) -> Direction | None:
        """What a key's name says, or what its values showed so far."""
        return by_name(key) or self._told.get(key)

    def learn(self) -> None:
        """An evaluation logged its scores: what are those whose names tell nothing?"""
        self._learnt += 1
        if self._learnt > _LEARNS:
            return
        for key, logged in self._desk.logged().items():
            if by_name(key) is not None or self._told.get(key) is not None:
                continue
            if key in self._told or len(self._told) < _KEYS:
                self._told[key] = self._direction(key, logged)

    def by_hand(self) -> Iterator[ChooserFact]:
        """What schedules that are stepped by hand go by: the one clear score that is their best."""
        for chooser in self._desk.choosers():
            identity = id(chooser.itself), chooser.key, chooser.mode
            best = chooser.best
            if chooser.kind != "schedule" or chooser.key is not None or best is None:
                continue
            if identity in self._settled or best in _SIMPLE:
                continue
            same = [
                key
                for key, value in self._desk.values().items()
                if is_same(value, best)
            ]
            clear = {
                key: direction
                for key in same
                if (direction := by_name(key)) is not None
            }
            if len({direction.mode for direction in clear.values()}) == 1:
                self._settled.add(identity)
                key, direction = next(iter(clear.items()))
                if direction.mode != chooser.mode:
                    yield _wrong(replace(chooser, key=key), direction)

    def _direction(self, key: str, logged: LoggedNow) -> Direction | None:
        if logged.higher_is_better is not None:
            mode, better = (
                ("max", "higher") if logged.higher_is_better else ("min", "lower")
            )
            why = f"it is a torchmetrics `{logged.metric}`, of which {better} is better"
            return Direction("max" if mode == "max" else "min", why)
        value = self._desk.value(key)
        if value is None or value != value:
            return None
        lost = self._as_loss(key)
        if lost is not None:
            return lost
        results = self._desk.results()
        for result in results.values():
            direction = by_matrix(value, result.scores)
            if direction is not None:
                if not self._sure(key, direction, value, result.total):
                    return None
                return direction
        if by_name(key) is None and value not in _SIMPLE:
            return self._as_other(key, value)
        return None

    def _as_loss(self, key: str) -> Direction | None:
        """The direction of a loss that training makes small, where a key's words say no other."""
        loss = self._desk.minimised().get(key)
        if loss is None or by_name(key) is not None or UNSAID.intersection(words(key)):
            return None
        if loss.sign < 0:
            return Direction(
                "max", f"its value is the opposite of {loss.text}, which {_LOWERED}"
            )
        return Direction("min", f"its value is {loss.text}, which {_LOWERED}")

    def _sure(self, key: str, direction: Direction, value: float, samples: int) -> bool:
        """Whether a value is a score, or only happens to equal one in a small set."""
        if samples >= _SURE:
            return True
        what = direction.why.rpartition(", is ")[2]
        earlier = self._matched.setdefault(key, (what, value))
        return earlier[0] == what and earlier[1] != value

    def _as_other(self, key: str, value: float) -> Direction | None:
        """The direction of another key whose name tells and whose value is the same."""
        for other, theirs in self._desk.values().items():
            direction = by_name(other)
            if other != key and direction is not None and is_same(value, theirs):
                better = "lower"
                if direction.mode == "max":
                    better = "higher"
                why = f"its value, {value:.4f}, is that of `{other}`, of which {better} is better"
                return Direction(direction.mode, why)
        return None


def _chooses(chooser: Chooser) -> bool:
    return chooser.key is not None and not (
        chooser.kind == "checkpoint" and chooser.keeps == 0
    )


def _wrong(chooser: Chooser, direction: Direction) -> ChooserFact:
    highest = direction.mode == "max"
    best, worst = ("highest", "lowest") if highest else ("lowest", "highest")
    rises, falls = ("rises", "falls") if highest else ("falls", "rises")
    if chooser.kind == "checkpoint":
        fact = f"{chooser.written} takes its {worst} value for the best, expected the {best}"
        if chooser.keeps == -1:
            fact += ' (every checkpoint is kept, but `ckpt_path="best"` loads that one)'
    elif chooser.kind == "stop":
        fact = (
            f"{chooser.written} stops when it no longer {falls}, "
            f"expected when it no longer {rises}"
        )
    else:
        fact = (
            f"{chooser.written} lowers the rate when it no longer {falls}, "
            f"expected when it no longer {rises}"
        )
    return (
        chooser,
        f"{fact}: {direction.why}",
        f"Pass `{chooser.with_mode(direction.mode)}`.",
    )


def _of_test(chooser: Chooser) -> ChooserFact:
    verb = "ends training"
    if chooser.kind == "checkpoint":
        verb = "keeps checkpoints"
    fact = f"{chooser.name} {verb} by a score of the test set, expected the validation set's"
    remedy = (
        f"Pass `{chooser.name}(monitor=...)` a score of the validation set: a test set that chose "
        "says nothing about new samples."
    )
    return chooser, fact, remedy


def matrix_score(value: float, results: Mapping[str, object]) -> tuple[str, str] | None:
    """The matrix and the name of the score that a monitored value is; None where it is none."""
    for stage, result in results.items():
        scores: Mapping[str, float] = getattr(result, "scores", {})
        for name, score in scores.items():
            if "/" not in name and is_same(value, score):
                return stage, name
    return None
