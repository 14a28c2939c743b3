"""Is the evaluation set the same each time, counted once, and apart from training?"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol

import torch
from torch import nn

from lightning_evalguard.checks.check import Check, Moment
from lightning_evalguard.data import loaders as _loaders
from lightning_evalguard.data.loaders import Evaluated, Fact, Part
from lightning_evalguard.data.samples import (
    Budget,
    Sketch,
    content,
    digest,
    rows,
    sketch,
    twins,
    undisturbed,
)
from lightning_evalguard.instruments.source import owner_of, site_at
from lightning_evalguard.report import Finding

_SKETCHES = 2  # batches: as many as a sanity check has
_READS = 16  # samples read twice
_SHARE = 0.02  # of the evaluation's own time is spent on reading
_AT_FIRST = 0.03  # seconds more, once a run: small sets are read to their end at once
_QUERIES = 2048  # evaluated samples to look for
_HASHED = 20_000  # training samples whose hashes are kept
_FEW = 3  # as many may be equal by chance
_LOADER = {"sanity_check": "val", "validate": "val", "test": "test"}


class Loop(Protocol):
    """What the check asks of the loop that runs the evaluation."""

    def evaluated(self) -> Evaluated:
        """The loaders of the running evaluation, and those of training."""


@dataclass
class _Set:
    """One loader of one stage, over all evaluations of a run."""

    loader: Any
    name: str
    order: _loaders.Order
    location: str | None
    kind: str
    places: list[int] = field(default_factory=list)  # samples to read twice
    varies: bool = False  # told already: other samples or another order each time
    known: list[Sketch] = field(default_factory=list)
    sketches: list[Sketch] = field(default_factory=list)
    batches: int = 0
    gave: int = 0  # batches, at most, in one evaluation

    def fact(self, fact: str, remedy: str, certain: bool = True) -> Fact:
        return Fact(fact, remedy, self.name, self.kind, self.location, certain)


class DataCheck(Check):
    """The `data` check: the same samples each time, each once, apart from training.

    Loaders are judged by what they say of themselves; the first batches of two evaluations are
    compared as the steps get them; a few samples are read twice, outside of the steps, where the
    loader reads them in this process too. Everything that reading moves is put back, and it takes
    at most a fiftieth of the evaluation's own time, and 30 ms more, once.

    Args:
        loop: What the loop says.
    """

    name = "data"

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
        self._sets: dict[tuple[str, int], _Set] = {}
        self._leaks: dict[tuple[int, int], _Leak] = {}
        self._said: set[tuple[str | None, str]] = set()
        self._evaluated: Evaluated | None = None
        self._steps = self._returned = 0
        self._opaque = False
        self._broke_at: str | None = None
        self._began = 0.0
        self._allowance = _AT_FIRST

    def start(self, now: Moment) -> Iterable[Finding]:
        self._evaluated = None
        self._steps = self._returned = 0
        self._opaque = False
        self._broke_at = None
        self._began = time.perf_counter()
        return ()

    def before_step(self, now: Moment, args: tuple[Any, ...]) -> Iterable[Finding]:
        self._steps += 1
        self._opaque = not args or isinstance(args[0], Iterator)  # a step that fetches for itself
        if now.rank or now.stage not in _LOADER:
            return ()
        facts: list[Fact] = []
        if self._evaluated is None:
            facts = self._begin(now)
        one = self._sets.get((_LOADER[now.stage], now.dataloader))
        if one is not None and not self._opaque:
            if one.batches < _SKETCHES and not one.varies:
                one.sketches.append(sketch(args[0]))
            one.batches += 1
        return self._findings(now, facts)

    def after_step(self, now: Moment, outputs: Any) -> Iterable[Finding]:
        self._returned += 1
        return ()

    def broke_off(self, trace: TracebackType | None) -> Iterable[Finding]:
        """A step raised StopIteration, which its loop takes for the end of the data."""
        self._broke_at = _raised_at(trace)
        return ()

    def stop(self, now: Moment, error: BaseException | None) -> Iterable[Finding]:
        spent = time.perf_counter() - self._began
        if error is not None:
            return ()
        facts = self._broken_off(now)
        if not now.rank and now.stage in _LOADER:
            if self._evaluated is None:
                facts += self._begin(now)  # no step ran
            whole = not facts
            mine = [s for (stage, _), s in self._sets.items() if stage == _LOADER[now.stage]]
            for one in mine:
                facts += self._same_as_before(one, now, whole)
            facts += self._by_reading(mine, now, spent)
        return self._findings(now, facts)

    # the same each time

    def _begin(self, now: Moment) -> list[Fact]:
        """The loaders of this evaluation, and what is plain from them alone."""
        told = self._evaluated = self._loop.evaluated()
        stage, facts = _LOADER[now.stage], []
        for i, loader in enumerate(told.loaders):
            one = self._sets.get((stage, i))
            if one is None or one.loader is not loader:
                one = self._sets[stage, i] = _set_of(loader, stage, i, len(told.loaders))
                facts += list(_plain_facts(one, told))
                one.varies |= one.order in ("shuffled", "drawn")
            one.batches, one.sketches = 0, []
        facts += _combined(told, f"{stage}_dataloader")
        return facts

    def _same_as_before(self, one: _Set, now: Moment, whole: bool) -> list[Fact]:
        """Compare what this evaluation got with what the one before got."""
        found = []
        streams = _loaders.is_iterable_style(one.loader)
        if whole and not self._opaque and one.gave and not one.batches:
            found.append(
                one.fact(
                    f"gave no batch, expected {one.gave} as in the evaluation before: it does not "
                    "start over",
                    "Start anew in each call of `__iter__`.",
                )
            )
        elif not one.varies and not all(map(Sketch.same, one.known, one.sketches)):
            one.varies = True
            if streams:
                said, mend = "it does not start over", "Start anew in each call of `__iter__`"
            else:
                said = "its samples, its collate function or a transfer hook is random"
                mend = "Keep random transforms out of evaluation, or draw from a seeded generator"
            found.append(
                one.fact(
                    "gave other samples in its first batches than in the evaluation before, "
                    f"expected the same each time: {said}",
                    f"{mend}.",
                    certain=not streams,
                )
            )
        if len(one.sketches) > len(one.known):
            one.known = one.sketches
        one.gave, one.sketches = max(one.gave, one.batches), []
        return found

    # what reading tells

    def _by_reading(self, sets: Sequence[_Set], now: Moment, spent: float) -> list[Fact]:
        budget = Budget(max(self._allowance, _SHARE * spent))
        found = self._read(sets, now, spent, budget)
        self._allowance -= budget.spent()
        return found

    def _read(self, sets: Sequence[_Set], now: Moment, spent: float, budget: Budget) -> list[Fact]:
        found = []
        for one in sets:
            if one.places and not one.varies:
                found += self._read_twice(one, budget, spent)
            elif one.loader is not None and not now.fitting and _workers(one.loader):
                self._note(
                    f"the samples of `{one.name}` were not read twice, because its workers read "
                    "them"
                )
        if now.stage == "sanity_check" or self._evaluated is None or self._evaluated.debugging:
            return found
        for one in sets:
            for loader in self._evaluated.training:
                leak = self._leaks.get((id(one), id(loader)))
                if leak is None:
                    leak = self._leaks[id(one), id(loader)] = _Leak(one, loader)
                found += leak.look(budget)
                if leak.why_not:
                    self._note(leak.why_not)
        return found

    def _read_twice(self, one: _Set, budget: Budget, spent: float) -> list[Fact]:
        dataset = one.loader.dataset
        each = spent / max(1, one.gave * (getattr(one.loader, "batch_size", None) or 1))
        with undisturbed(dataset):
            while one.places:
                at = time.perf_counter()
                if budget.over() or each > 0.1:
                    break
                place = one.places.pop()
                try:
                    same = digest(dataset[place]) == digest(dataset[place])
                except Exception as error:  # noqa: BLE001 - a dataset that cannot be read so
                    one.places.clear()
                    self._note(
                        f"the samples of `{one.name}` were not read twice: "
                        f"{type(error).__name__}: {error}"
                    )
                    break
                if not same:
                    one.varies, one.places = True, []
                    return [
                        one.fact(
                            f"sample {place} read twice differs, expected the same evaluation set "
                            "each time",
                            "Keep random transforms out of the evaluation's dataset.",
                        )
                    ]
                each = (time.perf_counter() - at) / 2
        return []

    # counted once

    def _broken_off(self, now: Moment) -> list[Fact]:
        if self._steps == self._returned or self._opaque:
            return []
        expected = ""
        if self._evaluated is not None:
            total = sum(self._evaluated.limits)
            expected = f" of {int(total)}" if total < float("inf") else ""
        return [
            Fact(
                f"the step raised StopIteration, which ended the evaluation after "
                f"{self._returned}{expected} batches without a word",
                "Catch it in the step: give `next()` a default, or loop over `itertools.cycle`.",
                location=self._broke_at,
            )
        ]

    # saying it

    def _note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)

    def _findings(self, now: Moment, facts: Iterable[Fact]) -> list[Finding]:
        found = []
        for fact in facts:
            key = fact.subject, fact.fact
            if key in self._said:
                continue
            self._said.add(key)
            found.append(
                Finding(
                    check="data",
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
            )
        return found


def _set_of(loader: Any, stage: str, i: int, n: int) -> _Set:
    dataset = getattr(loader, "dataset", loader)
    order = _loaders.order(loader)
    one = _Set(
        loader,
        f"{stage}_dataloader[{i}]" if n > 1 else f"{stage}_dataloader",
        order,
        _loaders.dataset_source(dataset),
        type(dataset).__name__,
    )
    length = _loaders.length(dataset) or 0
    if length and not _workers(loader) and order in ("fixed", "shuffled"):
        # First the ends and the middle: pop() takes from the end.
        spread = [_spread(k, length) for k in range(min(_READS, length))]
        one.places = [*reversed(spread), length - 1, 0]
        sampler = _loaders.sampler_of(loader)
        if hasattr(sampler, "indices"):
            picked = list(sampler.indices)
            one.places = [int(picked[p % len(picked)]) for p in one.places if picked]
    return one


def _workers(loader: Any) -> int:
    return int(getattr(loader, "num_workers", 0) or 0)


def _plain_facts(one: _Set, told: Evaluated) -> Iterator[Fact]:
    """What a loader says of itself."""
    lost, of = _loaders.dropped(one.loader)
    batches = _loaders.length(one.loader)
    keyword, value = told.setting or ("", 1.0)
    taken = value if isinstance(value, int) else int(value * (batches or 0))
    cut = bool(keyword and batches and taken < batches and not told.debugging)
    sampler = type(_loaders.sampler_of(one.loader)).__name__
    if one.order == "drawn":
        yield one.fact(
            f"{sampler} draws other samples for each evaluation, expected the same each time",
            "Evaluate all samples in order: leave out the sampler.",
        )
    elif one.order == "shuffled" and (cut or lost):
        why = "drop_last=True" if lost else f"{keyword}={value:g}"
        yield one.fact(
            f"{sampler} with {why} leaves out other samples in each evaluation, expected the same "
            "each time",
            "Pass shuffle=False, or `Subset(dataset, indices)` instead of a sampler.",
        )
    elif one.order == "shuffled":
        yield one.fact(
            f"{sampler} gives the samples in another order each time, and draws from the "
            "generators that training draws from",
            "Pass shuffle=False, or `Subset(dataset, indices)` instead of a sampler.",
            certain=False,
        )
    if lost and one.order not in ("drawn", "shuffled"):
        yield one.fact(
            f"drop_last=True leaves out the last {lost} of {of} samples, expected all of them",
            "Pass drop_last=False.",
        )
    if cut and isinstance(value, float) and one.order != "shuffled":
        yield one.fact(
            f"{keyword}={value:g} evaluates {taken} of {batches} batches, expected all of them",
            f"Pass {keyword}=1.0.",
            certain=False,
        )
    twice, of, ranks = _loaders.repeated(one.loader)
    if twice * 1000 >= of > 0:
        yield one.fact(
            f"DistributedSampler repeats {twice} of {of} samples so that each of {ranks} ranks has "
            "as many: means of self.log count them twice",
            "Take the scores of the confusion matrix, which counts each once, or evaluate on one "
            "device.",
            certain=False,
        )


def _combined(told: Evaluated, name: str) -> Iterator[Fact]:
    """Several loaders that run side by side."""
    batches = [_loaders.length(loader) for loader in told.loaders]
    known = [b for b in batches if b is not None]
    if len(known) < 2 or told.mode not in ("min_size", "max_size_cycle"):
        return
    least, most = min(known), max(known)
    if least == most or told.debugging:
        return
    if told.mode == "min_size":
        fact = f"mode 'min_size' stops after {least} batches and leaves out the rest of {most}"
    else:
        fact = f"mode 'max_size_cycle' repeats a loader of {least} batches until {most} are done"
    yield Fact(
        f"{fact}, expected each sample once",
        "Pass the loaders as a list, or mode='max_size'.",
        name,
        "CombinedLoader",
    )


def _raised_at(trace: TracebackType | None) -> str | None:
    """The innermost line of the user's own that an exception passed."""
    found = None
    while trace is not None:
        code = trace.tb_frame.f_code
        if owner_of(code.co_filename) == "user":
            found = site_at(code, trace.tb_lasti, trace.tb_lineno).location
        trace = trace.tb_next
    return found


# --- apart from training ------------------------------------------------------------------------


class _Leak:
    """Looks for the samples of one evaluated set in one training set.

    First by index, where both lie in one dataset: exact, and nothing is read. Then by the rows or
    file names that the datasets hold. Else by reading samples in this process, a few more after
    each evaluation; not where training's are random, nor where workers read them. Plain samples
    that are equal within the training set itself are equal by nature.
    """

    def __init__(self, one: _Set, training: Any) -> None:
        self._one, self._training = one, training
        self._parts = [(a, b) for a in _loaders.parts(one.loader) for b in _loaders.parts(training)]
        self._done = not self._parts
        self.why_not = ""
        self._evaluated: dict[bytes, tuple[int, bool]] | None = None
        self._seen: Counter[bytes] = Counter()
        self._next = 0

    def look(self, budget: Budget) -> list[Fact]:
        """Look for as long as that; may be called again."""
        if self._done:
            return []
        for by in (self._by_index, self._by_rows):
            if self._evaluated is None and (found := by(budget)):
                self._done = True
                return found
        if self._done or (self._evaluated is None and not self._can_read()):
            self._done = True
            return []
        with undisturbed(self._one.loader.dataset, self._training.dataset):
            try:
                return self._by_reading(budget)
            except Exception as error:  # noqa: BLE001 - a dataset that cannot be read so
                self._done = True
                self.why_not = (
                    f"the samples of `{self._one.name}` were not compared with training's: "
                    f"{type(error).__name__}: {error}"
                )
                return []

    def _by_index(self, budget: Budget) -> list[Fact]:
        places = [_loaders.shared(a, b) for a, b in self._parts]
        return self._fact(sorted(set(torch.cat(places).tolist())), "are the training set's too")

    def _by_rows(self, budget: Budget) -> list[Fact]:
        compared, places = False, []
        for a, b in self._parts:
            mine, theirs = _rows_of(a), _rows_of(b)
            if a.root is b.root or mine is None or theirs is None:
                continue
            compared = True
            queries = mine.some(_QUERIES)
            hit = twins(queries, theirs, 1, budget)
            if not bool(hit.any()):
                continue
            natural = twins(theirs.some(_QUERIES), theirs, 2, budget).double().mean()
            particular = sum(map(queries.rich, queries.chosen[hit].tolist()))
            if _is_leak(int(hit.sum()), particular, len(hit), float(natural)):
                at = a.at[:: max(1, -(-len(a.at) // _QUERIES))]
                places += at[hit].tolist()
        self._done = compared
        return self._fact(sorted(set(places)), "stand in the training set too")

    def _can_read(self) -> bool:
        both = (self._one.loader, self._training)
        if self._one.varies or any(map(_workers, both)):
            if not self._one.varies:
                self.why_not = (
                    f"the samples of `{self._one.name}` were not compared with training's, because "
                    "workers read them"
                )
            return False
        return all(hasattr(type(loader.dataset), "__getitem__") for loader in both)

    def _by_reading(self, budget: Budget) -> list[Fact]:
        dataset, training = self._one.loader.dataset, self._training.dataset
        n, m = len(dataset), len(training)
        if self._evaluated is None:
            if digest(training[0]) != digest(training[0]):
                self._done = True  # augmented: no sample of it comes back
                return []
            self._evaluated = {}
        ours = self._evaluated
        while len(self._seen) < _HASHED and self._next < max(n, m):
            if budget.over():
                break
            # In step, so that copies in one order meet.
            k, self._next = self._next, self._next + 1
            at = _spread(k, n)
            if k < n and len(ours) < _QUERIES and (held := content(dataset[at])) is not None:
                ours.setdefault(held[0], (at, held[1]))
            if k < m and (held := content(training[_spread(k, m)])) is not None:
                self._seen[held[0]] += 1
        else:
            self._done = True
        total = self._seen.total()
        hits = [held for hashed, held in ours.items() if hashed in self._seen]
        natural = sum(n for n in self._seen.values() if n > 1) / max(1, total)
        if not _is_leak(len(hits), sum(rich for _, rich in hits), len(ours), natural):
            return []
        self._done = True
        return self._fact(sorted(at for at, _ in hits), "stand in the training set too")

    def _fact(self, places: Sequence[int], said: str) -> list[Fact]:
        if not places:
            return []
        few = ", ".join(map(str, places[:3])) + (", ..." if len(places) > 3 else "")
        n = _loaders.length(self._one.loader.dataset)
        which = f"sample {few}" if len(places) == 1 else f"samples {few}"
        return [
            self._one.fact(
                f"{len(places)} of its {n} samples {said} ({which}), expected none",
                "Split once, before anything is drawn or repeated, and evaluate what training does "
                "not see.",
            )
        ]


def _spread(k: int, n: int) -> int:
    """The k-th of `n` places, each once, consecutive ones far apart."""
    step = max(1, int(n * 0.6180339887498949))
    while math.gcd(step, n) > 1:
        step += 1
    return k * step % n


def _rows_of(part: Part) -> Any:
    return rows(part.root, part.indices)


def _is_leak(hits: int, particular: int, of: int, natural: float) -> bool:
    """Whether so many equal samples are more than such data has by nature.

    Args:
        hits: Evaluated samples that stand in the training set.
        particular: Those that are not equal by chance.
        of: Samples looked for.
        natural: The share of training samples that stand in their own set a second time.
    """
    if not natural:
        return hits >= _FEW
    return particular >= max(_FEW, 0.01 * of) or hits > 3 * natural * of + _FEW
