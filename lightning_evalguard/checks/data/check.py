"""Is the evaluation set the same each time, counted once, and apart from training?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol

from torch import Tensor, nn

from lightning_evalguard.checks.check import Check, Moment
from lightning_evalguard.checks.data import (
    agreement,
    collate,
    groups,
    ranks,
    repeats,
    scaled,
    windows,
)
from lightning_evalguard.checks.data.history import TRAINING, History, Side, SplitKind
from lightning_evalguard.checks.data.leaks import (
    Leak,
    by_batches,
    by_portraits,
    is_whole,
)
from lightning_evalguard.checks.data.loader_facts import (
    EvaluatedSet,
    broken_off,
    combined,
    looks_other,
    plain_facts,
    set_of,
    workers,
)
from lightning_evalguard.checks.data.rereading import read_twice, reads_cheaply
from lightning_evalguard.checks.data.told import label_among_features
from lightning_evalguard.data import loaders as _loaders
from lightning_evalguard.data.loaders import Evaluated, Fact
from lightning_evalguard.data.samples import (
    Budget,
    Sketch,
    sketch,
)
from lightning_evalguard.instruments.source import raised_at
from lightning_evalguard.record.trained import Trained
from lightning_evalguard.report import Finding
from lightning_evalguard.stages import is_sanity_check, is_scored, spelling

_PLAIN = (list, tuple, dict, Tensor)
_SKETCHES = 2  # batches: as many as a sanity check has
_CHEAP, _COSTLY = 1024, 32  # samples that are read once a run, by what a read calls
_SHARE = 50  # evaluated samples for which one more is read


class DataLoop(Protocol):
    """What the check asks of the loop that runs the evaluation."""

    def evaluated(self) -> Evaluated:
        """The loaders of the running evaluation, and those of training."""

    def training(self) -> Sequence[Any]:
        """The loaders that the running fit trains with."""


class DataCheck(Check):
    """The `data` check: the same samples each time, each once, and apart from training.

    Loaders are judged by what they say of themselves; the first batches of two evaluations are
    compared as the steps get them; samples are told apart by index, by rows in memory and by file
    names, and a few are read outside of the steps, where the loader reads them in this process
    too. Everything that reading moves is put back. How much is read is a count: an evaluated
    sample in fifty, and some more once a run.

    Args:
        loop: What the loop says.
        history: The sets of all fits under this guard.
        groups: Which samples belong together: a name, or a callable that takes a sample.
        earlier: Gives what earlier runs on record trained with, those first that made the weights.

    Attributes:
        whole: Facts by which all that is evaluated are training samples.
    """

    name = "data"

    def __init__(
        self,
        loop: DataLoop,
        history: History | None = None,
        groups: str | Callable[..., Any] | None = None,
        earlier: Callable[[], Iterable[Trained] | None] = tuple,
    ) -> None:
        self._loop = loop
        self._history = history or History()
        self._groups = groups
        self._earlier, self.whole = earlier, set[str]()
        self.notes: list[str] = []
        self._forget(None)

    def open(self, root: nn.Module, now: Moment) -> Iterable[Finding]:
        self._forget(root)
        return ()

    def close(self, now: Moment) -> Iterable[Finding]:
        self._history.end(self._root)
        self._forget(None)
        return ()

    def _forget(self, root: nn.Module | None) -> None:
        self._root = root
        self._sets: dict[tuple[str, int], EvaluatedSet] = {}
        self._leaks: dict[tuple[int, str, int], Leak] = {}
        self._compared: set[int] = set()
        self._recorded: set[int] = set()
        self._shared: set[tuple[str, int]] = set()  # sets of which the other ranks know
        self._leaky = False
        self._watched: set[int] = set()  # evaluated sets that are training's on purpose
        self._repeats: dict[int, repeats.Repeats] = {}
        self._said: set[tuple[str | None, str]] = set()
        self._evaluated: Evaluated | None = None
        self._ended_at: int | None = None  # batch of this evaluation whose step raised
        self._opaque = self._fits = self._trains = self._looks = self.thins = False
        self._broke_at: str | None = None

    def before_train_step(
        self, now: Moment, args: tuple[Any, ...]
    ) -> Iterable[Finding]:
        if not self._trains:
            self._trains = True
            self._begin_fit()
            loaders = self._loop.training()
            for loader in loaders:
                self._history.add("train", loader)
            self._looks = len(loaders) == 1
        if self._looks and args:
            self._looks = self._history.add_batch(args[0])
        return ()

    def _begin_fit(self) -> None:
        if not self._fits:
            self._fits = True
            self._history.begin(self._root)

    def start(self, now: Moment) -> Iterable[Finding]:
        self._evaluated = self._ended_at = None
        self._opaque = self.thins = False
        self._broke_at = None
        return ()

    def before_step(self, now: Moment, args: tuple[Any, ...]) -> Iterable[Finding]:
        # a step that fetches for itself
        self._opaque = not args or (
            type(args[0]) not in _PLAIN and isinstance(args[0], Iterator)
        )
        if not is_scored(now.stage):
            return ()
        facts: list[Fact] = []
        if self._evaluated is None:
            facts = self._begin(now)
            if now.rank:
                facts = []  # rank 0 says it
        one = self._sets.get((spelling(now.stage).key, now.dataloader))
        if one is not None and not self._opaque:
            if one.batches < _SKETCHES and not one.varies:
                one.sketches.append(sketch(args[0]))
            one.batches += 1
            watched = self._repeats.get(id(one))
            if watched is not None and not is_sanity_check(now.stage):
                watched.add(args[0])
                one.appearance.add(args[0])
        if not facts:
            return ()
        return self._findings(now, facts)

    def broke_off(self, now: Moment, trace: TracebackType | None) -> Iterable[Finding]:
        """A step raised StopIteration, which its loop takes for the end of the data."""
        limits = (
            self._evaluated.limits[: now.dataloader]
            if self._evaluated is not None
            else []
        )
        before = sum(limit for limit in limits if limit < float("inf"))
        self._ended_at, self._broke_at = int(before) + now.batch, raised_at(trace)
        return ()

    def stop(self, now: Moment, error: BaseException | None) -> Iterable[Finding]:
        if error is not None:
            return ()
        facts = self._broken_off()
        if not now.rank and is_scored(now.stage):
            if self._evaluated is None:
                facts += self._begin(now)  # no step ran
            whole = not facts
            key = spelling(now.stage).key
            mine = self._running(key)
            for one in mine:
                facts += self._same_as_before(one, now, whole)
                facts += self._repeated(one, now)
            facts += self._by_reading(mine, now)
            self._leaky = len(facts) > 0
            if now.fitting and not is_sanity_check(now.stage):
                self._history.validated(self._root)
            if self._fits and now.stage == "validate":
                for one in mine:
                    self._history.add("val", one.loader)
        elif is_scored(now.stage):
            for (key, _), one in self._sets.items():
                if key == spelling(now.stage).key:
                    self._repeated(one, now)
        return self._findings(now, facts)

    def _running(self, key: str) -> list[EvaluatedSet]:
        """The sets of the evaluation that runs, of a stage with this key."""
        sets = [(i, one) for (stage, i), one in self._sets.items() if stage == key]
        evaluated = self._evaluated
        return [one for i, one in sets if evaluated is None or evaluated.holds(i)]

    # with the other ranks

    def say(self, now: Moment) -> Any:
        """Hashes of the samples of sets that were evaluated for the first time, and of training."""
        fresh = {
            key: said
            for key, one in self._sets.items()
            if key not in self._shared and (said := ranks.say(one.hashes)) is not None
        }
        if not fresh:
            return None
        self._shared |= fresh.keys()
        trained = self._history.hashes()
        return {
            "evaluated": fresh,
            "trained": {} if trained is None else {"train": ranks.say(trained)},
            "found": self._leaky,
            "watched": [
                key for key, one in self._sets.items() if id(one) in self._watched
            ],
        }

    def hear(self, now: Moment, everyone: Mapping[int, Any]) -> Iterable[Finding]:
        evaluated = ranks.of_all(everyone, "evaluated")
        trained = [*ranks.of_all(everyone, "trained").get("train", {}).values()]
        words = "the training set of an earlier fit"
        if now.fitting:
            words = "the training set"
        known = any(theirs["found"] for theirs in everyone.values())
        known |= self._evaluated is not None and self._evaluated.debugging
        watched = {key for theirs in everyone.values() for key in theirs["watched"]}
        facts: list[Fact] = []
        for key, said in evaluated.items():
            one = self._sets.get(key)
            if one is None:
                continue
            facts += ranks.repetitions(one, said)
            if not (known or key in watched):
                facts += ranks.leaked(one, said.values(), trained, words)
        return self._findings(now, facts)

    # the same each time

    def _begin(self, now: Moment) -> list[Fact]:
        """The loaders of this evaluation, and what is plain from them alone."""
        evaluated = self._evaluated = self._loop.evaluated()
        if now.fitting:
            self._begin_fit()
        stage, facts = spelling(now.stage).key, []
        for i, loader in enumerate(evaluated.loaders, evaluated.first):
            one = self._sets.get((stage, i))
            if one is None or one.loader is not loader:
                one = self._sets[stage, i] = set_of(
                    loader, stage, i - evaluated.first, len(evaluated.loaders)
                )
                if evaluated.names:
                    one.name = evaluated.names[i - evaluated.first]
                facts += list(plain_facts(one, evaluated))
                one.varies |= one.order in ("shuffled", "drawn")
                facts += self._watch_repeats(one)
            one.batches, one.sketches = 0, []
        # once the samples of all are hashed, the first batches tell the rest
        self.thins = not any(id(one) in self._repeats for one in self._sets.values())
        facts += combined(evaluated, f"{stage}_dataloader")
        return facts

    def _same_as_before(
        self, one: EvaluatedSet, now: Moment, whole: bool
    ) -> list[Fact]:
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
                said, remedy = (
                    "it does not start over",
                    "Start anew in each call of `__iter__`",
                )
            else:
                said = "its samples, its collate function or a transfer hook is random"
                remedy = "Keep random transforms out of evaluation, or draw from a seeded generator"
            found.append(
                one.fact(
                    "gave other samples in its first batches than in the previous evaluation, "
                    f"expected the same each time: {said}",
                    f"{remedy}.",
                    certain=not streams,
                )
            )
        if len(one.sketches) > len(one.known):
            one.known = one.sketches
        one.gave = max(one.gave, one.batches)
        one.sketches = []
        return found

    def _watch_repeats(self, one: EvaluatedSet) -> list[Fact]:
        """What indices show of samples given twice; else their contents are followed."""
        found, _ = repeats.by_index(one)
        owned = _loaders.owned(one.loader)
        counts = not found and one.order != "drawn"
        self._repeats[id(one)] = repeats.Repeats(one, owned, counts)
        return found

    def _repeated(self, one: EvaluatedSet, now: Moment) -> list[Fact]:
        """What the contents of a first evaluation show of samples given twice."""
        if is_sanity_check(now.stage) or not one.batches:
            return []
        watched = self._repeats.pop(id(one), None)
        if watched is None or self._opaque:
            return []
        one.hashes = watched.hashes()
        if not watched.counts:
            return []
        return watched.facts()

    # apart from training, and what reading tells

    def _by_reading(self, sets: Sequence[EvaluatedSet], now: Moment) -> list[Fact]:
        found = []
        for one in sets:
            if one.places and not one.varies:
                found += read_twice(one, self._note)
            elif one.loader is not None and not now.fitting and workers(one.loader):
                self._note(
                    f"the samples of `{one.name}` were not read twice, because its workers read "
                    "them"
                )
        if (
            is_sanity_check(now.stage)
            or self._evaluated is None
            or self._evaluated.debugging
        ):
            return found
        for one in sets:
            leaks: list[Fact] = []
            for side in self._sides(now):
                known = any("these weights" in fact.fact for fact in leaks)
                # one cause, one finding: an equal fit before this one had the same samples
                if not known and (side.own or not leaks):
                    leaks += self._leaks_of(one, side, now.fitting)
            found += leaks
            if not (now.fitting or found):
                found += self._of_records(one)
            if id(one) not in self._compared:
                self._compared.add(id(one))
                training = self._sides(now, "train")
                parts = [part for side in training for part in side.parts]
                found += agreement.disagreements_of(one, [part.root for part in parts])
                found += looks_other(one, self._history.appearance, parts)
                found += label_among_features(one, self._history.appearance)
                found += collate.mixed_by_collate(one)
                for side in training:
                    if not leaks:
                        found += scaled.by_own_statistics(one, side)
                        found += windows.overlapping(one, side)
                    if "these weights" not in side.words:
                        found += self._groups_of(one, side)
        return found

    def _sides(self, now: Moment, *kinds: SplitKind) -> list[Side]:
        """The sets that this evaluation's should be apart from."""
        evaluated = self._evaluated
        if now.fitting and evaluated is not None:
            for loader in evaluated.training:
                self._history.add("train", loader)
        both: tuple[SplitKind, ...] = (
            ("train", "val") if now.stage == "test" else ("train",)
        )
        wanted = kinds or both
        return [
            side
            for kind in wanted
            for side in self._history.sides(kind, self._root, now.fitting)
        ]

    def _leaks_of(self, one: EvaluatedSet, side: Side, fitting: bool) -> list[Fact]:
        key = id(one), side.words, side.key
        leak = self._leaks.get(key)
        if leak is None:
            leak = self._leaks[key] = Leak(one, side)
        found = leak.look(Budget(self._reads(one)))
        if not (found or leak.compared) and leak.has_more(side.batches):
            found = by_batches(one, side.batches, side.words)
            leak.is_whole = bool(found) and is_whole(found[0], one)
        if leak.why_not:
            self._note(leak.why_not)
        if found and leak.is_whole and side.words == TRAINING:
            self.whole.update(fact.fact for fact in found)
        if found and one.index and leak.is_whole and "training" in side.words:
            self._watched.add(id(one))
            self._note(
                f"`{one.name}` gives training samples alone ({side.words}), and is no finding: it "
                "seems meant as a look at training"
            )
            return []
        return found

    def _of_records(self, one: EvaluatedSet) -> list[Fact]:
        """Samples that an earlier run of the project trained on, once a run."""
        if id(one) in self._recorded:
            return []
        self._recorded.add(id(one))
        for earlier in self._earlier() or ():
            words = f"the training set of {earlier.run}"
            facts = by_portraits(one, earlier.sets, words)
            if facts:
                return [fact._replace(certain=earlier.certain) for fact in facts]
        return []

    def _groups_of(self, one: EvaluatedSet, side: Side) -> list[Fact]:
        if id(one) in self._watched:
            return []
        reads = _COSTLY
        if reads_cheaply(one):
            reads = _CHEAP
        try:
            found, why_not = groups.shared_groups(one, side, self._groups, reads)
        except Exception as error:  # noqa: BLE001 - a sample or a callable that cannot be read so
            found, why_not = (
                [],
                f"groups were not compared: {type(error).__name__}: {error}",
            )
        if why_not:
            self._note(why_not)
        return found

    def _reads(self, one: EvaluatedSet) -> int:
        """How many samples may be read after this evaluation."""
        evaluated = _loaders.length(getattr(one.loader, "dataset", None)) or 0
        if one.reads is None:
            one.reads = _CHEAP if reads_cheaply(one) else _COSTLY
            return one.reads + evaluated // _SHARE
        return evaluated // _SHARE

    # counted once

    def _broken_off(self) -> list[Fact]:
        if self._ended_at is None or self._opaque:
            return []
        return [broken_off(self._ended_at, self._evaluated, self._broke_at)]

    # saying it

    def _note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)

    def _findings(self, now: Moment, facts: Iterable[Fact]) -> list[Finding]:
        findings = []
        for fact in facts:
            if (key := (fact.subject, fact.fact)) in self._said:
                continue
            self._said.add(key)
            findings.append(
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
        return findings
