"""Whose weights does a script score? The `weights` check of one model, which it does not hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel

from lightning_evalguard.checks.check import Moment
from lightning_evalguard.checks.weights import missed
from lightning_evalguard.checks.weights.check import WeightsCheck
from lightning_evalguard.checks.weights.reads import MemoryReads
from lightning_evalguard.checks.weights.words import OF_SCRIPTS
from lightning_evalguard.instruments.source import Site
from lightning_evalguard.model.tensors import Inventory
from lightning_evalguard.plain.frames import at_site
from lightning_evalguard.report import Finding


class ModelWeights(WeightsCheck):
    """The `weights` check of one model of a script.

    A script says nowhere that training is over, and an evaluation before it is a usual baseline.
    So what an evaluation finds waits for the end of the script and is dropped where training
    follows; and what training has left out is judged as if it were over, again and again, and said
    at the end.

    Args:
        optimizers: Gives the optimizers that hold some of the model's parameters.
        has_trained: Whether any model of the script was trained.
        others: Gives the modules of the script's other models, by name.

    Attributes:
        waiting: What is said at the end, unless the model is trained before.
    """

    def __init__(
        self,
        optimizers: Callable[[], Iterable[Any]],
        has_trained: Callable[[], bool],
        others: Callable[[], Mapping[str, nn.Module]],
    ) -> None:
        super().__init__(optimizers, remedies=OF_SCRIPTS, others=others)
        self._has_trained = has_trained
        self.waiting: list[Finding] = []
        self._left_out: list[Finding] = []  # by training, as it stands
        self._judged_at = 0  # steps

    @contextmanager
    def on(self, root: nn.Module, now: Moment) -> Iterator[None]:
        """Look at `root`, which is held inside alone."""
        if self._inventory is None:
            self.open(root, now)
            self._replicas = None
        else:
            inventory = Inventory(root)
            inventory.refresh(force=True)
            self._hold(inventory)
        try:
            yield
        finally:
            self._hold(Inventory(_NONE))

    def _hold(self, inventory: Inventory) -> None:
        self._inventory = inventory
        if self._training is not None and self._averages is not None:
            self._training.inventory = self._averages.inventory = inventory

    def _optimized(self, now: Moment) -> bool:
        return self._has_trained()

    # training

    @property
    def is_due(self) -> bool:
        """Whether the gradients of the next step are to be looked at."""
        return self._training is None or self._training.due

    def passes(self) -> None:
        """The optimizer makes a step that is not looked at."""
        if self._training is not None:
            self._training.steps += 1

    def steps(self, now: Moment) -> list[Finding]:
        """The optimizer is about to make a step: gradients are there."""
        findings = list(self.before_train_step(now, ()))
        if self._training is not None:
            self._training.look()
        return findings

    def trained(self, now: Moment) -> list[Finding]:
        """A pass over a training loader is over: what it shows is said at the end."""
        if self._averages is not None:
            self._averages.start(optimized=True)
        self._judge_training(now)
        return []

    def _judge_training(self, now: Moment) -> None:
        training = self._training
        if training is not None and training.steps:
            self._left_out = training.so_far(now, self._reads)
            self._judged_at = training.steps

    # evaluations

    def evaluated(
        self, now: Moment, reads: set[int | None] | None, site: Site, is_scored: bool
    ) -> list[Finding]:
        """An evaluation is over.

        Args:
            now: Where the script stands.
            reads: The memory that one of its steps reads, where that is known.
            site: Where the model is called.
            is_scored: Whether what the model alone gives is scored.
        """
        if reads is not None:
            self._reads = MemoryReads()
            self._reads.storages = reads
        if self._averages is None or self._inventory is None:
            return []
        at = Moment("evaluate", now.epoch, now.step, batch=0, fitting=now.fitting)
        findings = self._averages.stepped(self._reads, at, self._optimized(at))
        root = self._inventory.root
        findings = [_placed(finding, site, root) for finding in findings]
        if not now.fitting:
            self._keep_origins(at, site, is_scored)
            return findings
        self._judge_training(now)
        as_at_first = self._averages.first_step(at, True)
        self.waiting += [_placed(finding, site, root) for finding in as_at_first]
        self._averages.unsay()  # what waits may be dropped
        self.waiting += missed.loads_of_itself(self._inventory, at)
        return [*findings, *self._frozen(at)]

    def _keep_origins(self, now: Moment, site: Site, is_scored: bool) -> None:
        """A later evaluation of other weights shows what an earlier one was: a baseline."""
        if self._inventory is None or isinstance(self._inventory.root, AveragedModel):
            return
        self._judged = False
        self.waiting = [f for f in self.waiting if f.location != site.location]
        for finding in self._origins(now):
            is_whole = finding.location is None and finding.subject == ""
            if not is_whole or (is_scored and self._is_to_learn()):
                placed = _placed(finding, site, self._inventory.root)
                self.waiting.append(placed)

    def _is_to_learn(self) -> bool:
        """Whether what is read asks for gradients: random features do not."""
        if self._inventory is None or self._reads is None:
            return False
        return any(
            held.tensor.requires_grad and held.tensor in self._reads
            for held in self._inventory.held.values()
        )

    # the end

    def over(self, now: Moment, root: nn.Module | None) -> list[Finding]:
        """The script is over: what is left to say, of a model that may be gone."""
        training = self._training
        steps = 0
        if training is not None:
            steps = training.steps
        if steps != self._judged_at:
            self._left_out = []
            if root is not None:
                with self.on(root, now):
                    self._judge_training(now)
        return [*self.waiting, *self._left_out]


def _placed(finding: Finding, site: Site, root: nn.Module) -> Finding:
    """What has no line of its own stands where the model is called."""
    if finding.location is not None:
        return finding
    kind = finding.subject_type
    if finding.subject == "":
        kind = type(root).__name__
    return at_site(replace(finding, subject_type=kind), site)


_NONE = nn.Module()

__all__ = ["ModelWeights"]
