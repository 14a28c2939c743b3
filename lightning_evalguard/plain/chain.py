"""The models of a script, from their first step to their last score."""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.data import RandomSampler, SequentialSampler

from lightning_evalguard.checks.check import Check, Moment
from lightning_evalguard.data.loaders import sampler_of
from lightning_evalguard.instruments.source import Site
from lightning_evalguard.plain.judge import Judge
from lightning_evalguard.plain.models import Model, Models
from lightning_evalguard.plain.names import Names
from lightning_evalguard.plain.rates import PassRates
from lightning_evalguard.plain.sets import ModelSets
from lightning_evalguard.plain.training import TrainingSteps
from lightning_evalguard.plain.variables import name_of_loader
from lightning_evalguard.plain.weights import ModelWeights
from lightning_evalguard.plain.window import Loop, Window
from lightning_evalguard.report import Finding

_OF_A_KIND = 32  # models of one class that are followed: copies for each task, folds


class OfEachModel(Check):
    """Stands in a list of checks for one that looks at each model by itself.

    Args:
        name: The check.
    """

    def __init__(self, name: str) -> None:
        self.name = name


@dataclass
class ScriptModel:
    """One model.

    Attributes:
        model: It, not held.
        weights: Whose weights it is scored with.
        sets: On which samples.
        now: Where its training stands: passes over loaders and steps of optimizers.
        loop: The pass over a loader in which it was trained last.
        trains_with: The ``id`` of the optimizer of its last step, and of the pass.
    """

    model: Model
    weights: ModelWeights
    sets: ModelSets = field(default_factory=ModelSets)
    now: Moment = field(default_factory=lambda: Moment("fit", 0, 0))
    loop: Loop | None = None
    trains_with: tuple[int, int] | None = None


class Chain:
    """Follows the models that are trained or evaluated.

    Args:
        judge: Judges what is found.
        models: The root modules of the script.
        training: Its training so far.
        names: Gives numbers to datasets and samplers.
    """

    def __init__(
        self, judge: Judge, models: Models, training: TrainingSteps, names: Names
    ) -> None:
        self._names = names
        self._judge = judge
        self._models = models
        self._training = training
        self._followed: dict[int, ScriptModel] = {}
        self._kinds: Counter[str] = Counter()
        self._rates = PassRates()
        self._reads: ModelSets | None = None  # of the running evaluation
        self._owners: weakref.WeakKeyDictionary[Any, tuple[Any, list[Model]]]
        self._owners = weakref.WeakKeyDictionary()

    # training

    def stepped(
        self, optimizer: torch.optim.Optimizer, loop: Loop | None, alone: bool
    ) -> None:
        """An optimizer is about to change weights.

        Args:
            optimizer: The optimizer.
            loop: What runs.
            alone: Whether no other loop runs, so that its samples are those trained on.
        """
        self._rates.step(optimizer, loop)
        for model in self._owned_by(optimizer):
            one = self._follow(model)
            if one is None:
                continue
            self._steps(one, loop)
            if (
                loop is not None
                and alone
                and one.trains_with != (id(optimizer), loop.number)
            ):
                one.trains_with = id(optimizer), loop.number
                self._trains(one, optimizer, loop)

    def _trains(
        self, one: ScriptModel, optimizer: torch.optim.Optimizer, loop: Loop
    ) -> None:
        root = one.model.inner()
        loader = loop.loader()
        with_this = (id(optimizer), id(loop))
        if one.trains_with == with_this or root is None or loader is None:
            return
        one.trains_with = with_this

        def trains() -> list[Finding]:
            one.sets.trains(root, optimizer, self._number(loader), loader)
            return []

        self._judge.follow("data", trains)

    def trains_on(self, model: Model, loop: Loop) -> None:
        """A model is called on a batch that it trains on."""
        one = self._followed.get(id(model))
        batch = loop.batch
        if one is None or not one.sets.looks or batch is None:
            return
        if one.loop is not loop:
            return
        sets = one.sets

        def looks() -> list[Finding]:
            sets.trains_on(batch)
            return []

        self._judge.follow("data", looks)

    def _steps(self, one: ScriptModel, loop: Loop | None) -> None:
        now = one.now
        weights = one.weights
        steps = now.step = (now.step or 0) + 1
        now.fitting = True
        weights.waiting.clear()
        begins = loop is not one.loop
        if begins:
            one.loop = loop
            now.epoch = (now.epoch or 0) + 1
        if begins or weights.is_due or not steps & (steps - 1):
            self._look(one, lambda: weights.steps(now))
        else:
            weights.passes()

    def trained_by_hand(self) -> None:
        """Gradients are computed in a script without optimizers."""
        for one in self._followed.values():
            one.weights.waiting.clear()

    def loop_over(self, loop: Loop) -> None:
        """A pass over a loader is over."""
        if not loop.ever_trained:
            return
        self._judge.follow("weights", partial(self._rates.over, loop))
        for one in self._followed.values():
            if one.loop is loop:
                self._look(one, partial(one.weights.trained, one.now))

    # evaluations

    def begins(self, window: Window) -> None:
        """A window is known to be an evaluation: its samples are looked at from here on."""
        loop = window.loop
        if window.is_followed or loop is None or window.alone:
            return
        window.is_followed = True
        self._begins(window, loop)
        # the first batch is there as long as the second is not
        batches = window.batches + bool(window.in_batch)
        if batches:
            self.batch(loop.batch if batches == 1 else None)

    def _begins(self, window: Window, loop: Loop) -> None:
        self._reads = None
        model = next(iter(window.calls.values())).model
        one = self._follow(model)
        root = model.inner()
        loader = loop.loader()
        if one is None or root is None or loader is None:
            return
        called = name_of_loader(sys._getframe(2))

        def begins() -> list[Finding]:
            if one.sets.begins(root, one.now, self._number(loader), loader, called):
                self._reads = one.sets
            return []

        self._judge.follow("data", begins)

    def batch(self, batch: Any) -> None:
        """A batch of it."""
        if self._reads is not None:
            self._judge.follow("data", partial(_read, self._reads, batch))

    def _ends(self, window: Window, is_scored: bool) -> None:
        sets, self._reads = self._reads, None
        if sets is not None:
            site = next(iter(window.calls.values())).site
            self._judge.follow("data", partial(sets.judged, site, is_scored))

    def evaluated(self, window: Window, is_scored: bool) -> None:
        """An evaluation is over."""
        self._ends(window, is_scored)
        models = {id(call.model): call.model for call in window.calls.values()}
        alone = len(models) == 1
        for model in models.values():
            one = self._follow(model)
            if one is None:
                continue
            evaluated = partial(one.weights.evaluated, one.now, model.reads)
            site = _site(window, model)
            self._look(one, partial(evaluated, site, is_scored and alone))

    def finish(self) -> None:
        """The script is over."""
        for one in self._followed.values():
            self._finish(one)

    def _finish(self, one: ScriptModel) -> None:
        self._judge.follow(
            "weights",
            lambda: map(_without_moment, one.weights.over(one.now, one.model.inner())),
        )
        self._judge.follow("data", one.sets.over)

    # the models and loaders

    def _number(self, loader: Any) -> tuple[Any, ...]:
        """The same for two loaders that give the same samples in the same batches."""
        sampler = sampler_of(loader)
        own = 0
        if type(sampler) not in (SequentialSampler, RandomSampler):
            own = self._names.number(sampler)
        size = getattr(loader, "batch_size", None)
        return self._names.number(loader.dataset), type(sampler), own, size

    def _look(self, one: ScriptModel, act: Callable[[], list[Finding]]) -> None:
        root = one.model.inner()
        if root is None:
            return

        def look() -> Iterable[Finding]:
            with one.weights.on(root, one.now):
                return [_without_moment(finding) for finding in act()]

        self._judge.follow("weights", look)

    def _follow(self, model: Model) -> ScriptModel | None:
        known = self._followed.get(id(model))
        if known is not None:
            return known
        if self._kinds[model.kind] >= _OF_A_KIND:
            return None
        self._kinds[model.kind] += 1
        weights = ModelWeights(
            lambda: list(self._optimizers_of(model)),
            lambda: self._training.steps > 0,
            lambda: dict(self._modules_beside(model)),
        )
        one = self._followed[id(model)] = ScriptModel(model, weights)
        return one

    def _owned_by(self, optimizer: torch.optim.Optimizer) -> list[Model]:
        """The models that an optimizer trains; of one in another the outer."""
        key = self._models.met, len(optimizer.param_groups)
        known, models = self._owners.get(optimizer, (None, []))
        if known != key:
            models = list(self._models_of(optimizer))
            self._owners[optimizer] = key, models
        return models

    def _models_of(self, optimizer: torch.optim.Optimizer) -> Iterator[Model]:
        owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
        roots = {}
        for model in self._models:
            root = model.inner()
            if root is not None and any(id(p) in owned for p in root.parameters()):
                roots[id(root)] = (model, root)
        inner: set[int] = set()
        for _, root in roots.values():
            inner.update(id(part) for part in root.modules() if part is not root)
        for number, (model, _) in roots.items():
            if number not in inner:
                yield model

    def _optimizers_of(self, model: Model) -> Iterator[OwnPart]:
        """Those that hold some of a model's parameters, without what is another model's."""
        root = model.inner()
        if root is None:
            return
        own = set(map(id, root.parameters()))
        foreign: set[int] = set()
        for other in self._models.living():
            foreign.update(map(id, other.parameters()))
        foreign -= own
        for optimizer in self._training.made | self._training.optimizers:
            part = OwnPart(optimizer, foreign)
            if any(id(p) in own for p in part.parameters()):
                yield part

    def _modules_beside(self, model: Model) -> Iterator[tuple[str, nn.Module]]:
        own = model.inner()
        for other in self._models:
            root = other.inner()
            if root is not None and root is not own:
                for name, module in root.named_modules():
                    yield f"{other.kind}.{name}".removesuffix("."), module


def _site(window: Window, model: Model) -> Site:
    """Where a window evaluates a model."""
    return next(c.site for c in window.calls.values() if c.model is model)


def _read(sets: ModelSets, batch: Any) -> list[Finding]:
    """A batch of an evaluation: what it shows is said as that ends."""
    sets.batch(batch)
    return []


def _without_moment(finding: Finding) -> Finding:
    """A script has no epochs that it numbers."""
    return replace(finding, epoch=None, step=None)


class OwnPart:
    """What an optimizer holds of one model, and of none that the script calls besides.

    Args:
        optimizer: The optimizer.
        foreign: The ``id`` of each parameter of others.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, foreign: set[int]) -> None:
        self.state = optimizer.state
        self.param_groups = []
        for group in optimizer.param_groups:
            params = [p for p in group["params"] if id(p) not in foreign]
            self.param_groups.append({**group, "params": params})

    def parameters(self) -> Iterator[Any]:
        """All of its groups."""
        for group in self.param_groups:
            yield from group["params"]


__all__ = ["Chain", "OfEachModel"]
