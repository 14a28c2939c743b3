"""Which weights does a fit leave as they were, although they were meant to be trained?

Asked once an epoch, from what the optimizers hold, torch's count of writes and the gradients that
stand after the last step. What is frozen on purpose is not asked for: ``requires_grad=False``, a
module in eval mode, weights that a checkpoint brought, a group whose learning rate is 0.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_evalguard.checks.check import Moment
from lightning_evalguard.checks.weights import loads
from lightning_evalguard.checks.weights.initial import is_constant, is_drawn, is_own_draw
from lightning_evalguard.checks.weights.loads import probe, version_of
from lightning_evalguard.checks.weights.origin import Reads, kind_of, reported, trained
from lightning_evalguard.checks.weights.words import are, finding, listed, tops
from lightning_evalguard.model.tensors import Held, Inventory
from lightning_evalguard.report import Finding

_STEPS = 4  # before them a layer that is dropped at random may have had no turn


@dataclass
class _Start:
    """A trainable parameter as training began, or as it came in.

    Attributes:
        ref: The parameter, not kept alive.
        version: Its count of writes.
        training: Whether its module was in train mode.
        probe: Some of its values, where no optimizer held it.
        reached: Whether a gradient was seen on it.
    """

    ref: weakref.ref[Tensor]
    version: int
    training: bool
    probe: list[float] | None = None
    reached: bool = False

    def moved(self, tensor: Tensor) -> bool:
        """Whether it was written since."""
        if version_of(tensor) != self.version:
            return True
        return self.probe is not None and self.probe != probe(tensor)


class Optimized:
    """What the optimizers hold at one moment."""

    def __init__(self, optimizers: Iterable[Any]) -> None:
        self.parameters: dict[int, Tensor] = {}
        self.frozen: set[int] = set()
        self.stepped: set[int] = set()
        for optimizer in optimizers:
            state = optimizer.state
            for group in optimizer.param_groups:
                for tensor in group["params"]:
                    self.parameters[id(tensor)] = tensor
                    if not group.get("lr", 1):
                        self.frozen.add(id(tensor))
                    if tensor in state:
                        self.stepped.add(id(tensor))

    def __contains__(self, tensor: Tensor) -> bool:
        return id(tensor) in self.parameters


class Training:
    """Follows the trainable parameters of one fit.

    Args:
        inventory: The model's tensors.
        optimizers: Gives the optimizers of the fit.
    """

    def __init__(self, inventory: Inventory, optimizers: Callable[[], Iterable[Any]]) -> None:
        self._inventory = inventory
        self._optimizers = optimizers
        self._starts: dict[int, _Start] = {}
        self._epoch: int | None = None
        self._reported: set[str] = set()
        self.steps = 0

    def step(self, now: Moment) -> list[Finding]:
        """A training step is about to run."""
        self.steps += 1
        if now.epoch == self._epoch:
            if self.steps == 2:
                self.look()
            return []
        first = self._epoch is None
        self._epoch = now.epoch
        self._inventory.refresh(force=True)
        findings = [] if first else self.judge(now)
        self._take_in()
        return findings

    def look(self) -> None:
        """Remember which parameters have a gradient: loops clear it at moments of their own."""
        for start in self._starts.values():
            if not start.reached:
                tensor = start.ref()
                start.reached = tensor is not None and tensor.grad is not None

    def _take_in(self) -> None:
        """Remember each trainable parameter as it stands when it is first met."""
        optimized = Optimized(self._optimizers())
        starts: dict[int, _Start] = {}
        for held in self._trainable():
            tensor, key = held.tensor, id(held.tensor)
            known = self._starts.get(key)
            if known is None or known.ref() is not tensor:
                values = None if tensor in optimized else probe(tensor)
                mode = bool(held.module.training)
                known = _Start(weakref.ref(tensor), version_of(tensor), mode, values)
            starts[key] = known
        self._starts = starts

    def _trainable(self) -> Iterable[Held]:
        for held in self._inventory.held.values():
            if held.kind == "parameter" and not held.lazy and held.tensor.requires_grad:
                yield held

    def judge(self, now: Moment, reads: Reads | None = None, over: bool = False) -> list[Finding]:
        """What training left as it was.

        Args:
            now: Where the run stands.
            reads: What an evaluation step reads, where that is known.
            over: Whether the fit is over, so that no later phase can train it.
        """
        self.look()
        optimized = Optimized(self._optimizers())
        still, moved = [], 0
        for held in self._trainable():
            start = self._starts.get(id(held.tensor))
            if start is None or start.ref() is not held.tensor:
                continue
            if start.moved(held.tensor):
                moved += 1
                trained.add(held.tensor)
            elif start.training or held.tensor in optimized:
                still.append((held, start))
            if id(held.tensor) in optimized.stepped:
                trained.add(held.tensor)
        findings = self._outside(still, optimized, over, now)
        if over and (moved or optimized.stepped) and self.steps >= _STEPS and reads is not None:
            findings += self._without_gradient(still, optimized, reads, now)
        return findings

    def _outside(
        self,
        still: list[tuple[Held, _Start]],
        optimized: Optimized,
        over: bool,
        now: Moment,
    ) -> list[Finding]:
        """Parameters that the step uses, by their gradient, and no optimizer holds."""
        here = {id(held.tensor) for held in self._inventory.held.values()}
        orphans = [t.shape for k, t in optimized.parameters.items() if k not in here]
        replaced, forgotten = [], []
        for held, start in still:
            tensor = held.tensor
            if tensor in optimized or not (start.reached and start.training):
                continue
            if tensor.shape in orphans:
                replaced.append(held)
            elif over and not loads.touched(tensor):
                forgotten.append(held)
        findings = []
        if replaced:
            findings += self._say(
                replaced,
                "{are} in no optimizer: replaced after the optimizer was made, which still trains "
                "the old one; {it} never changed, expected to be trained",
                "Replace it before `configure_optimizers` runs, e.g. in `__init__` or "
                "`configure_model`.",
                now,
            )
        if forgotten:
            findings += self._say(
                forgotten,
                "{are} in no optimizer: {it} gets gradients and never changed, expected to be "
                "trained, or frozen with `requires_grad_(False)`",
                "Pass its parameters to the optimizer in `configure_optimizers`, or freeze it with "
                "`.requires_grad_(False)`.",
                now,
            )
        return findings

    def _without_gradient(
        self,
        still: list[tuple[Held, _Start]],
        optimized: Optimized,
        reads: Reads,
        now: Moment,
    ) -> list[Finding]:
        """Parameters that an optimizer holds, an evaluation reads and no gradient reached."""
        reached_none = []
        for held, start in still:
            tensor, key = held.tensor, id(held.tensor)
            idle = key not in optimized.stepped and key not in optimized.frozen
            if tensor not in optimized or not idle or start.reached:
                continue
            if start.training and tensor in reads and _is_as_made(held):
                reached_none.append(held)
        if not any(not is_constant(h.module, h.name.rpartition(".")[2], h.tensor)
                   for h in reached_none):  # fmt: skip
            return []
        return self._say(
            reached_none,
            "{are} evaluated as initialised: no gradient reached {it} in the whole fit, although "
            "an optimizer holds {it}; expected to be trained",
            "Remove the `.detach()`, `no_grad` or `.data` between it and the loss, or freeze it "
            "with `.requires_grad_(False)`.",
            now,
        )

    def _say(self, chosen: list[Held], fact: str, remedy: str, now: Moment) -> list[Finding]:
        for held in chosen:
            reported.add(held.tensor)
        names = tops(chosen, _parameters(self._inventory))
        names = [name for name in names if name not in self._reported]
        if not names:
            return []
        self._reported.update(names)
        said = fact.format(are=are(names[:1]), it="it")
        if names[1:]:
            said += f"; so {are(names[1:])} {listed(names[1:], self._inventory.modules)}"
        kind = kind_of(names[0], self._inventory)
        return [finding(now, said, remedy, subject=names[0], kind=kind)]


def _is_as_made(held: Held) -> bool:
    key = held.name.rpartition(".")[2]
    if loads.touched(held.tensor):
        return False
    drawn = is_drawn(held.module, key, held.tensor) or is_own_draw(held.module)
    return drawn or is_constant(held.module, key, held.tensor)


def _parameters(inventory: Inventory) -> list[Held]:
    return [held for held in inventory.held.values() if held.kind == "parameter"]
