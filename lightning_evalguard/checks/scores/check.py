"""Is a logged score what it claims?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from lightning_evalguard.checks.check import Check, Moment
from lightning_evalguard.checks.scores.by_class import fact_of
from lightning_evalguard.checks.scores.claims import Claims
from lightning_evalguard.checks.scores.curves import Curves
from lightning_evalguard.checks.scores.groups import Groups
from lightning_evalguard.checks.scores.heard import LogCall
from lightning_evalguard.checks.scores.kept import Owner
from lightning_evalguard.checks.scores.labels import places_of, places_of_labels
from lightning_evalguard.checks.scores.logged import Tally
from lightning_evalguard.checks.scores.metrics import Metrics, mean_of_batches
from lightning_evalguard.checks.scores.over_ranks import UnevenRanks
from lightning_evalguard.checks.scores.shares import (
    MadeLoss,
    OfStep,
    index_as_score,
    kept_by,
    share_of_the_batch,
)
from lightning_evalguard.confusion.by_batch import LoaderCounts
from lightning_evalguard.confusion.decisions import is_curve
from lightning_evalguard.data import loaders as _loaders
from lightning_evalguard.data.batches import sized
from lightning_evalguard.data.loaders import Evaluated, Fact, Logged, LoggedLoss
from lightning_evalguard.instruments.dispatch import Subscriber
from lightning_evalguard.instruments.replay import Look
from lightning_evalguard.report import Finding
from lightning_evalguard.stages import is_sanity_check, is_scored, spelling

_PLAIN = (list, tuple, dict, Tensor)


class ScoredLoop(Protocol):
    """What the check asks of the loop that runs the evaluation."""

    def evaluated(self) -> Evaluated:
        """The loaders of the running evaluation, and those of training."""

    def logged(self) -> Sequence[Logged]:
        """What its steps logged, once the last one is over."""

    def pulse(self) -> tuple[int, int | None]:
        """A step is over: how many values were logged so far, and the batch's size by the loop."""

    def gather(self) -> None:
        """Steps begin: what they log may wait, but for the first value of each key."""

    def gathered(self) -> Sequence[tuple[int, LogCall]]:
        """The steps are over: what they logged and `hear` was not told, each with its step."""

    def ranks(self) -> int:
        """How many processes evaluate."""

    def values(self) -> Mapping[str, Any]:
        """The scores that the trainer holds."""

    def owners(self) -> Sequence[Owner]:
        """The user's callbacks, each with what the names of its attributes begin with."""

    def listen(self, hear: Any) -> None:
        """Hand every value that is logged to `hear`, until `deafen`."""

    def hear_beside(self, hear: Any) -> None:
        """Hand each value to `hear` too; None: no more."""

    def find_writers(self) -> None:
        """Listen to the writers of the loggers that were made meanwhile too."""

    def deafen(self) -> None:
        """Listen no more."""


class ScoresCheck(Check):
    """The `scores` check: a logged score is what its name claims.

    What is logged is heard by whatever way it goes. What the steps log, return, keep in attributes
    and count is followed, one number a step; when the evaluation is over, each logged value is
    held against the scores that its key may mean, and against what can be made of those numbers.

    Args:
        loop: What the loop says.
    """

    name = "scores"

    def __init__(self, loop: ScoredLoop) -> None:
        self._loop = loop
        self.notes: list[str] = []
        # the keys under which steps log a loss as it is, or its opposite
        self.losses: dict[str, LoggedLoss] = {}
        # by watched steps, each with its number
        self._made: list[tuple[int, MadeLoss]] = []
        self._labels_unread = False  # by the first step of a kind of run
        self._forget(None)

    def open(self, root: nn.Module, now: Moment) -> Iterable[Finding]:
        self._forget(root)
        self._loop.listen(self._hear)
        return ()

    def close(self, now: Moment) -> Iterable[Finding]:
        self._loop.deafen()
        try:
            return list(self._late(now))
        finally:  # whatever fails, no method stays wrapped
            self._metrics.close()
            self._curves.end()
            self._forget(None)

    def _forget(self, root: nn.Module | None) -> None:
        self._root = root
        self._tally = Tally()
        self._metrics = Metrics()
        self._curves = Curves()
        self._groups = Groups(root)
        self._uneven = UnevenRanks()
        self._claims = Claims()
        self._follows = self._in_steps = self._judged = False
        self._sizes: dict[int, list[int]] = {}
        self._heard: dict[str, LogCall] = {}
        self._of_step: dict[str, LogCall] = {}
        self._stage = "validate"
        self._explained: set[str] = set()
        self._labels: set[int] | None = None  # where those of the first batch lie
        self._places: set[int] = set()  # all of its tensors'
        self._samples = 0  # of that batch
        self._shared: set[str] = (
            set()
        )  # lines that share out over the batch, as reported

    @property
    def makes_targets(self) -> bool:
        """Whether what is scored is made in the steps: they read no label, and log all scores."""
        return self._labels_unread and not self._heard

    # what others tell

    def explained(self, keys: Iterable[str]) -> None:
        """Of these keys it was said already why they are wrong."""
        self._explained |= set(keys)

    def counted(self, counted: Mapping[str, LoaderCounts]) -> None:
        """The matrices of the evaluation whose steps are over, by stage and loader."""
        self._claims.counted = dict(counted)

    def reason(self, key: str, score: str, theirs: float) -> tuple[str, str]:
        """Why a value logged under a name of ours is not that score, and what to do about it."""
        heard = self._of_step.get(key) or self._heard.get(key)
        if heard is not None:
            return self._claims.reason(heard, key, score, theirs)
        return ("", "")

    def hear_beside(self, hear: Callable[[LogCall], None] | None) -> None:
        """Tell `hear` of what is logged, too: a loop of the user's own ran; None: no more."""
        self._loop.hear_beside(hear)
        if hear is not None:
            self._loop.find_writers()

    def judged_by_hand(self, keys: Iterable[str]) -> None:
        """These were logged of a loop of the user's own: they claim nothing of this evaluation."""
        for key in keys:
            self._heard.pop(key, None)

    def _hear(self, heard: LogCall) -> None:
        if self._in_steps:
            if not heard.by_metric:
                self._tally.heard(heard, len(self._tally.steps) - heard.after_step)
            self._of_step.setdefault(heard.key, heard)
        else:
            self._heard[heard.key] = heard

    # the evaluation

    def start(self, now: Moment) -> Iterable[Finding]:
        findings = list(self._late(now))
        self._follows = self._in_steps = self._judged = False
        self._labels = None
        self._loop.find_writers()
        self._uneven.begin(self._loop.ranks() > 1 and is_scored(now.stage))
        return findings

    def before_step(self, now: Moment, args: tuple[Any, ...]) -> Iterable[Finding]:
        # a step that fetches its batches for itself says nothing of their sizes
        if not args or (type(args[0]) not in _PLAIN and isinstance(args[0], Iterator)):
            return ()
        if self._uneven.counts:
            self._uneven.add(args[0])
        if not self._follows:
            if now.rank or not is_scored(now.stage):
                return ()
            self._begin(now)
        if self._labels is None:
            self._labels = places_of_labels(args[0])
            self._places = places_of(args[0])
            self._samples = sized(args[0], 0)[0]
        self._tally.before_step(args[0])
        batch = len(self._tally.steps)
        if batch == self._groups.next:
            self._groups.before_step(batch)
        return ()

    def watch(self, now: Moment) -> Subscriber:
        return OfStep(self._labels or set(), self._samples, self._places)

    def saw(
        self, now: Moment, seen: Subscriber | None, look: Look | None
    ) -> Iterable[Finding]:
        if not isinstance(seen, OfStep):
            return ()
        self._labels_unread = seen.unread
        self._claims.averaged(seen.means)
        self._made = [(len(self._tally.steps) - 1, loss) for loss in seen.losses]
        metrics = [one.metric for one in self._metrics.followed]
        facts = []
        site = seen.shared or seen.ranked(kept_by(metrics))
        if site is not None and site.location not in self._shared:
            self._shared.add(site.location)
            facts.append(share_of_the_batch(site))
        curves = [one for one in self._metrics.followed if is_curve(one.metric)]
        facts += [
            index_as_score(one.name, type(one.metric).__name__)
            for one in curves
            if seen.indices_ranked(kept_by([one.metric]))
        ]
        return self._findings(now, facts)

    def after_step(self, now: Moment, outputs: Any) -> Iterable[Finding]:
        if self._follows:
            loader = now.dataloader
            if self._groups.compares:
                self._groups.after_step()
            updates = self._metrics.step_over(loader)
            self._tally.after_step(outputs, loader, updates, *self._loop.pulse())
        return ()

    def steps_over(self, now: Moment) -> Iterable[Finding]:
        if self._follows and self._in_steps:
            self._hear_what_waits()
            self._tally.ended(self._loop.logged(), self._sizes)
            self._metrics.step_over(-1)  # what hooks updated after the last step
            self._curves.steps_over()
            if self._made:
                self._find_losses()
        return ()

    def _find_losses(self) -> None:
        """Which keys hold a loss of the step that was watched?"""
        made, self._made = self._made, []
        kinds = Counter(loss.kind for _, loss in made)
        for step, loss in made:
            if kinds[loss.kind] == 1:
                value = float(loss.value)
                for key, sign in self._tally.keys_of(value, step):
                    self.losses.setdefault(key, LoggedLoss(loss.kind, loss.text, sign))

    def _hear_what_waits(self) -> None:
        self._in_steps = False
        for step, heard in self._loop.gathered():
            self._tally.heard(heard, step)

    def stop(self, now: Moment, error: BaseException | None) -> Iterable[Finding]:
        if self._in_steps:
            self._hear_what_waits()
        self._groups.after_step()
        self._metrics.end()
        ranked = self._curves.facts()
        self._curves.end()
        if error is not None or not self._follows:
            return ()
        stage = spelling(now.stage)
        left = (
            stage.words if is_sanity_check(now.stage) else f"the {stage.hooks} before"
        )
        facts = self._metrics.facts(self._tally.records, left, len(self._tally.steps))
        self._metrics.watch_training()
        facts += self._groups.facts() + ranked
        step = _loaders.source_of(getattr(type(self._root), stage.step, None))
        facts += self._tally.facts(step)
        facts += self._of_keys(facts)
        self._tally.leave(left)
        # the sanity check's scores are thrown away, and the next evaluation's say more
        return list(
            self._findings(now, facts if not is_sanity_check(now.stage) else ())
        )

    def _begin(self, now: Moment) -> None:
        evaluated = self._loop.evaluated()
        self._follows = self._in_steps = True
        self._stage = now.stage
        self._sizes = {}
        self._heard, self._of_step = {}, {}
        self._loop.gather()
        for i, loader in enumerate(evaluated.loaders):
            limit = evaluated.limits[i] if i < len(evaluated.limits) else float("inf")
            taken = min(limit, _loaders.length(loader) or 0)
            self._sizes[i] = _loaders.batch_sizes(loader, int(taken)) or []
        own = [("", self._root)] if self._root is not None else []
        self._tally.begin([*own, *self._loop.owners()])
        self._curves.begin(self._root)  # below the metrics' own look at their callers
        self._metrics.begin(self._root)
        self._groups.begin()
        self._claims.begin(now.stage, self._tally, self._loop.ranks())

    def say(self, now: Moment) -> Any:
        return self._uneven.say()

    def hear(self, now: Moment, everyone: Mapping[int, Any]) -> Iterable[Finding]:
        facts = self._uneven.hear(everyone)
        return self._findings(now, facts if not is_sanity_check(now.stage) else ())

    # what the keys claim

    def _of_keys(self, facts: Sequence[Fact]) -> list[Fact]:
        """What is wrong with each logged value; of what follows from `facts` nothing more."""
        wrong = {f.subject for f in facts}
        metrics = self._metrics.wrong
        told = [float(v) for one in metrics for v in one.values]
        held, found = self._loop.values(), []
        of_classes = []
        for key, heard in (self._of_step | self._heard).items():
            in_steps = key in self._of_step
            value = heard.value
            if in_steps or heard.over_ranks:
                value = held.get(key)
            if (
                key in self._explained
                or key in wrong
                or not isinstance(value, (Tensor, float))
            ):
                continue
            number = float(value)
            if number in told or any(one.metric is heard.value for one in metrics):
                continue
            fact = self._claims.fact(heard, number, in_steps)
            averaged = in_steps and heard.size is not None
            if fact is None and averaged and not self._claims.is_right(heard, number):
                weights = self._tally.weights_of(key)
                fact = mean_of_batches(self._metrics.followed, key, number, weights)
            if fact is not None:
                found.append(fact)
            elif not in_steps and self._claims.is_mean_of_samples(heard, number):
                self._uneven.take(heard, number)
            elif (one := self._claims.class_wise(heard, number, in_steps)) is not None:
                of_classes.append(one)
        found = self._with_lists(found) + fact_of(of_classes)
        self._claims.remember()
        self._judged = True
        self._heard = {}
        return found

    def _with_lists(self, facts: list[Fact]) -> list[Fact]:
        """Lists that were never cleared, where a value was logged that is not this evaluation's."""
        unexplained = self._claims.unexplained
        if not unexplained:
            return facts
        lists = self._tally.stale_lists()
        stale = [one for one in lists if self._claims.may_hold(one.name)]
        if not stale:
            return facts
        first = stale[0]
        others = [f"`{one.name}`" for one in stale[1:]]
        named = ""
        if others:
            named = f" (nor {', '.join(others)})"
        keys = ", ".join(f"`{key}`" for key in unexplained[:3])
        fact = Fact(
            f"is never cleared{named}: it still held {first.held} items from {first.left} when "
            f"this evaluation began, in which {keys} was logged",
            f"Call `self.{first.name}.clear()` when the epoch ends.",
            first.name,
            "list",
            certain=False,
        )
        return [*(f for f in facts if f.subject not in unexplained), fact]

    def _late(self, now: Moment) -> Iterator[Finding]:
        """What was logged since the last evaluation was over."""
        facts = self._metrics.facts_of_training()
        heard, self._heard = self._heard, {}
        if self._judged and not is_sanity_check(self._stage):
            for one in heard.values():
                if one.by_metric or not isinstance(one.value, Tensor):
                    continue
                told = one.key in self._explained or one.key in self._of_step
                if told or one.over_ranks:
                    continue
                fact = self._claims.fact(one, float(one.value), in_steps=False)
                if fact is not None:
                    facts.append(fact)
        yield from self._findings(now, facts, self._stage)

    def _findings(
        self, now: Moment, facts: Iterable[Fact], stage: str | None = None
    ) -> Iterator[Finding]:
        for fact in facts:
            if fact.subject in self._explained:
                continue
            yield Finding(
                check="scores",
                stage=stage or now.stage,
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
