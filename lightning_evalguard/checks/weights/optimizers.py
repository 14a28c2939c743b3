"""Which weights does a fit leave as they were, although they were meant to be trained?

Asked once an epoch, from what the optimizers hold, torch's count of writes and the gradients that
stand after the last step. What is frozen on purpose is not asked for: ``requires_grad=False``, a
module in eval mode, weights that a checkpoint brought, a group whose learning rate is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from lightning_evalguard.checks.check import Moment
from lightning_evalguard.checks.weights import loads
from lightning_evalguard.checks.weights.initial import (
    is_constant,
    is_drawn,
    is_own_draw,
)
from lightning_evalguard.checks.weights.loads import probe, version_of
from lightning_evalguard.checks.weights.origin import (
    counts,
    kind_of,
    reported,
    trained,
)
from lightning_evalguard.checks.weights.reads import MemoryReads
from lightning_evalguard.checks.weights.unregistered import (
    Leaves,
    never_trained,
    not_saved,
    outermost,
    saves_by_hand,
)
from lightning_evalguard.checks.weights.words import (
    OF_LIGHTNING,
    Remedies,
    are,
    listed_modules,
    tops,
    weights_finding,
)
from lightning_evalguard.checks.weights.zeros import (
    are_zero,
    averages_of,
    without_effect,
)
from lightning_evalguard.model.identity import Identity
from lightning_evalguard.model.tensors import Held, Inventory, identity
from lightning_evalguard.report import Finding

_STEPS = 4  # before them a layer that is dropped at random may have had no turn
_ZEROS = 2  # gradients of 0 where the optimizer keeps nothing of the others
_PROBED = 8  # parameters whose values are looked at where their writes are counted, too
_TURNS = 16  # before them an optimizer that takes turns with another may have had none


@dataclass
class _Start:
    """A trainable parameter as training began, or as it came in.

    Attributes:
        same: Recognises the parameter, which is not kept alive.
        version: Its count of writes.
        training: Whether its module was in train mode.
        probe: Some of its values, of the first ones and where no optimizer held it.
        reached: Whether a gradient was seen on it.
        learns: Whether one of those was another than 0.
        zeros: At how many steps one of 0 alone was seen.
        zero_at: The last of them.
    """

    same: Identity
    version: int
    training: bool
    probe: list[float] | None = None
    reached: bool = False
    learns: bool = False
    zeros: int = 0
    zero_at: int = 0

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
        self.averaged: set[int] = set()  # of whose gradients something is kept
        self.uncounted: set[int] = set()  # whose writes torch does not count
        for optimizer in optimizers:
            state = optimizer.state
            for group in optimizer.param_groups:
                for tensor in group["params"]:
                    self.parameters[id(tensor)] = tensor
                    if group.get("fused"):
                        self.uncounted.add(id(tensor))
                    if not group.get("lr", 1):
                        self.frozen.add(id(tensor))
                    if tensor in state:
                        self.stepped.add(id(tensor))
                        if averages_of(state[tensor], tensor):
                            self.averaged.add(id(tensor))

    def __contains__(self, tensor: Tensor) -> bool:
        return id(tensor) in self.parameters


class TrainedParameters:
    """Follows the trainable parameters of one fit.

    Args:
        inventory: The model's tensors.
        optimizers: Gives the optimizers of the fit.
        remedies: In the words of the host.

    Attributes:
        inventory: The model's tensors; a host that holds no model gives it for each moment.
    """

    def __init__(
        self,
        inventory: Inventory,
        optimizers: Callable[[], Iterable[Any]],
        remedies: Remedies = OF_LIGHTNING,
    ) -> None:
        self.inventory = inventory
        self._optimizers = optimizers
        self._remedies = remedies
        self._starts: dict[int, _Start] = {}
        self.epoch: int | None = None
        self._reported: set[str] = set()
        self._leaves = Leaves()
        self._stale: dict[int, _Start] = {}
        self.steps = 0
        # whether the gradients of an epoch's first step are to be looked at
        self.due = False

    def step(self, now: Moment, reads: MemoryReads | None = None) -> list[Finding]:
        """A training step is about to run; `reads` is what an evaluation step was seen to read."""
        self.steps += 1
        if now.epoch == self.epoch:
            if self.due:
                self.look()
                self.due = False
            return []
        first = self.epoch is None
        self.epoch = now.epoch
        self.inventory.refresh(force=True)
        findings = [] if first else self.judge(now, reads)
        self._take_in(reads)
        # later epochs may unfreeze what the first ones froze
        self.due = not all(start.learns for start in self._starts.values())
        return findings

    def look(self) -> None:
        """Remember which parameters have a gradient: loops clear it at moments of their own."""
        starts, gradients = [], []
        for start in self._starts.values():
            tensor = None
            if not start.learns:
                tensor = start.same.tensor()
            if tensor is not None and tensor.grad is not None:
                start.reached = True
                starts.append(start)
                gradients.append(tensor.grad)
        for start, is_zero in zip(starts, are_zero(gradients), strict=True):
            start.learns = not is_zero
            if is_zero and start.zero_at != self.steps:
                start.zeros += 1
                start.zero_at = self.steps

    def _take_in(self, reads: MemoryReads | None) -> None:
        """Remember each trainable parameter as it stands when it is first met."""
        optimized = Optimized(self._optimizers())
        self._leaves.take_in(self.inventory)
        if reads is not None and not self._stale:
            self._take_in_scored(optimized, reads)
        starts: dict[int, _Start] = {}
        for held in self._trainable():
            tensor, key = held.tensor, id(held.tensor)
            known = self._starts.get(key)
            if known is None or not known.same(tensor):
                counted = tensor in optimized and key not in optimized.uncounted
                counted &= len(starts) >= _PROBED
                values = None
                if not counted:
                    values = probe(tensor)
                mode = bool(held.module.training)
                known = _Start(identity(held), version_of(tensor), mode, values)
            starts[key] = known
        self._starts = starts

    def _take_in_scored(self, optimized: Optimized, reads: MemoryReads) -> None:
        """Remember what evaluations read, where no optimizer holds any of it."""
        scored = [held for held in _parameters(self.inventory) if held.tensor in reads]
        if any(h.tensor in optimized and h.tensor.requires_grad for h in scored):
            return
        if any(_is_averaged(held, self.inventory) for held in scored):
            return  # an average that is never updated is told by `averaged`
        for held in scored:
            at = version_of(held.tensor)
            self._stale[id(held.tensor)] = _Start(
                identity(held), at, training=False, probe=probe(held.tensor)
            )

    def _trainable(self) -> Iterable[Held]:
        for held in self.inventory.held.values():
            if held.kind == "parameter" and not held.lazy and held.tensor.requires_grad:
                yield held

    def judge(
        self, now: Moment, reads: MemoryReads | None = None, over: bool = False
    ) -> list[Finding]:
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
            if start is None or not start.same(held.tensor):
                continue
            if start.moved(held.tensor):
                moved += 1
                trained.add(held)
            elif start.training or held.tensor in optimized:
                still.append((held, start))
            if id(held.tensor) in optimized.stepped:
                trained.add(held)
        findings = self._outside(still, optimized, over, now)
        if moved or optimized.stepped:
            findings += self._scored_and_still(now)
        if over:
            findings += self._unregistered(optimized, now)
        if not over or self.steps < _STEPS or reads is None:
            return findings
        if moved or optimized.stepped:
            findings += self._without_gradient(still, optimized, reads, now)
            findings += self._of_zeros(optimized, reads, now)
        else:
            still = [one for one in still if one[1].learns]
        return findings + self._never_stepped(still, optimized, reads, now)

    def so_far(self, now: Moment, reads: MemoryReads | None) -> list[Finding]:
        """What would be found if training were over now; it may be asked again, and go on."""
        kept = set(self._reported), dict(self._stale)
        try:
            return self.judge(now, reads, over=True)
        finally:
            self._reported, self._stale = kept

    def _outside(
        self,
        still: list[tuple[Held, _Start]],
        optimized: Optimized,
        over: bool,
        now: Moment,
    ) -> list[Finding]:
        """Parameters that the step uses, by their gradient, and no optimizer holds."""
        here = {id(held.tensor) for held in self.inventory.held.values()}
        orphans = [t.shape for k, t in optimized.parameters.items() if k not in here]
        replaced, forgotten, hidden = [], [], []
        for held, start in still:
            tensor = held.tensor
            if tensor in optimized or not (start.reached and start.training):
                continue
            if not held.registered:
                hidden.append(held)
            elif tensor.shape in orphans:
                replaced.append(held)
            elif over and not loads.touched(tensor):
                forgotten.append(held)
        findings = []
        hidden = [held for held in hidden if not loads.touched(held.tensor)]
        names = self._new(outermost(hidden))
        if names:
            findings.append(never_trained(names, now, modules=True))
        if replaced:
            findings += self._say(
                replaced,
                "{are} in no optimizer: replaced after the optimizer was made, which still trains "
                "the old one; {it} never changed, expected to be trained",
                self._remedies.replaced,
                now,
            )
        if forgotten:
            findings += self._say(
                forgotten,
                "{are} in no optimizer: {it} gets gradients and never changed, expected to be "
                "trained",
                self._remedies.forgotten,
                now,
            )
        return findings

    def _without_gradient(
        self,
        still: list[tuple[Held, _Start]],
        optimized: Optimized,
        reads: MemoryReads,
        now: Moment,
    ) -> list[Finding]:
        """Parameters that an optimizer holds, an evaluation reads and no gradient reached."""
        reached_none = []
        for held, start in still:
            tensor, key = held.tensor, id(held.tensor)
            idle = key not in optimized.stepped and key not in optimized.frozen
            if tensor not in optimized or not idle or start.reached:
                continue
            read = counts(held, reads, self.inventory)
            if start.training and read and _is_as_made(held):
                reached_none.append(held)
        if not any(
            not is_constant(h.module, h.name.rpartition(".")[2], h.tensor)
            for h in reached_none
        ):
            return []
        return self._say(
            reached_none,
            "{are} evaluated as initialised: in the whole fit no gradient reached {it}, or none "
            "was left for the optimizer that holds {it}; expected to be trained",
            "Remove the `.detach()`, `no_grad` or `.data` between it and the loss, or the line "
            "that clears its gradient before the step, or freeze it with "
            "`.requires_grad_(False)`.",
            now,
        )

    def _never_stepped(
        self,
        still: list[tuple[Held, _Start]],
        optimized: Optimized,
        reads: MemoryReads,
        now: Moment,
    ) -> list[Finding]:
        """Parameters that get gradients, and whose optimizer never makes a step."""
        if self.steps < _TURNS:
            return []
        idle = []
        for held, start in still:
            tensor, key = held.tensor, id(held.tensor)
            held_there = tensor in optimized and key not in optimized.frozen
            if (
                held_there
                and key not in optimized.stepped
                and start.reached
                and start.training
            ):
                idle.append(held)
        idle = [
            held
            for held in idle
            if held.tensor in reads and not loads.touched(held.tensor)
        ]
        return self._say(
            idle,
            "{are} as training found {it}: {it} gets gradients, and the optimizer that holds {it} "
            "never made a step; expected to be trained",
            "Call `optimizer.step()` for each optimizer, or leave this one out.",
            now,
        )

    def _of_zeros(
        self, optimized: Optimized, reads: MemoryReads, now: Moment
    ) -> list[Finding]:
        """Layers that an evaluation reads, and whose gradients were all exactly 0."""
        if self.steps < _TURNS:
            return []
        silent = []
        for held in self._trainable():
            tensor, key = held.tensor, id(held.tensor)
            start = self._starts.get(key)
            if start is None or not start.same(tensor) or start.learns:
                continue
            stepped = key in optimized.stepped or start.moved(tensor)
            known = key in optimized.averaged or start.zeros >= _ZEROS
            trains = stepped and key not in optimized.frozen and start.training
            if trains and known and held.registered:
                silent.append(held)
        dead = without_effect(silent, self._optimizers(), self.inventory)
        return self._say(
            [held for held in dead if held.tensor in reads],
            "{are} evaluated as training found {it}: all its gradients were exactly 0 in the whole "
            "fit, although a loss reaches {it}; expected to be trained",
            "Remove the factor of 0 or the `.detach()` between it and the loss, or the line that "
            "zeroes its gradient, initialise it so that its activation is active, or freeze it "
            "with `.requires_grad_(False)`.",
            now,
            certain=False,
        )

    def _unregistered(self, optimized: Optimized, now: Moment) -> list[Finding]:
        """What the model uses and is registered nowhere, now that the fit is over."""
        findings = []
        names = self._new(self._leaves.untrained(optimized.parameters))
        if names:
            findings.append(never_trained(names, now, modules=False))
        trained_here = [
            held
            for held in self._trainable()
            if not held.registered and held.tensor in optimized
        ]
        if not trained_here or saves_by_hand(self.inventory.root):
            return findings
        names = self._new(outermost(trained_here))
        if names:
            findings.append(not_saved(names, now))
        return findings

    def _scored_and_still(self, now: Moment) -> list[Finding]:
        """An evaluation that reads nothing of what training changes."""
        scored = [
            held
            for held in _parameters(self.inventory)
            if id(held.tensor) in self._stale
        ]
        if not scored or len(scored) < len(self._stale):
            return []
        if any(self._stale[id(h.tensor)].moved(h.tensor) for h in scored):
            self._stale = {}
            return []
        self._stale = {}
        return self._say(
            scored,
            "{are} all that the evaluation reads, and training changes nothing of {it}: expected "
            "the trained weights, or an average that follows them",
            "Evaluate the module that is trained, or update this copy after each optimizer step.",
            now,
        )

    def _new(self, names: list[str]) -> list[str]:
        """Those of `names` that were not reported yet; they are from now on."""
        new = [name for name in names if name not in self._reported]
        self._reported.update(new)
        return new

    def _say(
        self,
        chosen: list[Held],
        fact: str,
        remedy: str,
        now: Moment,
        certain: bool = True,
    ) -> list[Finding]:
        for held in chosen:
            reported.add(held)
        names = self._new(tops(chosen, _parameters(self.inventory)))
        if not names:
            return []
        said = fact.format(are=are(names[:1]), it="it")
        if names[1:]:
            said += f"; so {are(names[1:])} {listed_modules(names[1:], self.inventory.modules)}"
        kind = kind_of(names[0], self.inventory)
        return [
            weights_finding(
                now, said, remedy, subject=names[0], kind=kind, certain=certain
            )
        ]


def _is_as_made(held: Held) -> bool:
    key = held.name.rpartition(".")[2]
    if loads.touched(held.tensor):
        return False
    drawn = is_drawn(held.module, key, held.tensor) or is_own_draw(held.module)
    return drawn or is_constant(held.module, key, held.tensor)


def _is_averaged(held: Held, inventory: Inventory) -> bool:
    top = inventory.modules.get(held.name.partition(".")[0])
    return isinstance(top, AveragedModel)


def _parameters(inventory: Inventory) -> list[Held]:
    return [held for held in inventory.held.values() if held.kind == "parameter"]
