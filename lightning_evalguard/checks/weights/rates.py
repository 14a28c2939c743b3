"""Does an epoch train anything, or is each of its steps taken at a learning rate of 0?

A schedule that warms up by epochs and begins at 0, or that ends before the fit does. Reported are
epochs in which every optimizer that holds trainable parameters had a rate of exactly 0 in all of
its groups and in every step, and which changed none of the values that were looked at. Meant are:
one group or one optimizer of several at 0, which takes turns or is frozen, a rate of 0 that the
optimizer was made with, and a first step at 0 (a warmup by steps).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_evalguard.checks.check import Moment
from lightning_evalguard.checks.weights.loads import probe, version_of
from lightning_evalguard.checks.weights.words import weights_finding
from lightning_evalguard.data.loaders import source_of
from lightning_evalguard.report import Finding

FEWEST_STEPS = 2  # steps of the optimizer; one is the beginning of a warmup by steps
NO_RATE = "Give each epoch that trains a learning rate above 0."
_PROBED = 8  # parameters


class LearningRates:
    """Follows the learning rates of one fit, epoch by epoch.

    Args:
        optimizers: Gives the optimizers of the fit.
        schedulers: Gives the schedulers that steer them.
        root: The model.

    Attributes:
        idle: Whether no step of the running epoch had a rate other than 0 so far.
    """

    def __init__(
        self,
        optimizers: Callable[[], Iterable[Any]],
        schedulers: Callable[[], Iterable[Any]],
        root: nn.Module,
    ) -> None:
        self._optimizers = optimizers
        self._schedulers = schedulers
        # a model of a script may go before the script is over
        self._model = weakref.ref(root)
        self.idle = False
        self._reported = False
        self._epoch: int | None = None
        self._batches = 0
        self._first = 0  # step of the optimizer with which the epoch began
        self._kept: list[tuple[Tensor, int, list[float] | None]] = []

    def begin(self, now: Moment) -> list[Finding]:
        """An epoch's first step is about to run; what the one before did is known."""
        findings = self.end(now)
        self._epoch = now.epoch
        self._first = now.step or 0
        self._batches = 1
        self.idle = not self._reported and at_zero(self._optimizers())
        return findings

    def step(self) -> None:
        """Another step of an epoch is about to run that has been `idle`."""
        self._batches += 1
        self.idle = at_zero(self._optimizers())
        if not self.idle:
            self._kept = []
        elif not self._kept:
            # not before the second step: the first one of a warmup costs nothing
            trained = _trainable(self._optimizers())
            some = trained[:: max(1, -(-len(trained) // _PROBED))]
            self._kept = [(t, version_of(t), probe(t)) for t in some]

    def end(self, now: Moment) -> list[Finding]:
        """The running epoch is over, or the fit is."""
        kept, self._kept = self._kept, []
        idle, self.idle = self.idle, False
        if not idle or not kept or not self._stepped(now, kept):
            return []
        if any(values is None or values != probe(t) for t, _, values in kept):
            return []
        self._reported = True
        return [self._finding(now)]

    def _stepped(
        self, now: Moment, kept: list[tuple[Tensor, int, list[float] | None]]
    ) -> bool:
        """Whether the optimizers made several steps: their writes are counted."""
        counted = (now.step or 0) - self._first
        if 0 < counted < FEWEST_STEPS or self._batches < FEWEST_STEPS:
            return False
        uncounted = any(
            group.get("fused")
            for optimizer in self._optimizers()
            for group in optimizer.param_groups
        )
        return uncounted or any(version_of(t) != at for t, at, _ in kept)

    def _finding(self, now: Moment) -> Finding:
        optimizers = list(self._optimizers())
        names = " and ".join(dict.fromkeys(type(o).__name__ for o in optimizers))
        how = (
            f"a learning rate of 0 in all {self._batches} steps of epoch {self._epoch}: nothing "
            "was learned in it"
        )
        fact = f"{names} had {how}"
        kind = None
        subject = None
        remedy = NO_RATE
        scheduler = self._steering(optimizers)
        if scheduler is not None:
            kind = type(scheduler).__name__
            subject = "lr_schedulers[0]"
            fact = f"gives {names} {how}"
            remedy = (
                f"Let {kind} count from 1, step with each batch "
                '(`"interval": "step"`), or reach 0 only where the fit ends.'
            )
        made = getattr(type(self._model()), "configure_optimizers", None)
        finding = weights_finding(
            now, fact, remedy, subject=subject, kind=kind, certain=False
        )
        return replace(finding, location=source_of(made))

    def _steering(self, optimizers: list[Any]) -> Any:
        """The first scheduler of one of the optimizers; None where there is none."""
        held = [id(optimizer) for optimizer in optimizers]
        for scheduler in self._schedulers():
            if id(getattr(scheduler, "optimizer", None)) in held:
                return scheduler
        return None


def at_zero(optimizers: Iterable[Any]) -> bool:
    """Whether every group that holds trainable parameters has a rate of 0, once another."""
    was_another = False
    for optimizer in optimizers:
        if not isinstance(optimizer, Optimizer):
            return False
        made_with = optimizer.defaults.get("lr")
        for group in optimizer.param_groups:
            rate = group.get("lr")
            if isinstance(rate, (int, float)) and not rate:
                was_another |= bool(group.get("initial_lr", made_with))
            elif any(tensor.requires_grad for tensor in group["params"]):
                return False
    return was_another


def _trainable(optimizers: Iterable[Any]) -> list[Tensor]:
    """The parameters that the optimizers hold and a gradient may reach."""
    return [
        tensor
        for optimizer in optimizers
        for group in optimizer.param_groups
        for tensor in group["params"]
        if tensor.requires_grad
    ]
