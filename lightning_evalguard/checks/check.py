"""The protocol of a check: every question that the guard asks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

from lightning_evalguard.instruments.dispatch import Subscriber
from lightning_evalguard.instruments.source import Site
from lightning_evalguard.report import Finding

if TYPE_CHECKING:
    from lightning_evalguard.instruments.generators import Generators
    from lightning_evalguard.instruments.replay import Look


@dataclass
class Moment:
    """Where the run stands: what every finding of this instant carries.

    Attributes:
        stage: ``fit``, ``sanity_check``, ``validate``, ``test``, ``predict`` or ``evaluate``.
        epoch: Trainer's epoch, counted from 0.
        step: Trainer's global step.
        rank: Global rank.
        batch: Index of the batch within the stage, -1 outside a step.
        dataloader: Index of the data loader.
        fitting: Whether a fit is under way around this stage.
        thinned: Whether what looks again and again looks away from this step.
        skipped: How many steps it looked away from since it last looked.
    """

    stage: str
    epoch: int | None = None
    step: int | None = None
    rank: int = 0
    batch: int = -1
    dataloader: int = 0
    fitting: bool = False
    thinned: bool = False
    skipped: int = 0


class Check(Protocol):
    """What the guard drives. Each method returns the findings of that instant; by default none.

    A run (fit, validate, test, predict, or a plain block) lies between ``open`` and ``close``. An
    evaluation is ``start``, then ``before_step`` and ``after_step`` for each batch, then ``stop``,
    also when an exception ended it. A training step is ``before_train_step`` and
    ``after_train_step``.

    A check that has a method ``saw`` is a witness, which wants to see the operators of a step: the
    guard shows it the first step of an evaluation, and later the step after which ``tripped()`` is
    True for any check. It asks each for a subscriber (``watch``), runs the step once under all of
    them, and hands each its own back. Nothing of the step may be kept after ``saw`` returned.

    Attributes:
        name: The check's keyword, as `registry` lists it.
        lines: The lines that changed something that ``standing`` names.
        notes: What could not be checked, one sentence each.
        before: The generators as they stood before the step, where the check captured them.
        thins: Whether its ``before_step`` and ``after_step`` may be left out on most batches: the
            next look, or that at the end of the evaluation, finds what was changed meanwhile.
            Asked when an evaluation begins and at each look.
        enters: Whether it enters or leaves a dispatch mode in its events. What the others compute
            for themselves passes none.
    """

    name: str
    lines: Mapping[str, Site] = MappingProxyType({})
    notes: Sequence[str] = ()
    before: Generators | None = None
    thins: bool = False
    enters: bool = False

    def standing(self) -> Mapping[str, Any]:
        """What is compared line by line, by name, in hooks and steps of a first evaluation.

        The lines that changed one of them stand in ``lines`` while that evaluation runs.
        """
        return {}

    def open(self, root: nn.Module, now: Moment) -> Iterable[Finding]:
        """A run begins on `root`."""
        return ()

    def close(self, now: Moment) -> Iterable[Finding]:
        """The run is over, however it ended: leave nothing behind."""
        return ()

    def start(self, now: Moment) -> Iterable[Finding]:
        """An evaluation begins; eval mode is not yet set."""
        return ()

    def before_move(self, now: Moment) -> Subscriber | None:
        """A batch of an evaluation is about to move to the device: what wants to see it move."""
        return None

    def after_move(self, now: Moment, seen: Subscriber | None) -> Iterable[Finding]:
        """The batch was moved; `seen` is what ``before_move`` gave."""
        return ()

    def before_step(self, now: Moment, args: tuple[Any, ...]) -> Iterable[Finding]:
        """The user's step is about to run on ``args[0]``, the batch."""
        return ()

    def after_step(self, now: Moment, outputs: Any) -> Iterable[Finding]:
        """The user's step returned `outputs`."""
        return ()

    def broke_off(self, now: Moment, trace: TracebackType | None) -> Iterable[Finding]:
        """The step raised ``StopIteration``, which the loop takes for the end of its data."""
        return ()

    def steps_over(self, now: Moment) -> Iterable[Finding]:
        """The last step of an evaluation is over, and nothing that it logged is reset yet."""
        return ()

    def scored(self, now: Moment) -> Iterable[Finding]:
        """An evaluation logged all its scores, and nobody has chosen by them yet."""
        return ()

    def ends(self, now: Moment) -> Iterable[Finding]:
        """The last hook of an evaluation is over; its grad mode has not been put back yet."""
        return ()

    def stop(self, now: Moment, error: BaseException | None) -> Iterable[Finding]:
        """The evaluation is over and the loop restored what it restores; `error` ended it."""
        return ()

    def say(self, now: Moment) -> Any:
        """What this rank has to say to the others as an evaluation ends: plain data, or None.

        Asked where several ranks evaluate together, once `stop` has returned.
        """
        return None

    def hear(self, now: Moment, everyone: Mapping[int, Any]) -> Iterable[Finding]:
        """What each rank had to say; the same on all of them, so that all find the same."""
        return ()

    def before_train_step(
        self, now: Moment, args: tuple[Any, ...]
    ) -> Iterable[Finding]:
        """A training step is about to run on ``args[0]``, the batch."""
        return ()

    def before_backward(self, now: Moment, outputs: Any) -> Iterable[Finding]:
        """The user's training step returned `outputs`; unless it ran backward itself, none ran."""
        return ()

    def after_train_step(self, now: Moment) -> Iterable[Finding]:
        """The user's training step returned; backward has not run."""
        return ()

    def tripped(self) -> bool:
        """Whether this check's tripwire fired in the step that just ended; asked once a step."""
        return False

    def watch(self, now: Moment) -> Subscriber:
        """A fresh subscriber for the step that is about to be shown."""
        return Subscriber()

    def saw(
        self, now: Moment, seen: Subscriber | None, look: Look | None
    ) -> Iterable[Finding]:
        """The step was shown: say what it did.

        Args:
            now: Where the run stands.
            seen: What `watch` gave; None where the step could not be shown, and all that is
                known is that the tripwire fired.
            look: Runs the step again as often as needed; None where the step was watched while it
                ran for good, or could not be shown.
        """
        return ()

    def explains(self, other: Finding) -> Finding | None:
        """The finding of this check from which another check's finding follows, if one does."""
        return None

    def fix(self, findings: Sequence[Finding]) -> Iterable[Finding]:
        """Repair what `findings`, just made, name; only for checks whose policy takes ``"fix"``.

        Returns:
            Those that were left alone.
        """
        return ()
