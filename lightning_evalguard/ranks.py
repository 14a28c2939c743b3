"""The ranks of a run come to one verdict, over their process group's own key-value store.

A violation that one rank raises alone leaves the other ranks waiting in a collective forever. So a
rank holds what it finds, and all meet at points that each of them comes to: after the first step of
a kind of evaluation, before its matrices are added up, at its end, after the first training step
that follows, and when the run is over. There each rank adds one to a counter; the last one reads
what was said and writes the verdict, which the others read. That takes a third of an `all_reduce`
on gloo, moves nothing between devices, and cannot hang: a rank that has nothing to do at a point
says so without waiting, one that an exception ended has told the others, and every wait has an end.
"""

from __future__ import annotations

import contextlib
import pickle
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch.distributed as dist

from lightning_evalguard.agreement import (
    CLEAN,
    LATE,
    Agreement,
    Gone,
    packed,
    read_agreement,
    text_of_all,
    unpacked,
)
from lightning_evalguard.report import EvalGuardError, Finding, Report, hidden, warn

__tracebackhide__ = hidden

_T = TypeVar("_T")
# Seconds that a rank waits at a point. Briefly where another may be late for reasons of its own (a
# first batch that takes long, a loader without one): then the next point decides. Long where all
# have the same way behind them.
_BRIEFLY, _LONG = 10.0, 600.0
_PATIENCE = {
    "audit": _BRIEFLY,
    "matrix": _LONG,
    "end": _LONG,
    "train": _BRIEFLY,
    "alarm": _BRIEFLY,
    "close": _BRIEFLY,
}
_EVERY = 50  # training steps between two looks for another rank's alarm
_QUICKLY, _SLOWLY = 5e-5, 0.05  # seconds between two looks at the store, first and last
# seconds that the store's host stays for those who still read the last verdict
_FAREWELL = 5.0
# A point's counter: how many ranks came, how many of them without taking part, how many said
# something.
_ABSENT = 1 << 20
_SAID = 1 << 40


class Alone:
    """One process: what is found is raised on the spot, and there is nobody to wait for."""

    world, rank = 1, 0

    def __init__(self, report: Report | None = None) -> None:
        self._report = report if report is not None else Report()

    def hold(self, findings: Sequence[Finding]) -> None:
        """Raise `findings`, or keep them until all ranks meet.

        Raises:
            EvalGuardError: Where this process is the only one.
        """
        raise EvalGuardError.of(findings, self._report)

    def expect(self, *points: str) -> None:
        """These points come next, on every rank."""

    def meet(self, point: str, content: Any = None) -> dict[int, Any] | None:
        """Come to `point` with `content`, if it is expected, and wait for the others.

        Returns:
            What each rank had to say, None where not all take part.

        Raises:
            EvalGuardError: The same on all ranks, if one of them holds a finding.
        """
        return {0: content}

    def skip(self, point: str) -> None:
        """Do not take part at `point`, without waiting."""

    def trained(self) -> None:
        """A training step is over, before its backward.

        Raises:
            EvalGuardError: As `meet`.
        """

    def leave(self) -> None:
        """An exception ended the run on this rank: tell the others not to wait for it."""


class Ranks(Alone):
    """The processes of one run, each with an equal object.

    Args:
        report: Where notes and the other ranks' findings go.
        rank: This process.
        world: How many there are.
        store: A key-value store that all of them reach, with room of its own for this run.
    """

    def __init__(self, report: Report, rank: int, world: int, store: Any) -> None:
        super().__init__(report)
        self.rank, self.world = rank, world
        self._store = store
        self._held = Report()
        self._ahead: list[str] = []
        self._came = 0
        self._steps = 0
        self._said: list[str] = []  # keys of ours that the others may still read
        self._gone: dict[int, Gone] = {}
        self._apart = False
        self._safely(self._arrive)

    def hold(self, findings: Sequence[Finding]) -> None:
        if self._apart:
            super().hold(findings)
        if not self._ahead and not self._held.findings:
            self._raise_alarm()
        self._held.add(findings)

    def expect(self, *points: str) -> None:
        if self._ahead:
            self.skip(self._ahead[-1])
        self._ahead = list(points)

    def meet(self, point: str, content: Any = None) -> dict[int, Any] | None:
        if point not in self._ahead and not self._apart:
            return None
        if (
            before := self._ahead[: self._ahead.index(point)]
            if point in self._ahead
            else []
        ):
            self.skip(before[-1])
        if self._apart:
            self._stand_alone()
            return None
        self._ahead.pop(0)
        self._came += 1
        return self._heed(str(self._came), point, content)

    def skip(self, point: str) -> None:
        while point in self._ahead and not self._apart:
            skipped = self._ahead.pop(0)
            self._came += 1
            self._safely(lambda skipped=skipped: self._absent(skipped))  # type: ignore[misc]

    def trained(self) -> None:
        self.meet("train")
        self._steps += 1
        if (
            self._steps % _EVERY == 0
            and not self._apart
            and self._safely(self._alarmed)
        ):
            self._heed("alarm", "alarm", None)

    def leave(self) -> None:
        if self._apart:
            return
        for finding in self._held.findings:  # the exception under way hides them
            warn(finding)
        self._go(Gone(self._came + 1, self._held.findings))

    def _go(self, gone: Gone) -> None:
        self._held = Report()
        self._safely(lambda: self._say_goodbye(gone))
        self._apart = True

    # what all heed

    def _heed(self, key: str, point: str, content: Any) -> dict[int, Any] | None:
        verdict = self._safely(lambda: self._settled(key, point, content))
        if verdict is None or verdict.late:
            if verdict is not None and _PATIENCE[point] == _LONG:
                self._part("one of them did not come to the end of an evaluation")
            if self._apart or point == "close":
                self._stand_alone()
            return None
        if verdict.text:
            self._report.add(f for f in verdict.found if f.rank != self.rank)
            self._go(Gone(self._came + 1, verdict.found, verdict.text))
            raise EvalGuardError(verdict.text, self._report)
        if point == "close":
            self._safely(lambda: self._see_off(key))
        if not verdict.all_there:
            return None
        return verdict.contents

    def _stand_alone(self) -> None:
        found = self._held.findings
        self._held = Report()
        if found:
            super().hold(found)

    def _part(self, why: str) -> None:
        """From now on each rank stands for itself."""
        self._apart = True
        self._report.note(
            f"the ranks no longer coordinate findings, because {why}: a finding is raised "
            "where it is seen, and there is no confusion matrix over all ranks"
        )

    def _safely(self, act: Callable[[], _T]) -> _T | None:
        """A store that fails, mostly because its host is gone, ends the agreement, not the run."""
        try:
            return act()
        except (RuntimeError, OSError, pickle.PickleError) as error:
            if not self._apart:
                reason = next(iter(str(error).splitlines()), "")
                self._part(
                    f"their key-value store failed: {type(error).__name__}: {reason}"
                )
            return None

    # the store's side

    def _settled(self, key: str, point: str, content: Any) -> Agreement:
        store = self._store
        said = self._said
        self._said = []
        speaks = content is not None or bool(self._held.findings)
        if speaks:
            self._said = [f"{key}/{self.rank}"]
            store.set(self._said[0], packed((self._held.findings, content)))
        came = store.add(f"{key}/came", 1 + _SAID * speaks)
        if came % _ABSENT >= self._due(key):
            verdict = self._decide(key, came)
        else:
            verdict = self._await(key, _PATIENCE[point])
        if not verdict.late:
            # all have come to this point: they have read what was said before
            for old in said:
                store.delete_key(old)
        return verdict

    def _arrive(self) -> None:
        self._store.add("ranks", 1)

    def _absent(self, point: str) -> None:
        key = str(self._came)
        came = self._store.add(f"{key}/came", 1 + _ABSENT)
        if came % _ABSENT >= self._due(key):
            self._decide(key, came)

    def _await(self, key: str, patience: float) -> Agreement:
        # By short looks, not by a wait of the store's: that prints a warning of its own each time
        # it runs out, keeps Ctrl-C waiting, and cannot see that a rank is gone (torch 2.13).
        store = self._store
        done = f"{key}/done"
        since = time.monotonic()
        pause = _QUICKLY
        while not store.check([done]):
            if pause == _SLOWLY:
                self._see_who_is_gone()
                came = store.add(f"{key}/came", 0)
                if came % _ABSENT >= self._due(key):
                    return self._decide(key, came)
                # on one of them there is no guard
                if store.add("ranks", 0) < self.world:
                    patience = _BRIEFLY
                if time.monotonic() - since > patience:
                    return read_agreement(store.compare_set(done, "", LATE))
            time.sleep(pause)
            pause = min(1.5 * pause, _SLOWLY)
        return read_agreement(store.get(done))

    def _decide(self, key: str, came: int) -> Agreement:
        """The verdict, now that all have come: the first one that is written holds."""
        store = self._store
        findings: list[Finding] = []
        contents: dict[int, Any] = {}
        if came >= _SAID:
            for rank in range(self.world):
                if store.check([f"{key}/{rank}"]):
                    theirs, content = unpacked(store.get(f"{key}/{rank}"))
                    findings += theirs
                    if content is not None:
                        contents[rank] = content
        missing = [gone for gone in self._gone.values() if _is_before(gone.since, key)]
        findings += [f for gone in missing for f in gone.found]
        raised = next((gone.text for gone in missing if gone.text), "")
        all_there = not missing and came % _SAID < _ABSENT
        written = CLEAN
        if findings or contents or not all_there:
            text = raised or (text_of_all(findings, self.world) if findings else "")
            written = packed(Agreement(False, all_there, findings, text, contents))
        verdict = read_agreement(store.compare_set(f"{key}/done", "", written))
        if key.isdigit():
            self._forget(str(int(key) - 1))
        return verdict

    def _forget(self, key: str) -> None:
        self._store.delete_key(f"{key}/came")
        self._store.delete_key(f"{key}/done")

    def _due(self, key: str) -> int:
        return self.world - sum(
            _is_before(gone.since, key) for gone in self._gone.values()
        )

    def _see_who_is_gone(self) -> None:
        if self._store.add("gone", 0) == len(self._gone):
            return
        for rank in range(self.world):
            if rank not in self._gone and self._store.check([f"gone/{rank}"]):
                self._gone[rank] = unpacked(self._store.get(f"gone/{rank}"))

    def _say_goodbye(self, gone: Gone) -> None:
        self._store.set(f"gone/{self.rank}", packed(gone))
        self._store.add("gone", 1)
        # all ranks raise it, those too that did not take part in the verdict
        if gone.text:
            self._go_last("gone", self.world)

    def _see_off(self, key: str) -> None:
        """The last verdict of the run was read."""
        self._store.add(f"{key}/read", 1)
        if self._go_last(f"{key}/read", self._due(key)):
            self._forget(key)
            for counter in (f"{key}/read", "ranks", "gone"):
                self._store.delete_key(counter)

    def _go_last(self, counter: str, due: int) -> bool:
        """Whether this is rank 0, which hosts the store and waits until the others are done."""
        until = time.monotonic() + _FAREWELL
        pause = _QUICKLY
        while (
            self.rank == 0
            and self._store.add(counter, 0) < due
            and time.monotonic() < until
        ):
            time.sleep(pause)
            pause = min(1.5 * pause, _SLOWLY)
        return self.rank == 0

    def _raise_alarm(self) -> None:
        """Nothing is expected, training goes on: tell the others that there is something."""
        self._safely(lambda: self._store.set("alarm", str(self._steps)))

    def _alarmed(self) -> bool:
        """Whether an alarm was raised long enough ago that every rank sees it at this step."""
        store = self._store
        return (
            bool(store.check(["alarm"]))
            and int(store.get("alarm")) <= self._steps - _EVERY
        )


class Gathering(Ranks):
    """The same over collectives, where the process group has no store that can be reached.

    The ranks meet only where none but one that an exception ended can be missing: before matrices
    are added up, and at the end of an evaluation.
    """

    def _settled(self, key: str, point: str, content: Any) -> Agreement:
        if _PATIENCE[point] == _BRIEFLY:
            return Agreement(late=True)
        everyone: list[Any] = [None] * self.world
        findings = self._held.findings if point == "end" else []
        dist.all_gather_object(everyone, (findings, content))
        found = [f for theirs, _ in everyone for f in theirs]
        contents = {r: c for r, (_, c) in enumerate(everyone) if c is not None}
        text = ""
        if found:
            text = text_of_all(found, self.world)
        return Agreement(False, _ABSENT not in contents.values(), found, text, contents)

    def _arrive(self) -> None:
        return

    def _absent(self, point: str) -> None:
        if _PATIENCE[point] == _LONG:
            self._settled("", point, _ABSENT)

    def _see_off(self, key: str) -> None:
        return

    def _say_goodbye(self, gone: Gone) -> None:
        return

    def _raise_alarm(self) -> None:
        return

    def _alarmed(self) -> bool:
        return False


def ranks_of(report: Report, rank: int, world: int) -> Alone:
    """The ranks of a run that `world` processes take part in, this one as `rank`."""
    if world == 1:
        return Alone(report)
    if processes() != world:
        report.note(
            f"{world} processes take part that torch.distributed does not know of: each raises its "
            "own findings and counts its own confusion matrix"
        )
        return Alone(report)
    store = _store(rank)
    if store is None:
        return Gathering(report, rank, world, None)
    return Ranks(report, rank, world, store)


def processes() -> int:
    """How many processes torch.distributed knows of."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    return 1


def _store(rank: int) -> Any:
    """Room for one run in the default process group's store, None where it cannot be reached."""
    try:
        # private, torch 1.8 to 2.13
        store: Any = dist.distributed_c10d._get_default_store()
        # Each rank counts its own runs, so that equal runs get equal numbers.
        number = store.add(f"evalguard/{rank}", 1)
    except (AttributeError, RuntimeError):
        return None
    # not in every torch and store
    with contextlib.suppress(AttributeError, RuntimeError):
        # a connection of its own: NCCL's threads look at the group's
        store = store.clone()
    return dist.distributed_c10d.PrefixStore(f"evalguard/{number}", store)


def _is_before(since: int, key: str) -> bool:
    return not key.isdigit() or since <= int(key)
