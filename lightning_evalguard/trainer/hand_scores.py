"""What is logged of the loops over loaders that the user's own code runs inside a fit."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data.dataloader import _BaseDataLoaderIter

from lightning_evalguard.checks.scores.check import ScoresCheck
from lightning_evalguard.checks.scores.hand import HandClaims
from lightning_evalguard.checks.scores.heard import LogCall
from lightning_evalguard.checks.scores.of_batch import is_after_loop, names_of_batch
from lightning_evalguard.confusion.by_batch import LoaderCounts
from lightning_evalguard.confusion.recorder import Recorder
from lightning_evalguard.confusion.result import ConfusionResult
from lightning_evalguard.confusion.sources import Pair
from lightning_evalguard.data import loaders as _loaders
from lightning_evalguard.data.loaders import Fact
from lightning_evalguard.instruments.patch import Wrap
from lightning_evalguard.instruments.variables import variables
from lightning_evalguard.model.tensors import is_metric

_PLACES = 16  # loops that are followed, of a run
_KEY = "val"
_MEANS = 2
_LOSSES = ("cross_entropy", "nll_loss", "binary_cross_entropy_with_logits")


class Locals:
    """The variables of a running function, while they are looked at; what it holds is not kept."""

    __slots__ = ("now",)

    def __init__(self) -> None:
        self.now: dict[str, Any] = {}

    @property
    def __dict__(self) -> dict[str, Any]:  # type: ignore[override]
        """What `vars` gives."""
        return self.now

    def look(self, frame: FrameType) -> None:
        """Read them."""
        self.now = {name: _free(value) for name, value in variables(frame).items()}

    def forget(self) -> None:
        """Hold nothing."""
        self.now = {}


def _free(value: Any) -> Any:
    """A number that keeps no graph alive."""
    if isinstance(value, Tensor) and value.requires_grad:
        return value.detach()
    return value


class WithinReach(nn.Module):
    """Stands for the module and for the metric objects that the loop's function can reach."""

    def __init__(self, root: nn.Module, metrics: Mapping[str, nn.Module]) -> None:
        super().__init__()
        own = list(root.named_modules())
        known = {id(module) for _, module in own}
        others = [(n, m) for n, m in metrics.items() if id(m) not in known]
        vars(self)["_all"] = [*own, *others]

    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Any]]:
        """The module's, and the metrics."""
        yield from vars(self)["_all"]

    def modules(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """The same without names."""
        for _, module in vars(self)["_all"]:
            yield module


class HandRecorder(Recorder):
    """Counts without a graph: a loop of the user's may run with gradients on.

    Attributes:
        means: Losses that are the mean of their batch, of the first batches.
        sums: Those that are not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.means: list[Tensor] = []
        self.sums: list[Tensor] = []

    def see(self, kind: str, name: str, pair: Pair, value: Any = None) -> None:
        if self.is_paused():
            return
        with torch.no_grad():
            if (
                len(self.means) + len(self.sums) < _MEANS
                and kind == "loss"
                and name in _LOSSES
            ):
                with self.paused():
                    self._averaged(name, pair, value)
            super().see(kind, name, pair, value)

    def _averaged(self, name: str, pair: Pair, value: Any) -> None:
        if not isinstance(value, Tensor) or value.numel() != 1:
            return
        mean = getattr(F, name)(pair.preds, pair.target)
        kept = self.means if torch.equal(mean, value.detach()) else self.sums
        kept.append(value.detach().clone())

    def _is_score(self, result: ConfusionResult) -> bool:
        return False  # arrays that nothing says are predictions


@dataclass
class _Place:
    """One loop in the source.

    Attributes:
        claims: Judges what comes of it.
        recorder: Counts what it predicts; None where nothing is to be counted.
        times: How often it ran.
    """

    claims: HandClaims
    recorder: HandRecorder | None
    times: int = 0

    def close(self) -> None:
        """Leave everything as it was."""
        self.claims.close()
        if self.recorder is not None:
            self.recorder.abort()


@dataclass
class _Loop:
    """One run of it.

    Attributes:
        place: The loop.
        code: Of the function in which it stands.
        iterator: The ``id`` of what gives its batches.
        names: Its function's variables.
        batch: The running batch.
        line: Where it fetches.
        ended: Whether it took its last batch.
        left: Whether it was left before the loader had no batch left.
        counted: What it predicted.
    """

    place: _Place
    code: CodeType
    iterator: int
    names: Locals
    batch: Any = None
    line: int = 0
    ended: bool = False
    left: bool = False
    counted: LoaderCounts | None = None


class HandScores:
    """Follows the loops, and what is logged between their end and the next training step.

    A loop is followed the first, second, fourth, eighth, ... time, so that one that runs after each
    batch costs little.

    Args:
        root: The module that is fitted.
        check: Hears what is logged.
        counts: Whether a matrix is counted.
        owners: Gives the user's callbacks, each with what its attributes' names begin with.
        sets: Gives the datasets of the run, each with what it is.
        report: Is given what is found.
        reader: Gives the user's frame that fetches.
        safely: Acts, and lets no error of ours out.
    """

    def __init__(
        self,
        root: nn.Module,
        check: ScoresCheck,
        counts: bool,
        owners: Callable[[], Iterable[tuple[str, Any]]],
        sets: Callable[[], Iterable[tuple[Any, str]]],
        report: Callable[[list[Fact]], None],
        reader: Callable[[FrameType | None], FrameType | None],
        safely: Callable[..., None],
    ) -> None:
        self._root, self._check, self._counts = root, check, counts
        self._owners, self._sets, self._report = owners, sets, report
        self._reader, self._safely = reader, safely
        self._places: dict[tuple[CodeType, int], _Place] = {}
        self._loops: list[_Loop] = []
        self._seen = 0  # loops since training went on
        self._logged: dict[str, list[LogCall]] = {}
        self._fetches: Wrap | None = None
        self._mixed = False  # loops run in each other, or train
        self._known = True  # all that they read is what the Trainer validates on
        self._keys: set[str] = set()  # logged since the first of them
        self._explained: set[str] = (
            set()
        )  # keys of which one loop's numbers gave the value

    def reads(self, frame: FrameType, loader: Any, iterator: Any, known: bool) -> None:
        """The user's code begins to read a loader.

        Args:
            frame: That reads it.
            loader: The loader.
            iterator: What gives its batches.
            known: Whether the Trainer validates on the same samples.
        """
        place = self._place_of(frame)
        self._known &= known
        self._check.hear_beside(self._hear)
        self._leave()
        if place is None or self._mixed:
            return
        names = Locals()
        loop = _Loop(place, frame.f_code, id(iterator), names)
        names.look(frame)
        metrics = dict(_metrics_of([*self._owners(), ("", names)]))
        holder = WithinReach(self._root, metrics)
        owners = [("", self._root), ("", names), *self._owners()]
        batches = _loaders.length(loader) or 0
        place.claims.opens(holder, owners, _loaders.batch_sizes(loader, batches) or ())
        names.forget()
        if place.recorder is not None:
            place.recorder.start(_KEY, holder, [loader])
        self._loops.append(loop)
        if self._fetches is None:
            self._fetches = Wrap(_BaseDataLoaderIter, "__next__", self._fetch)

    def _leave(self) -> None:
        """Another loop begins: those that took not all of their batches were left."""
        for loop in self._loops:
            if not loop.ended and not loop.left:
                loop.left = True
                loop.place.close()

    def _place_of(self, frame: FrameType) -> _Place | None:
        """The loop, where it is followed this time."""
        key = frame.f_code, self._seen
        self._seen += 1
        place = self._places.get(key)
        if place is None and len(self._places) < _PLACES:
            recorder = HandRecorder() if self._counts else None
            place = self._places[key] = _Place(HandClaims(), recorder)
        if place is None:
            return None
        place.times += 1
        if place.times & (place.times - 1):
            return None
        return place

    def _fetch(self, fetch: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        number = id(args[0])  # which a later iterator may have, too
        running = next((o for o in reversed(self._loops) if o.iterator == number), None)
        if running is not None and running.left:
            self._mixed = True
        if running is None or running.ended or running.left:
            return fetch(*args, **kwargs)
        frame = self._reader(sys._getframe(1))
        self._safely(self._done, running, frame)
        try:
            batch = fetch(*args, **kwargs)
        except StopIteration:
            self._safely(self._over, running)
            raise
        self._safely(self._began, running, frame, batch)
        return batch

    def _done(self, loop: _Loop, frame: FrameType | None) -> None:
        """It is done with a batch, if it took one."""
        if frame is not None and frame.f_code is loop.code:
            loop.names.look(frame)
        loop.place.claims.batch_over()
        loop.names.forget()
        recorder = loop.place.recorder
        if recorder is not None and loop.batch is not None:
            with torch.no_grad():
                recorder.after_step(None, loop.batch)
        loop.batch = None

    def _began(self, loop: _Loop, frame: FrameType | None, batch: Any) -> None:
        if loop not in self._loops:  # something failed meanwhile
            return
        loop.batch = batch
        loop.line = loop.line or (frame.f_lineno if frame is not None else 0)
        loop.place.claims.fetched(batch, partial(_of_batch, loop, frame))
        if loop.place.recorder is not None:
            with torch.no_grad():
                loop.place.recorder.before_step(batch)

    def _over(self, loop: _Loop) -> None:
        """It took its last batch."""
        loop.ended = True
        loop.place.claims.over()
        if loop.place.recorder is not None:
            loop.place.recorder.steps_over()
            self._count(loop, loop.place.recorder)

    def _break_off(self, loop: _Loop) -> None:
        """Something is logged before a loop took its last batch: is it over all the same?"""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_code is not loop.code:
            frame = frame.f_back
        if frame is not None and not is_after_loop(frame, loop.line):
            return
        self._done(loop, frame)
        self._over(loop)
        loop.left = True  # should it go on after all

    def _count(self, loop: _Loop, recorder: HandRecorder) -> None:
        with torch.no_grad():
            recorded = recorder.stop()
        result = recorded.results.get(_KEY)
        if result is not None and result.total:
            loop.counted = LoaderCounts(result, recorded.batches[_KEY])

    def _hear(self, heard: LogCall) -> None:
        self._keys.add(heard.key)
        if heard.by_metric or not isinstance(heard.value, (Tensor, float)):
            return
        for loop in self._loops[-1:]:
            if not (loop.ended or loop.left):
                self._safely(self._break_off, loop)
        if any(loop.ended for loop in self._loops):
            self._logged.setdefault(heard.key, []).append(heard)

    def trains(self) -> None:
        """A backward pass runs: what is read meanwhile is trained on, and not evaluated."""
        self._mixed |= any(not (loop.ended or loop.left) for loop in self._loops)

    def over(self) -> None:
        """Training goes on: what was logged since is judged."""
        if not self._seen:
            return
        loops, self._loops = self._loops, []
        mixed, self._mixed = self._mixed, False
        logged, self._logged = self._logged, {}
        keys, self._keys = self._keys, set()
        known, self._known = self._known, True
        self._seen = 0
        self._rest()
        try:
            once = {key: calls[0] for key, calls in logged.items() if len(calls) == 1}
            whole = [loop for loop in loops if loop.ended]
            if whole and not mixed:
                self._judge(whole, once)
        finally:
            for loop in loops:
                loop.place.close()
            if known:
                keys &= self._explained
            self._check.judged_by_hand(keys)

    def leave(self) -> None:
        """Something failed: leave nothing behind."""
        self._loops = []
        self._rest()
        for place in self._places.values():
            place.close()

    def _rest(self) -> None:
        if self._fetches is not None:
            self._fetches.remove()
            self._fetches = None
        self._check.hear_beside(None)

    def _judge(self, loops: list[_Loop], logged: Mapping[str, LogCall]) -> None:
        found: list[Fact] = []
        right: set[str] = set()
        for loop in loops:
            claims = loop.place.claims
            if loop.place.recorder is not None:
                claims.averaged(loop.place.recorder.means)
                claims.summed(loop.place.recorder.sums)
            with torch.no_grad():
                facts = claims.facts(logged, loop.counted, self._lengths)
            found += facts
            self._explained |= claims.explained
            right |= claims.explained - {str(fact.subject) for fact in facts}
        told: dict[str | None, Fact] = {}
        for fact in found:
            if fact.subject not in right:
                told.setdefault(fact.subject, fact._replace(certain=False))
        self._report(list(told.values()))

    def _lengths(self) -> Iterator[tuple[int, str]]:
        for dataset, what in self._sets():
            n = _loaders.length(dataset)
            if n:
                yield n, what


def _of_batch(loop: _Loop, frame: FrameType | None) -> frozenset[str]:
    if frame is None or frame.f_code is not loop.code:
        return frozenset()
    return names_of_batch(frame)


def _metrics_of(owners: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, nn.Module]]:
    """The metric objects that the function and the callbacks hold, by name."""
    for prefix, owner in owners:
        for name, value in list(vars(owner).items()):
            if isinstance(value, nn.Module) and is_metric(value):
                yield from value.named_modules(prefix=prefix + name)


__all__ = ["HandScores"]
