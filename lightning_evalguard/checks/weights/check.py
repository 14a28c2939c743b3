"""Whose weights are scored?"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from lightning_evalguard.checks.check import Check, Moment
from lightning_evalguard.checks.weights import loads, origin
from lightning_evalguard.checks.weights.optimizers import Training
from lightning_evalguard.checks.weights.origin import Reads
from lightning_evalguard.instruments.dispatch import Subscriber, compiles
from lightning_evalguard.instruments.replay import Look
from lightning_evalguard.model.tensors import Inventory
from lightning_evalguard.report import Finding


class WeightsCheck(Check):
    """The `weights` check: what is evaluated was loaded, trained or averaged as it is meant.

    Args:
        optimizers: Gives the optimizers of a fit.
    """

    name = "weights"

    def __init__(self, optimizers: Callable[[], Iterable[Any]] = tuple) -> None:
        self.notes: list[str] = []
        self._optimizers = optimizers
        self._inventory: Inventory | None = None
        self._training: Training | None = None
        self._reads: Reads | None = None
        self._judged = False

    def open(self, root: nn.Module, now: Moment) -> Iterable[Finding]:
        self._inventory = Inventory(root)
        self._training = Training(self._inventory, self._optimizers)
        self._reads = None
        self._judged = False
        return ()

    def start(self, now: Moment) -> Iterable[Finding]:
        self.notes += loads.problems
        if now.fitting and self._training is not None:
            self._training.look()  # before the loop clears the gradients
        return ()

    def watch(self, now: Moment) -> Subscriber:
        return Reads()

    def saw(self, now: Moment, seen: Subscriber | None, look: Look | None) -> Iterable[Finding]:
        inventory = self._inventory
        if inventory is None or not isinstance(seen, Reads) or compiles(inventory.root):
            return ()
        if self._reads is None:
            self._reads = seen
        else:
            self._reads.storages |= seen.storages
        return self._origins(now)

    def stop(self, now: Moment, error: BaseException | None) -> Iterable[Finding]:
        return self._origins(now) if error is None else ()

    def _origins(self, now: Moment) -> Iterable[Finding]:
        """Judge the weights of an evaluation on its own, once a run."""
        if now.fitting or self._judged or self._inventory is None:
            return ()
        self._judged = True
        self._inventory.refresh(force=True)
        return origin.judge(self._inventory, self._reads, now)

    def before_train_step(self, now: Moment, args: tuple[Any, ...]) -> Iterable[Finding]:
        return self._training.step(now) if self._training is not None else ()

    def close(self, now: Moment) -> Iterable[Finding]:
        training, inventory, reads = self._training, self._inventory, self._reads
        self._training = self._inventory = self._reads = None
        if training is None or inventory is None or not training.steps:
            return ()
        inventory.refresh(force=True)
        return training.judge(now, reads, over=True)


loads.watch()
