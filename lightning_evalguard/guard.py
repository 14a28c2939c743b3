"""The guard: runs the checks around every step and applies the policies to what they find."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import torch
from torch import nn

from lightning_evalguard.audit import NOT_SHOWN, Audit, Replays, Showing
from lightning_evalguard.checks.check import Check, Moment
from lightning_evalguard.checks.listeners import Listeners
from lightning_evalguard.checks.modes.check import ModesCheck
from lightning_evalguard.instruments.dispatch import (
    Subscriber,
    Watch,
    aside,
    compiles,
    is_watched,
    real_tensors,
    unseen,
)
from lightning_evalguard.instruments.lines import LineTrace
from lightning_evalguard.instruments.replay import CannotReplay, uncollected
from lightning_evalguard.model.tree import parts_of
from lightning_evalguard.pace import Pace
from lightning_evalguard.policies import Allow, Allowed
from lightning_evalguard.ranks import Alone
from lightning_evalguard.report import Finding, Report, broke, hidden
from lightning_evalguard.rulings import Rulings

__tracebackhide__ = hidden
# values looked at line by line, in one evaluation of each stage: about 0.1 s; of a model that has
# too many for so many lines, no line is told apart from its neighbours
_FOLLOWS, _LINES = 10_000, 8
_modes_in_force = torch._C._len_torch_dispatch_stack  # `is_watched`, without a call
_AFTER_WHICH_NOTES = frozenset({"start", "saw", "stop", "close"})


class Guard:
    """Runs checks and applies policies; knows nothing of Lightning.

    Args:
        checks: The checks to run, each with its policy other than ``"ignore"``.
        allowed: Per check, glob patterns of qualified names, source files or functions whose
            findings are meant.
        report: Where findings and counts go.
        replays: How a step may be shown to those checks that are a witness.
        ranks: The processes that agree on what stops the run, by default this one alone.
        host: To whom a user passes the switches that findings name.
        budget: Share of the batches, and so of the time, that looking again and again may cost.
    """

    def __init__(
        self,
        checks: Sequence[tuple[Check, str]],
        allowed: Allow | None,
        report: Report,
        replays: Replays | None = None,
        ranks: Alone | None = None,
        host: str = "EvalGuard",
        budget: float = 0.01,
    ) -> None:
        self.report = report
        # Gives how many batches a loader of the evaluation will give, where that is known.
        self.batches: Callable[[int], float | None] = lambda loader: None
        self._pace = Pace(budget, lambda loader: self.batches(loader))
        self._moves, self._trains = Pace(budget), Pace(budget)
        self._epoch: int | None = None  # of the last training step
        self.ranks = ranks or Alone(report)
        self._rulings = Rulings(report, self.ranks, host)
        self._audit = Audit(self, replays or Replays("off"))
        self._root: nn.Module | None = None
        self._parts = 0
        self._listeners = Listeners(checks)
        self.allowed = Allowed(allowed or {})
        self._lines: LineTrace | None = None
        self._may_show = True
        self._followed: set[str] = set()

    @property
    def checks(self) -> Sequence[tuple[Check, str]]:
        """The checks that have not failed, each with its policy."""
        return self._listeners.checks

    def open(self, root: nn.Module, now: Moment) -> None:
        """A run begins on `root`; where a finding stops it at once, nothing stays open."""
        self._root, self._epoch = root, None
        self._rulings.open(root)
        self._audit.open(root)
        self._followed.clear()
        self._parts = parts_of(root)
        for pace in (self._pace, self._moves):
            pace.reads(self._parts)
        try:
            self._all("open", lambda check: check.open(root, now))
        except BaseException as error:
            self.close(now, error)
            raise

    def close(self, now: Moment, error: BaseException | None = None) -> None:
        """The run is over; raises what is found only where no `error` ended it."""
        if self._root is None:
            return
        self._all("close", lambda check: check.close(now), quiet=error is not None)
        self._root = None
        self._rulings.close()
        self._audit.close()

    def start(self, now: Moment) -> None:
        """An evaluation begins."""
        self._lines = None
        self._may_show = True  # the first step
        root = self._root
        new = now.stage not in self._followed
        self._followed.add(now.stage)
        for pace in (self._pace, self._moves):
            pace.begin(again=not new)
        now.skipped = 0
        self._audit.start(now)
        if (
            new
            and self._audit.replays.audit != "off"
            and root is not None
            and self._parts * _LINES <= _FOLLOWS
            and not compiles(root)
        ):
            self._lines = LineTrace(self._standing, _FOLLOWS, live=True)
        for check, _ in self.hearing("standing"):
            check.lines = self._lines.found if self._lines is not None else {}
        self._all("start", lambda check: check.start(now))

    @property
    def follows(self) -> bool:
        """Whether this evaluation is the first of its stage, whose hooks are followed."""
        return self._lines is not None

    def following(self) -> AbstractContextManager[Any]:
        """Follow line by line what runs inside: a hook of the user's in a first evaluation."""
        if self._lines is not None:
            return self._lines
        return nullcontext()

    def stop(self, now: Moment, error: BaseException | None = None) -> None:
        """The evaluation is over; raises what is found only where no `error` ended it."""
        if error is None:
            self.report.checked["evaluations"] += 1
        if self._lines is not None and self._lines.error is not None:
            broke(
                self.report,
                "following hooks line by line",
                "this stage",
                self._lines.error,
            )
        self._all("stop", lambda check: check.stop(now, error), quiet=error is not None)

    def say(self, now: Moment) -> dict[str, Any] | None:
        """What the checks of this rank have to say to the others; None where there are none."""
        said: dict[str, Any] = {}

        def ask(check: Check) -> Iterable[Finding]:
            content = check.say(now)
            if content is not None:
                said[check.name] = content
            return ()

        if self.ranks.world > 1:
            self.ask("say", ask)
        return said or None

    def hear(self, now: Moment, everyone: Mapping[int, Any]) -> None:
        """Hand each check what all ranks had to say to it."""

        def ask(check: Check) -> Iterable[Finding]:
            theirs = {
                rank: said[check.name]
                for rank, said in everyone.items()
                if said and check.name in said
            }
            if not theirs:
                return ()
            return check.hear(now, theirs)

        self._all("hear", ask)

    def step(
        self, now: Moment, call: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Run one evaluation step under guard and return what it returns."""
        self.before(now, args)
        lines = self._lines
        if lines is not None and (now.batch == 0 or lines.found):
            following = lines if now.batch == 0 else nullcontext()
            with lines.apart():
                return self._step(now, following, call, args, kwargs)
        if self._may_show:
            self._may_show = False
            return self._step(now, nullcontext(), call, args, kwargs)
        # most batches: nothing stands around the step
        try:
            outputs = call(*args, **kwargs)
        except StopIteration as stopped:
            self._broke_off(now, stopped)
            raise
        self.after(now, outputs, NOT_SHOWN, call, args, kwargs)
        return outputs

    def _step(
        self,
        now: Moment,
        following: AbstractContextManager[Any],
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        try:
            with self.shown(now) as showing, self._follows(following, showing):
                outputs = call(*args, **kwargs)
        except StopIteration as stopped:
            self._broke_off(now, stopped)
            raise
        self.after(now, outputs, showing, call, args, kwargs)
        return outputs

    def _broke_off(self, now: Moment, stopped: StopIteration) -> None:
        """A loop takes this exception for the end of its data."""
        self.call("broke_off", now, stopped.__traceback__)

    @staticmethod
    def _follows(
        following: AbstractContextManager[Any], showing: Showing
    ) -> AbstractContextManager[Any]:
        """A step that is watched for good is not followed line by line besides."""
        if showing.watched and not showing.again:
            return nullcontext()
        return following

    def before(self, now: Moment, args: tuple[Any, ...]) -> None:
        """An evaluation step is about to run on ``args``."""
        now.thinned = not self._pace.looks(now.dataloader)
        if self._audit.remembers:
            self._audit.begins(now, args)
        if now.thinned:
            now.skipped += 1
            findings = self.call("before_skipped_step", now, args)
        else:
            findings = self.call("before_step", now, args)
            now.skipped = 0
            self._listeners.ask_who_thins()
        if findings:
            self._judge(findings, quiet=False)

    def after(
        self,
        now: Moment,
        outputs: Any,
        showing: Showing,
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        """The step ``call(*args, **kwargs)`` returned `outputs`, shown as `showing` says."""
        checked = self.report.checked
        checked["batches"] += 1
        if self._pace.skipped:
            findings = self.call("after_skipped_step", now, outputs)
        else:
            checked["batches_looked_at"] += 1
            findings = self.call("after_step", now, outputs)
        # a check that thins saw nothing of most steps
        tripped = self.any("tripped_skipped" if now.thinned else "tripped")
        if tripped or showing is not NOT_SHOWN or self._audit.remembers:
            findings += self._audit.after(now, showing, tripped, call, args, kwargs)
        if findings:
            self._judge(findings, quiet=False)

    def shown(self, now: Moment) -> AbstractContextManager[Showing]:
        """Show the operators of what runs inside to the checks that want to see this step's."""
        return self._audit.shown(now)

    def last_look(self, now: Moment) -> None:
        """The last step of an evaluation is over: look at the modes that it left."""
        if self._pace.skipped:
            self._pace.skipped = False
            self.flags(now, None)

    def steps_over(self, now: Moment) -> None:
        """The last step of an evaluation is over, and nothing that it logged is reset yet."""
        if found := self.call("steps_over", now):
            self._judge(found, quiet=False)

    def ends(self, now: Moment) -> None:
        """The last hook of an evaluation is over; its grad mode has not been put back yet."""
        self._all("ends", lambda check: check.ends(now))

    def report_findings(self, check: str, findings: Iterable[Finding]) -> None:
        """Apply the policy and the allow list to what was found outside of the check's events."""
        policy = next((p for c, p in self.checks if c.name == check), None)
        if policy is None:
            return
        kept = [f for f in map(self._rulings.placed, findings) if f not in self.allowed]
        if kept:
            self._judge([(f, policy) for f in kept], quiet=False)

    def scored(self, now: Moment) -> None:
        """An evaluation logged all its scores, and nobody has chosen by them yet."""
        self._all("scored", lambda check: check.scored(now))

    def flags(self, now: Moment, error: BaseException | None) -> None:
        """Check modes once more at the end of the block."""
        self._all(
            "after_step",
            lambda check: (
                check.after_step(now, None) if isinstance(check, ModesCheck) else ()
            ),
            quiet=error is not None,
        )

    def move(
        self, now: Moment, call: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Move a batch of an evaluation to the device under guard and return what that returns."""
        if not self._moves.looks(0):
            return call(*args, **kwargs)
        return self._move(now, call, args, kwargs)

    def _move(
        self,
        now: Moment,
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        seen: dict[str, Subscriber] = {}

        def before(check: Any) -> Iterable[Finding]:
            subscriber = check.before_move(now)
            if subscriber is not None:
                seen[check.name] = subscriber
            return ()

        self.ask("before_move", before)
        with Watch(*seen.values()) if seen else nullcontext() as watch:
            batch = call(*args, **kwargs)
        if watch is not None:
            self._audit.switch_off(watch, seen)
        self._all(
            "after_move", lambda check: check.after_move(now, seen.get(check.name))
        )
        return batch

    def train_step(
        self, now: Moment, call: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Run one training step under guard and return what it returns."""
        if now.epoch != self._epoch:
            self._trains.begin(again=self._epoch is not None)
            self._epoch = now.epoch
        now.thinned = not self._trains.looks(0)
        if found := self.call("before_train_step", now, args):
            self._judge(found, quiet=False)
        outputs = call(*args, **kwargs)
        self.report.checked["training_steps"] += 1
        found = self.call("before_backward", now, outputs) + self.call(
            "after_train_step", now
        )
        if found:
            self._judge(found, quiet=False)
        return outputs

    # what a check sees of a step's lines and operators

    def _standing(self) -> dict[str, Any]:
        standing: dict[str, Any] = {}

        def ask(check: Check) -> Iterable[Finding]:
            standing.update(check.standing())
            return ()

        with real_tensors():
            self.ask("standing", ask)
        return standing

    # asking and judging

    def _all(
        self, event: str, ask: Callable[[Any], Iterable[Finding]], quiet: bool = False
    ) -> None:
        """Ask every check, then judge all that they found at this moment together."""
        findings = self.ask(event, ask)
        if findings:
            self._judge(findings, quiet)

    def ask(
        self, event: str, ask: Callable[[Any], Iterable[Finding]]
    ) -> list[tuple[Finding, str]]:
        """What the checks find at an event, allowed findings left out, each with its policy."""
        findings: list[tuple[Finding, str]] = []
        for pair in self.hearing(event):
            check = pair[0]
            try:
                with (
                    aside,
                    uncollected(),
                    nullcontext() if check.enters or not is_watched() else unseen(),
                ):
                    findings += self._kept(pair, ask(check))
            except CannotReplay:
                raise
            except Exception as error:  # noqa: BLE001 - our own bug must not stop a training run
                self.failed(pair, error)
            if event in _AFTER_WHICH_NOTES:
                for sentence in check.notes:
                    self.report.note(sentence)
        return findings

    def call(self, event: str, *args: Any) -> list[tuple[Finding, str]]:
        """`ask`, where each check is called with the same: the events of every step.

        Most find nothing, so nothing is made for them: no closure, no context, no list.
        """
        found: list[tuple[Finding, str]] = []
        methods = self._listeners.methods[event]
        if not methods:
            return found
        hides = _modes_in_force()
        aside.depth += 1
        try:
            for pair, method in methods:
                try:
                    findings: Iterable[Finding]
                    if hides and not pair[0].enters:
                        with unseen():
                            findings = list(method(*args))
                    else:
                        findings = method(*args)
                    if findings:
                        found += self._kept(pair, findings)
                except CannotReplay:  # noqa: PERF203 - a step of which it is no question
                    raise
                except Exception as error:  # noqa: BLE001 - our bug must not stop a training run
                    self.failed(pair, error)
        finally:
            aside.depth -= 1
        return found

    def any(self, event: str) -> bool:
        """Whether any check answers yes at an event; each is asked, for some then forget it."""
        yes = False
        for pair, method in self._listeners.methods[event]:
            try:
                yes |= bool(method())
            except Exception as error:  # noqa: BLE001, PERF203 - ours must not stop a run
                self.failed(pair, error)
        return yes

    def _kept(
        self, pair: tuple[Check, str], findings: Iterable[Finding]
    ) -> list[tuple[Finding, str]]:
        """Findings that are not allowed, each with its policy."""
        check, policy = pair
        kept = [f for f in map(self._rulings.placed, findings) if f not in self.allowed]
        left_alone: Iterable[Finding] = ()
        if kept and policy == "fix":
            left_alone = check.fix(kept)
        return [(f, "warn" if f in left_alone else policy) for f in kept]

    def hearing(self, event: str) -> tuple[tuple[Check, str], ...]:
        """The checks that do something at an event: most do nothing at most of them."""
        return self._listeners.hearing(event)

    def _judge(self, findings: Sequence[tuple[Finding, str]], quiet: bool) -> None:
        explaining = (check for check, _ in self.hearing("explains"))
        self._rulings.give(findings, explaining, quiet)

    def failed(self, pair: tuple[Check, str], error: Exception) -> None:
        """Switch off a check that failed."""
        self._listeners.remove(pair)
        check = pair[0]
        with suppress(Exception):  # it is broken, but what it patched must not stay
            check.close(Moment("fit"))
        broke(self.report, f"the `{check.name}` check", "the rest of the run", error)
