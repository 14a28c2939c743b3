"""The checks of `evaluating` around the calls of one model in what may be an evaluation."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from torch import nn

from lightning_evalguard.audit import NOT_SHOWN, Mode, Replays, Showing, why_not_again
from lightning_evalguard.checks.batch.check import BatchCheck
from lightning_evalguard.checks.check import Check, Moment
from lightning_evalguard.checks.grad import GradCheck
from lightning_evalguard.checks.rng import RngCheck
from lightning_evalguard.checks.state.check import StateCheck
from lightning_evalguard.checks.stochastic.check import StochasticCheck
from lightning_evalguard.checks.weights.reads import MemoryReads
from lightning_evalguard.guard import Guard
from lightning_evalguard.instruments.dispatch import Subscriber
from lightning_evalguard.instruments.replay import Look
from lightning_evalguard.instruments.source import Site
from lightning_evalguard.plain.frames import at_site
from lightning_evalguard.report import Finding, Report, hidden

__tracebackhide__ = hidden

_SAMPLES = re.compile(r"reparam|sampl|gumbel|posterior|diffus|denois|generat")


class WaitingGuard(Guard):
    """A guard whose findings wait until its window is known to be an evaluation."""

    def __init__(
        self, *args: Any, look: bool, tell: Callable[[Any], None], **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._audit.shows = look
        if not look:  # an earlier window's first batches were looked at
            self._followed.add("evaluate")
        self._tell = tell
        self._waiting: list[tuple[Finding, str]] | None = []
        self.stepped: Site | None = None
        self.site: Site | None = None

    def release(self, whole: bool = False) -> None:
        """It is an evaluation: what waits, and what comes, is said.

        Args:
            whole: Whether one forward saw all samples: which are in its batch is then no choice.
        """
        waiting, self._waiting = self._waiting, None
        if whole:
            waiting = [(f, p) for f, p in waiting or () if f.check != "batch"]
        if waiting:
            self._tell(waiting)

    def _judge(self, findings: Sequence[tuple[Finding, str]], quiet: bool) -> None:
        # a loop may enter autocast for each batch: the window begins within and ends outside
        findings = [
            (self._placed(f), p)
            for f, p in findings
            if "autocast" not in (f.subject or "")
        ]
        findings = [(f, p) for f, p in findings if not self._is_sampled(f)]
        if self._waiting is None:
            self._tell(findings)
        else:
            self._waiting += findings

    def _is_sampled(self, finding: Finding) -> bool:
        """Whether the function that draws says by its name that this is what it is for."""
        if finding.check != "stochastic" or finding.certain:
            return False
        sampled = bool(_SAMPLES.search((finding.function or "").lower()))
        if sampled:
            self.report.note(
                f"{finding.location}: `{finding.expression}` {finding.fact}"
            )
        return sampled

    def _placed(self, finding: Finding) -> Finding:
        """What changed unseen, where an optimizer was stepped, was changed there.

        Else it stands at the call that is evaluated: it was changed in that loop.
        """
        site = self.stepped or self.site
        if site is None or finding.check != "state" or finding.location is not None:
            return finding
        if self.stepped is None:
            return at_site(replace(finding, leads="location"), site)
        remedy = "Step the optimizer in training only."
        return at_site(replace(finding, remedy=remedy), site)


class Watched:
    """The checks around the calls of one model in one window, as `evaluating` has them.

    Args:
        module: The model.
        make: Makes the guard.
        window: Whose now is asked for.
    """

    def __init__(self, module: nn.Module, guard: WaitingGuard, now: Moment) -> None:
        self._guard, self._now = guard, now
        self._inside: ExitStack | None = None
        self._showing: Showing | None = None
        guard.open(module, now)
        try:
            guard.start(now)
        except BaseException as error:
            guard.close(now, error)
            raise

    def release(self, whole: bool = False) -> None:
        """What it found is said from now on; see `WaitingGuard.release`."""
        self._guard.release(whole)

    def stepped_at(self, site: Site) -> None:
        """An optimizer was stepped there, in the middle of the evaluation."""
        self._guard.stepped = site

    def begin(self, args: tuple[Any, ...]) -> None:
        """A call begins."""
        self._now.batch += 1
        self._guard.before(self._now, args)
        if self._now.batch:  # as in `Guard.step`: only the first is shown
            self._showing = NOT_SHOWN
            return
        with ExitStack() as stack:
            self._showing = stack.enter_context(self._guard.shown(self._now))
            self._inside = stack.pop_all()

    def end(
        self,
        module: nn.Module,
        outputs: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        failed: bool,
    ) -> None:
        """It returned `outputs`, or failed."""
        inside, self._inside = self._inside, None
        if inside is not None:
            inside.close()
        if not failed and self._showing is not None:
            forward = module.forward
            self._guard.after(self._now, outputs, self._showing, forward, args, kwargs)

    def abandon(self) -> None:
        """Leave a call that is under way."""
        if self._inside is not None:
            self._inside.close()
            self._inside = None

    def close(self, compare: bool) -> Report:
        """The window is over; what it holds is compared with its beginning where that is sure.

        Where a loop's end was not seen, weights may have been swapped back since: that is the
        script's own business, and no finding.
        """
        error = None
        if not compare:
            error = _LooseEndError()
        self._guard.stop(self._now, error)
        self._guard.close(self._now)
        return self._guard.report


class _LooseEndError(Exception):
    """Stands for an end that was not seen."""


class _Reads(Check):
    """Sees what a step reads, for the `weights` check of the script."""

    name = "weights"

    def __init__(self, read: Callable[[set[int | None]], None]) -> None:
        self._read = read

    def watch(self, now: Moment) -> Subscriber:
        return MemoryReads()

    def saw(
        self, now: Moment, seen: Subscriber | None, look: Look | None
    ) -> list[Finding]:
        if isinstance(seen, MemoryReads):
            self._read(seen.storages)
        return []


def make_held(
    policies: dict[str, str],
    allow: Any,
    look: bool,
    grad: bool,
    optimizers: Callable[[], list[Any]],
    tell: Callable[[Any], None],
    site: Site | None = None,
    rows: bool = False,
    read: Callable[[set[int | None]], None] | None = None,
) -> WaitingGuard:
    """The guard of one model in one window.

    Args:
        policies: Of every check.
        allow: Patterns of what is meant.
        look: Whether the first call is watched as it runs.
        grad: Whether gradients are on: then nothing is watched nor run again.
        optimizers: Gives those of the script.
        tell: Takes what is found.
        site: The first call.
        rows: Whether each row of what the first call is given is a sample: then it is run again on
            halves of them.
        read: Takes what the step that is watched reads.
    """
    checks: list[Check] = [
        StateCheck(optimizers),
        StochasticCheck(),
        RngCheck(restore=False),
    ]
    if not grad:
        checks.insert(0, GradCheck())
        if rows:
            checks.append(BatchCheck())
    if read is not None:
        checks.append(_Reads(read))
    wanted = [(check, policies[check.name]) for check in checks]
    wanted = [(check, policy) for check, policy in wanted if policy != "ignore"]
    audit: Mode = "full" if rows else "auto"
    replays = Replays(
        "off" if grad else audit, beside=optimizers, why_not=why_not_again
    )
    held = WaitingGuard(
        wanted, allow, Report(), replays, host="watch", look=look, tell=tell
    )
    held.site = site
    return held
