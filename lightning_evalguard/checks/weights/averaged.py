"""Are averaged weights scored before anything was averaged, or with statistics of the others?

Known are torch's `AveragedModel`, held by the model or by a callback (Lightning's
`WeightAveraging` and what derives from it), and Lightning's `StochasticWeightAveraging`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim.swa_utils import AveragedModel

from lightning_evalguard.checks.check import Moment
from lightning_evalguard.checks.weights.loads import probe, touched, writes
from lightning_evalguard.checks.weights.reads import MemoryReads
from lightning_evalguard.checks.weights.words import weights_finding
from lightning_evalguard.model.tensors import Inventory
from lightning_evalguard.report import Finding

_PROBED = 8  # tensors that are compared
_TURNS = 16  # steps of a fit that is no trial run


@dataclass
class Average:
    """An average of weights.

    Attributes:
        name: What holds it: a module of the model, or a callback's class.
        model: The averaged weights.
        by_callback: Whether a callback puts them in the model's place for each validation.
    """

    name: str
    model: AveragedModel
    by_callback: bool

    @property
    def updates(self) -> int:
        """How many models were averaged."""
        return int(self.model.n_averaged)

    @property
    def is_loaded(self) -> bool:
        """Whether it came from a file."""
        return any(touched(tensor) for tensor in self.model.module.parameters())


class Averages:
    """Watches the averages of one run.

    Args:
        inventory: The model's modules and tensors.
        callbacks: The trainer's callbacks.
        others: Gives further modules whose statistics an average may have, by name.

    Attributes:
        inventory: The model's; a host that holds no model gives it for each moment.
    """

    def __init__(
        self,
        inventory: Inventory,
        callbacks: Iterable[object],
        others: Callable[[], Mapping[str, nn.Module]] = dict,
    ) -> None:
        self.inventory = inventory
        self._others = others
        self._callbacks = list(callbacks)
        self._before: dict[str, list[Any]] = {}
        self._at_first: list[Any] | None = None  # as training found the model
        self._trained: list[Any] | None = None  # as the evaluation found it
        self._reported: set[tuple[str, str]] = set()

    def _averages(self) -> Iterator[Average]:
        modules = {**self.inventory.modules, **self.inventory.unregistered}
        for name, module in modules.items():
            if isinstance(module, AveragedModel):
                yield Average(name, module, by_callback=False)
        for callback in self._callbacks:
            for value in _attributes(callback):
                if isinstance(value, AveragedModel):
                    yield Average(type(callback).__name__, value, by_callback=True)

    def training_begins(self) -> None:
        """The first training step of the run is about to run."""
        self._at_first = _probes(self.inventory.root)

    def start(self, optimized: bool) -> None:
        """An evaluation begins: a callback has not yet put its average in the model's place."""
        self._trained = _probes(self.inventory.root) if optimized else None
        self._before = {
            average.name: _probes(self.inventory.root)
            for average in self._averages()
            if average.by_callback
        }

    def first_step(self, now: Moment, optimized: bool) -> list[Finding]:
        """The first step of an evaluation is about to run, on the weights that it scores.

        Args:
            now: Where the run stands.
            optimized: Whether an optimizer has made a step in this run.
        """
        findings = []
        for average in self._averages():
            before = self._before.get(average.name)
            if average.by_callback and before != _probes(self.inventory.root):
                findings += self._scored(average, now, optimized)
        if not any(average.by_callback for average in self._averages()):
            findings += self._as_at_first(now)
        return findings

    def unsay(self) -> None:
        """What was found of the weights that training began with was not said."""
        self._reported.discard(("", "first"))

    def _as_at_first(self, now: Moment) -> list[Finding]:
        """Whether somebody put back, for this evaluation, what training began with."""
        trained, first = self._trained, self._at_first
        if (
            trained is None
            or first is None
            or trained == first
            or ("", "first") in self._reported
        ):
            return []
        if _probes(self.inventory.root) != first:
            return []
        self._reported.add(("", "first"))
        return [
            weights_finding(
                now,
                "is scored with the weights that training began with: they were put in the place "
                "of the trained ones for this evaluation, expected an average of trained ones",
                "Update the average after each step of the optimizer, before it is scored.",
                subject="",
            )
        ]

    def stepped(
        self, reads: MemoryReads | None, now: Moment, optimized: bool
    ) -> list[Finding]:
        """An evaluation is over: of the averages that the model holds, judge those it read."""
        findings = []
        for average in self._averages():
            parameters = average.model.module.parameters()
            if average.by_callback or reads is None:
                continue
            if any(tensor in reads for tensor in parameters):
                findings += self._scored(average, now, optimized)
        return findings

    def _scored(self, average: Average, now: Moment, optimized: bool) -> list[Finding]:
        if average.updates == 0:
            known = not optimized or average.is_loaded
            if known:
                return []
            return self._say(average, "never", _never(average, now))
        candidates = {**self._others(), **self.inventory.modules}
        other = _same_statistics(average, candidates)
        if other is None or average.updates < 2:
            return []
        return self._say(average, "statistics", _of_others(average, other, now))

    def close(self, now: Moment, optimized: bool, steps: int = 0) -> list[Finding]:
        """The fit is over: what did the callbacks leave in the model?

        Args:
            now: Where the run stands.
            optimized: Whether an optimizer has made a step in this run.
            steps: How many training steps it had.
        """
        if not optimized:
            return []
        findings = []
        for average in self._averages():
            unlike = (
                average.by_callback and average.updates == 0 and not average.is_loaded
            )
            if unlike and _probes(average.model.module) == _probes(self.inventory.root):
                findings += self._say(average, "left", _left(average, now))
        for callback in self._callbacks:
            if type(callback).__name__ == "StochasticWeightAveraging":
                findings += self._not_transferred(callback, now, steps)
        return findings

    def _not_transferred(
        self, callback: object, now: Moment, steps: int
    ) -> list[Finding]:
        held = vars(callback)
        model = held.get("_average_model")
        n = held.get("n_averaged")
        if not isinstance(model, nn.Module):
            return []
        if n is None or int(n) < 1:
            start = held.get("_swa_epoch_start")
            return _never_began(start, now) if steps >= _TURNS else []
        if _probes(model) == _probes(self.inventory.root):
            return []
        return [
            weights_finding(
                now,
                f"averaged the weights of {int(n)} epochs, and the fit ended before its last "
                "epoch: the model keeps the weights of the last step, expected the average",
                "Let the fit reach `max_epochs`, or copy the average when it stops: "
                "`swa.transfer_weights(swa._average_model, module)`.",
                subject="StochasticWeightAveraging",
            )
        ]

    def _say(self, average: Average, what: str, said: Finding) -> list[Finding]:
        if (average.name, what) in self._reported:
            return []
        self._reported.add((average.name, what))
        if what == "never":  # one cause, one finding
            self._reported.add((average.name, "left"))
        return [said]


def _never_began(start: object, now: Moment) -> list[Finding]:
    """Of `StochasticWeightAveraging`: the fit ended before the epoch from which it averages."""
    if type(start) is not int:
        return []
    return [
        weights_finding(
            now,
            f"averaged nothing: it begins with epoch {max(start - 1, 0)}, which the fit did "
            "not reach; expected an average of epochs",
            "Pass a smaller `swa_epoch_start`, or train for more epochs.",
            subject="StochasticWeightAveraging",
            certain=False,
        )
    ]


def _never(average: Average, now: Moment) -> Finding:
    if average.by_callback:
        remedy = "Let it start earlier: its `should_update` has not been true yet."
    else:
        remedy = "Call `update_parameters(model)` after each step of the optimizer, before this."
    return weights_finding(
        now,
        "is scored before anything was averaged: these are the weights before training, expected "
        "an average of trained ones",
        remedy,
        subject=average.name,
        kind=None if average.by_callback else type(average.model).__name__,
    )


def _left(average: Average, now: Moment) -> Finding:
    return weights_finding(
        now,
        "averaged nothing and put its weights in the model's place as the fit ended: the model has "
        "the weights from before training",
        "Let it start earlier: its `should_update` was never true.",
        subject=average.name,
    )


def _of_others(average: Average, other: str, now: Moment) -> Finding:
    return weights_finding(
        now,
        f"is scored with the batch statistics of other weights: its running mean is that of "
        f"`{other}`, expected one of the average of {average.updates} models",
        "Call `torch.optim.swa_utils.update_bn(loader, averaged)` first, or pass "
        "`use_buffers=True`.",
        subject=average.name,
        kind=None if average.by_callback else type(average.model).__name__,
    )


def _same_statistics(
    average: Average, candidates: Mapping[str, nn.Module]
) -> str | None:
    """A module outside of the average whose running statistics are those of the average."""
    inside = {
        name: module
        for name, module in average.model.module.named_modules()
        if isinstance(module, _NormBase) and isinstance(module.running_mean, Tensor)
    }
    ours = set(map(id, inside.values()))
    for name, module in inside.items():
        for other, twin in candidates.items():
            if id(twin) in ours or type(twin) is not type(module):
                continue
            if (other == name or other.endswith(name) or not name) and _is_twin(
                module, twin
            ):
                return other
    return None


def _is_twin(module: Any, twin: Any) -> bool:
    """Whether two layers have the same statistics, of more than no batch, and other weights."""
    if twin.running_mean is None or not _equal(module.running_mean, twin.running_mean):
        return False
    counted = twin.num_batches_tracked
    # statistics that are frozen are meant to be equal
    if counted is None or writes(counted) == 0:
        return False
    if module.weight is None or twin.weight is None:
        return True
    return not _equal(module.weight, twin.weight)


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(
        one.detach().cpu(), other.detach().cpu()
    )


def _attributes(callback: object) -> list[Any]:
    try:
        return list(object.__getattribute__(callback, "__dict__").values())
    except AttributeError:
        return []


def _probes(model: nn.Module) -> list[Any]:
    """Some values of some parameters, the last and the largest layers' among them."""
    tensors = list(model.parameters())
    step = max(1, len(tensors) // _PROBED)
    return [probe(tensor) for tensor in tensors[::step]]
