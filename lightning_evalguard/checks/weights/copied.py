"""Does a copy whose weights follow the trained ones normalise with statistics from before?

An average made by hand is a copy of the model that no optimizer holds. Who averages its parameters
alone leaves the running statistics of its norms as they were when it was made.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lightning_evalguard.checks.check import Moment
from lightning_evalguard.checks.weights.loads import probe
from lightning_evalguard.checks.weights.reads import MemoryReads
from lightning_evalguard.checks.weights.words import are, weights_finding
from lightning_evalguard.model.tensors import Inventory
from lightning_evalguard.report import Finding


class _Start(NamedTuple):
    """A norm as training began."""

    module: Any
    weight: list[float] | None
    mean: list[float] | None


class Copies:
    """Watches the norms of one run; keeps no module alive."""

    def __init__(self) -> None:
        self._starts: dict[str, _Start] = {}
        self._reported = False

    def training_begins(self, inventory: Inventory) -> None:
        """The first training step of the run is about to run."""
        for name, norm in _norms(inventory).items():
            weight, mean = probe(norm.weight), probe(norm.running_mean)
            self._starts[name] = _Start(weakref.ref(norm), weight, mean)

    def stepped(
        self, inventory: Inventory, reads: MemoryReads | None, now: Moment
    ) -> list[Finding]:
        """An evaluation is over: judge the copies that it read, once."""
        if reads is None or self._reported or not self._starts:
            return []
        norms = _norms(inventory)
        still, estimated = [], []
        for name, norm in norms.items():
            start = self._starts.get(name)
            if start is None or start.module() is not norm:
                continue
            if probe(norm.running_mean) != start.mean:
                estimated.append(name)
            elif _is_copy(norm, reads) and probe(norm.weight) != start.weight:
                still.append(name)
        for name in still:
            other = _twin(name, estimated, norms)
            if other is not None:
                self._reported = True
                return [_finding(name, other, len(still) - 1, norms[name], now)]
        return []


def _norms(inventory: Inventory) -> dict[str, Any]:
    """The norms of a model and of what it holds in plain attributes."""
    modules = {**inventory.modules, **inventory.unregistered}
    return {name: module for name, module in modules.items() if _has_both(module)}


def _has_both(module: nn.Module) -> bool:
    if not isinstance(module, _NormBase):
        return False
    return isinstance(module.weight, Tensor) and isinstance(module.running_mean, Tensor)


def _is_copy(norm: Any, reads: MemoryReads) -> bool:
    """Whether a norm that no optimizer trains normalises by its statistics."""
    trained = norm.training or norm.weight.requires_grad
    return not trained and norm.running_mean in reads


def _twin(name: str, others: list[str], norms: dict[str, Any]) -> str | None:
    """The norm of the trained model that stands where this one does in the copy."""
    last = name.rpartition(".")[2]
    shape = norms[name].running_mean.shape
    for other in others:
        alike = other.rpartition(".")[2] == last
        if alike and norms[other].running_mean.shape == shape:
            return other
    return None


def _finding(name: str, other: str, more: int, norm: nn.Module, now: Moment) -> Finding:
    said = ""
    if more:
        said = f", as {are([name] * more)} {more} more"
    return weights_finding(
        now,
        "is scored with a running mean from before training, while its weights follow those of "
        f"the trained model: expected statistics that follow `{other}`{said}",
        "Copy or average its buffers, too: go through `state_dict()`, or add "
        "`for a, b in zip(copy.buffers(), model.buffers()): a.copy_(b)`.",
        subject=name,
        kind=type(norm).__name__,
    )
