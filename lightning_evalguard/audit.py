"""How the operators of a step are shown to the checks: as it runs, or in a replay after it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import (
    AbstractContextManager,
    ExitStack,
    contextmanager,
    nullcontext,
    suppress,
)
from dataclasses import dataclass, field, replace
from types import CodeType
from typing import Any, Literal, Protocol

import torch
from torch import nn

from lightning_evalguard.checks.check import Check, Moment
from lightning_evalguard.instruments.dispatch import (
    Subscriber,
    Watch,
    aside,
    blinds_compiled,
    compiles,
    unseen,
)
from lightning_evalguard.instruments.effects import Effects
from lightning_evalguard.instruments.generators import Generators
from lightning_evalguard.instruments.given import Given
from lightning_evalguard.instruments.replay import (
    RUNS_EAGERLY,
    CannotReplay,
    Look,
    uncollected,
)
from lightning_evalguard.ranks import processes
from lightning_evalguard.report import Finding, Report, broke
from lightning_evalguard.stages import is_sanity_check, spelling

Mode = Literal["auto", "full", "off"]
Judged = list[tuple[Finding, str]]
_NOT_LOOKED_AT = (
    "whether its results depend on the batch, or on unseeded draws, is not known"
)


@dataclass
class Replays:
    """How a step may be shown to the checks that want to see its operators.

    Attributes:
        audit: ``"auto"``: the first step of the sanity check is run again, the first step of any
            other evaluation is watched as it runs; ``"full"``: that one is run again too;
            ``"off"``: neither, and no step is run again when a tripwire fires.
        beside: Gives what a step can change beside the model: optimizers, schedulers.
        isolate: Keeps a replay out of the loop's books and the loggers.
        why_not: Gives the reason why steps must not be run again, or None.
    """

    audit: Mode = "auto"
    beside: Callable[[], Iterable[object]] = tuple
    isolate: Callable[[], AbstractContextManager[Any]] | None = None
    why_not: Callable[[], str | None] = lambda: None


@dataclass
class Showing:
    """How a step is shown.

    Attributes:
        again: Whether it is to be run again after it.
        watched: What watches it as it runs, by check.
        effects: What it did that cannot be undone, where that is looked at.
    """

    again: bool = False
    watched: dict[str, Subscriber] = field(default_factory=dict)
    effects: Effects | None = None


NOT_SHOWN = Showing()
"""Of most steps: their operators are shown to nobody."""


class Asks(Protocol):
    """What the audit needs of the guard."""

    report: Report

    @property
    def checks(self) -> Sequence[tuple[Check, str]]:
        """The checks that have not failed, each with its policy."""

    def ask(self, event: str, ask: Callable[[Any], Iterable[Finding]]) -> Judged:
        """What the checks answer at an event."""

    def hearing(self, event: str) -> tuple[tuple[Check, str], ...]:
        """The checks that do something at an event, with their policies."""

    def failed(self, pair: tuple[Check, str], error: Exception) -> None:
        """Switch a check off."""


class Audit:
    """Shows steps to the checks that are witnesses, by the cheapest means that tell enough.

    Args:
        guard: Asks the checks.
        replays: How a step may be shown.

    Attributes:
        shows: Whether the first step of each kind of run is shown.
        remembers: Whether it is asked, before a step, to keep what that is given.
    """

    def __init__(self, guard: Asks, replays: Replays) -> None:
        self.replays = replays
        self.shows = True
        self._guard = guard
        self._root: nn.Module | None = None
        self._shown: set[str] = set()
        self._code: dict[CodeType, dict[str, Any]] = {}
        self._given: Given | None = None  # to the running step
        # whether steps change the containers that they are given
        self._is_taken_from = self.remembers = False

    def open(self, root: nn.Module) -> None:
        """A run begins on `root`."""
        self._root = root
        self._shown.clear()
        self._code.clear()

    def close(self) -> None:
        """The run is over."""
        self._root = self._given = None
        self._code.clear()

    def start(self, now: Moment) -> None:
        """An evaluation begins."""
        self.remembers = self._is_taken_from or self._is_due(now)

    def begins(self, now: Moment, args: tuple[Any, ...]) -> None:
        """A step is about to run on `args`: it may be run again on what they hold now."""
        self._given = None
        if self._is_taken_from or self._is_due(now):
            # an object of the user's that does not let itself be walked
            with suppress(Exception):
                self._given = Given(args)

    @contextmanager
    def shown(self, now: Moment) -> Iterator[Showing]:
        """Show the operators of what runs inside to the checks that want to see this step's.

        A step that is to be run again is watched too: it may turn out that it must not be.
        """
        showing = self._showing(now)
        if showing is None:
            yield Showing()
            return
        watch = Watch(*showing.watched.values())
        with ExitStack() as stack:
            if showing.effects is not None:
                # The first operator under a dispatch mode imports it: that is no act of the step.
                importlib.import_module("torch._dynamo")
                stack.enter_context(showing.effects)
            if showing.watched:
                stack.enter_context(watch)
            yield showing
        self.switch_off(watch, showing.watched)
        if showing.effects is not None:
            self._code.update(showing.effects.code)

    def after(
        self,
        now: Moment,
        showing: Showing,
        tripped: bool,
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Judged:
        """What the witnesses find in ``call(*args, **kwargs)``, which was shown and has run.

        Args:
            now: The step.
            showing: How it was shown.
            tripped: Whether a check wants it shown again.
            call: The step, and what it was called with.
            args: By place.
            kwargs: By name.
        """
        given, self._given = self._given, None
        if given is not None and not self._is_taken_from:
            self._is_taken_from = given.is_changed
        self.remembers = self._is_taken_from
        if not (showing.again or tripped):
            if not showing.watched:
                return []
            return self._watched(now, showing)
        why = self._why_not(showing)
        if why is None:
            try:
                as_before = given.as_before() if given is not None else nullcontext()
                with uncollected(), unseen(), as_before:
                    return self._again(now, call, args, kwargs)
            except CannotReplay as error:
                why = str(error)
            except Exception as error:  # noqa: BLE001 - our own bug must not stop a training run
                self.replays = replace(self.replays, audit="off")
                what = "the closer look at a step"
                broke(self._guard.report, what, "the rest of the run", error)
                why = "it failed"
        self._guard.report.note(
            f"a step was not run again for a closer look: {why}; {_NOT_LOOKED_AT}"
        )
        return self._watched(now, showing)

    def _showing(self, now: Moment) -> Showing | None:
        """How this step is to be shown whatever happens in it: the first of each kind of run."""
        root = self._root
        if root is None or not self._is_due(now):
            return None
        self._shown.add(spelling(now.stage).kind)
        again = self.replays.audit == "full" or is_sanity_check(now.stage)
        return Showing(
            again and self.replays.why_not() is None,
            {} if blinds_compiled(root) else self._subscribers(now),
            # Dynamo compiles no frame under a profiler
            Effects(calls=not compiles(root)),
        )

    def _is_due(self, now: Moment) -> bool:
        """Whether a step is the first of its kind of run."""
        if not self.shows or self.replays.audit == "off":
            return False
        is_new = spelling(now.stage).kind not in self._shown
        return is_new and self._root is not None and bool(self._witnesses())

    def _witnesses(self) -> list[Any]:
        return [check for check, _ in self._guard.hearing("saw")]

    def _subscribers(self, now: Moment) -> dict[str, Subscriber]:
        subscribers: dict[str, Subscriber] = {}

        def ask(check: Any) -> Iterable[Finding]:
            subscribers[check.name] = check.watch(now)
            return ()

        self._guard.ask("watch", ask)
        return subscribers

    def switch_off(self, watch: Watch, watched: Mapping[str, Subscriber]) -> None:
        """Switch off the checks whose subscribers failed."""
        for subscriber, error in watch.failures:
            for pair in self._guard.checks:
                if watched.get(pair[0].name) is subscriber:
                    self._guard.failed(pair, error)

    def _watched(self, now: Moment, showing: Showing) -> Judged:
        """What is known without a replay."""
        watched = showing.watched
        return self._guard.ask(
            "saw", lambda check: check.saw(now, watched.get(check.name), None)
        )

    def _why_not(self, showing: Showing) -> str | None:
        """Why the step that has just run must not be run again; None where it may be."""
        if self._root is None or self.replays.audit == "off":
            return "replays are off"
        if showing.effects is not None and showing.effects.why is not None:
            return f"it {showing.effects.why}"
        if not RUNS_EAGERLY and compiles(self._root):
            return (
                f"torch {torch.__version__} would compile it anew, 2.6 and later do not"
            )
        return self.replays.why_not()

    def _again(
        self,
        now: Moment,
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Judged:
        """Run the step again for the witnesses, every effect undone."""
        assert self._root is not None
        before = next((c.before for c in self._witnesses() if c.before), None)
        look = Look(
            self._root,
            call,
            args,
            kwargs,
            before=before or Generators.capture(),
            beside=self.replays.beside(),
            isolate=self.replays.isolate,
            code=self._code,
        )
        with aside, look:
            subscribers = self._subscribers(now)
            outcome = look.again(*subscribers.values(), strict=False)
            self.switch_off(outcome.watch, subscribers)
            if isinstance(outcome.error, CannotReplay):
                raise outcome.error
            if outcome.error is not None:
                raise CannotReplay(f"{type(outcome.error).__name__}: {outcome.error}")
            self._guard.report.checked["replayed_steps"] += 1
            return self._guard.ask(
                "saw", lambda check: check.saw(now, subscribers.get(check.name), look)
            )


def why_not_again() -> str | None:
    """Why a step must not be run again; None where it may be."""
    # A replay on one rank alone would wait for the others in the step's first collective.
    if processes() > 1:
        return "several processes evaluate together"
    return None


__all__ = ["Audit", "Mode", "Replays", "Showing", "why_not_again"]
