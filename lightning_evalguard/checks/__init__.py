"""One file a rule. A check looks and returns findings; it never warns or raises."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

from torch import nn

from lightning_evalguard._source import Site
from lightning_evalguard.report import Finding


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
    """

    stage: str
    epoch: int | None = None
    step: int | None = None
    rank: int = 0
    batch: int = -1
    dataloader: int = 0
    fitting: bool = False


class Check(Protocol):
    """What the guard drives. Each method returns the findings of that instant; by default none.

    A run (fit, validate, test, predict, or a plain block) lies between ``open`` and ``close``. An
    evaluation is ``start``, then ``before_step`` and ``after_step`` for each batch, then ``stop``,
    also when an exception ended it. A training step is ``before_train_step`` and
    ``after_train_step``.
    """

    name: str
    lines: Mapping[str, Site] = MappingProxyType({})

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

    def before_step(self, now: Moment, args: tuple[Any, ...]) -> Iterable[Finding]:
        """The user's step is about to run on ``args[0]``, the batch."""
        return ()

    def after_step(self, now: Moment, outputs: Any) -> Iterable[Finding]:
        """The user's step returned `outputs`."""
        return ()

    def stop(self, now: Moment, error: BaseException | None) -> Iterable[Finding]:
        """The evaluation is over and the loop restored what it restores; `error` ended it."""
        return ()

    def before_train_step(self, now: Moment, args: tuple[Any, ...]) -> Iterable[Finding]:
        """A training step is about to run on ``args[0]``, the batch."""
        return ()

    def after_train_step(self, now: Moment) -> Iterable[Finding]:
        """The user's training step returned; backward has not run."""
        return ()

    def fix(self) -> None:
        """Repair what the last findings named; only for checks whose policy takes ``"fix"``."""
        return
