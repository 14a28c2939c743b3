"""Whose weights are scored?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from lightning_evalguard.checks.check import Check, Moment
from lightning_evalguard.checks.weights import (
    files,
    hyper,
    loads,
    missed,
    origin,
    redrawn,
)
from lightning_evalguard.checks.weights.averaged import Averages
from lightning_evalguard.checks.weights.copied import Copies
from lightning_evalguard.checks.weights.optimizers import TrainedParameters
from lightning_evalguard.checks.weights.ranks import Replicas
from lightning_evalguard.checks.weights.rates import LearningRates
from lightning_evalguard.checks.weights.reads import MemoryReads
from lightning_evalguard.checks.weights.records import contradicted
from lightning_evalguard.checks.weights.words import OF_LIGHTNING, Remedies
from lightning_evalguard.instruments.dispatch import Subscriber, compiles
from lightning_evalguard.instruments.replay import Look
from lightning_evalguard.model.tensors import Inventory
from lightning_evalguard.record.agreement import Disagreement
from lightning_evalguard.report import Finding


class WeightsCheck(Check):
    """The `weights` check: what is evaluated was loaded, trained or averaged as it is meant.

    Args:
        optimizers: Gives the optimizers of a fit.
        callbacks: Gives the trainer's callbacks, which may average weights.
        disagreements: Gives the scores of this run that earlier records have otherwise.
        hyper_parameters: Gives those that the module was built with.
        remedies: In the words of the host.
        others: Gives further modules whose statistics an average may have, by name.
        schedulers: Gives the schedulers of a fit.
    """

    name = "weights"
    thins = True

    def __init__(
        self,
        optimizers: Callable[[], Iterable[Any]] = tuple,
        callbacks: Callable[[], Iterable[object]] = tuple,
        disagreements: Callable[[], Iterable[Disagreement] | None] = tuple,
        hyper_parameters: Callable[[], Mapping[str, Any]] = dict,
        remedies: Remedies = OF_LIGHTNING,
        others: Callable[[], Mapping[str, nn.Module]] = dict,
        schedulers: Callable[[], Iterable[Any]] = tuple,
    ) -> None:
        self.notes: list[str] = []
        self._remedies = remedies
        self._others = others
        self._optimizers = optimizers
        self._callbacks = callbacks
        self._disagreements = disagreements
        self._hyper_parameters = hyper_parameters
        self._schedulers = schedulers
        self._averages: Averages | None = None
        self._copies = Copies()
        self._replicas: Replicas | None = None
        self._inventory: Inventory | None = None
        self._training: TrainedParameters | None = None
        self._rates: LearningRates | None = None
        self._reads: MemoryReads | None = None
        self._redrawn: set[int] = set()  # before the run began
        self._judged = self._began = False

    def open(self, root: nn.Module, now: Moment) -> Iterable[Finding]:
        self._inventory = Inventory(root)
        self._inventory.refresh(force=True)
        self._training = TrainedParameters(
            self._inventory, self._optimizers, self._remedies
        )
        self._averages = Averages(self._inventory, self._callbacks(), self._others)
        self._copies = Copies()
        self._rates = LearningRates(self._optimizers, self._schedulers, root)
        self._replicas = Replicas(self._inventory)
        self._reads = None
        everything = origin.parameters_of(self._inventory)
        self._redrawn = {id(held.tensor) for held in redrawn.redrawn(everything)}
        self._judged = self._began = False
        return ()

    def start(self, now: Moment) -> Iterable[Finding]:
        self.notes += files.problems
        if now.fitting and self._training is not None:
            self._training.look()  # before the loop clears the gradients
        if self._averages is not None:
            self._averages.start(self._optimized(now))
        if not now.fitting:
            return ()
        return self._begins(now)

    def _begins(self, now: Moment) -> Iterable[Finding]:
        """What a fit begins with, once."""
        if self._began or self._inventory is None:
            return ()
        self._began = True
        return missed.before_training(self._inventory, now)

    def before_step(self, now: Moment, args: tuple[Any, ...]) -> Iterable[Finding]:
        if now.batch > 0 or now.dataloader > 0 or self._averages is None:
            return ()
        if self._replicas is not None:
            self._replicas.first_step()
        return self._averages.first_step(now, self._optimized(now))

    def _optimized(self, now: Moment) -> bool:
        """Whether this run has made a step of an optimizer."""
        return (
            self._training is not None and self._training.steps > 0 and bool(now.step)
        )

    def watch(self, now: Moment) -> Subscriber:
        return MemoryReads()

    def saw(
        self, now: Moment, seen: Subscriber | None, look: Look | None
    ) -> Iterable[Finding]:
        inventory = self._inventory
        if (
            inventory is None
            or not isinstance(seen, MemoryReads)
            or compiles(inventory.root)
        ):
            return ()
        if self._reads is None:
            self._reads = seen
        else:
            self._reads.add(seen)
        return self._origins(now)

    def stop(self, now: Moment, error: BaseException | None) -> Iterable[Finding]:
        if error is not None or self._averages is None:
            return ()
        if self._replicas is not None:
            self.notes += [n for n in self._replicas.notes if n not in self.notes]
        averaged = self._averages.stepped(self._reads, now, self._optimized(now))
        if self._inventory is not None and self._optimized(now):
            averaged += self._copies.stepped(self._inventory, self._reads, now)
        return [*averaged, *self._frozen(now), *self._origins(now)]

    def _frozen(self, now: Moment) -> Iterable[Finding]:
        if not now.fitting or self._inventory is None or self._reads is None:
            return ()
        return missed.frozen(self._inventory, self._reads, now)

    def say(self, now: Moment) -> Any:
        if self._replicas is None:
            return None
        return self._replicas.say()

    def hear(self, now: Moment, everyone: Mapping[int, Any]) -> Iterable[Finding]:
        if self._replicas is None:
            return ()
        return self._replicas.hear(everyone, now)

    def _origins(self, now: Moment) -> Iterable[Finding]:
        """Judge the weights of an evaluation on its own, once a run."""
        if now.fitting or self._judged or self._inventory is None:
            return ()
        self._judged = True
        self._inventory.refresh(force=True)
        findings = redrawn.evaluated(self._inventory, self._reads, self._redrawn, now)
        if not findings:
            findings = origin.judge(
                self._inventory, self._reads, now, self.notes, self._remedies
            )
        findings += missed.loads_of_itself(self._inventory, now)
        if self._reads is not None:
            findings += missed.statistics(self._inventory, self._reads, now)
        findings += missed.unestimated_norms(self._inventory, now)
        return [
            *findings,
            *hyper.other_hyper_parameters(
                self._inventory, self._hyper_parameters(), now
            ),
        ]

    def before_train_step(
        self, now: Moment, args: tuple[Any, ...]
    ) -> Iterable[Finding]:
        training, rates = self._training, self._rates
        if training is None or rates is None:
            return ()
        if rates.idle and now.epoch == training.epoch:
            rates.step()
        known = now.epoch == training.epoch and self._began and not training.due
        if now.thinned and known:
            training.steps += 1
            return ()
        if self._averages is not None and not training.steps:
            self._averages.training_begins()
        if self._inventory is not None and not training.steps:
            self._copies.training_begins(self._inventory)
        idle = rates.begin(now) if now.epoch != training.epoch else []
        anew = [] if training.steps else self._trained_anew(now)
        findings = [*idle, *anew, *training.step(now, self._reads)]
        if self._began:
            return findings
        return [*self._begins(now), *findings]

    def _trained_anew(self, now: Moment) -> list[Finding]:
        if self._inventory is None:
            return []
        return redrawn.trained_anew(self._inventory, self._redrawn, now)

    def close(self, now: Moment) -> Iterable[Finding]:
        training = self._training
        averages = self._averages
        inventory = self._inventory
        reads, self._reads = self._reads, None
        rates, self._rates = self._rates, None
        self._training = self._averages = self._replicas = self._inventory = None
        if training is None or averages is None or inventory is None:
            return ()
        contradictions = contradicted(self._disagreements() or (), now)
        if not training.steps:
            return contradictions
        averaged = averages.close(now, bool(now.step), training.steps)
        inventory.refresh(force=True)
        idle = rates.end(now) if rates is not None else []
        still = training.judge(now, reads, over=True)
        parameters = origin.parameters_of(inventory)
        redrawn.ends.add(held for held in parameters if held.tensor in origin.trained)
        return [*contradictions, *averaged, *idle, *still]


loads.watch_loads()
files.watch_files()
