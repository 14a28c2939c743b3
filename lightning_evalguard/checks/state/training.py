"""Gradients and `requires_grad` of the parameters."""

from __future__ import annotations

import functools
from collections.abc import Callable

from lightning_evalguard.checks.state.change import Change, of_tensor
from lightning_evalguard.checks.state.reported import Reported
from lightning_evalguard.model.tensors import Inventory, TrainingTensors


class TrainingState:
    """What training needs of the parameters beside their values.

    Args:
        inventory: Of the model.
        reported: What was reported of this evaluation.
        accumulates: Whether gradients that stand when it begins are still needed.
        sharded: Whether parameters, and so their gradients, are exchanged for gathered ones.
    """

    def __init__(
        self,
        inventory: Inventory,
        reported: Reported,
        accumulates: Callable[[], bool],
        sharded: bool,
    ) -> None:
        self._inventory = inventory
        self._reported = reported
        self._accumulates = accumulates
        self._sharded = sharded

    def changes(
        self, before: TrainingTensors, now: TrainingTensors, when: str
    ) -> list[Change]:
        held = self._inventory.held
        changes = []
        old_flips = before.flips()
        for name, flag in now.flips().items():
            was = old_flips.get(name, flag)
            if flag != was and self._reported.is_new(f"{name}.requires_grad"):
                fact = f"went from requires_grad={was} to requires_grad={flag} {when}"
                remedy = "Freeze and unfreeze in training only."
                parameter = held[name].tensor
                change = of_tensor(held[name], fact, f"{was} as before it", remedy)
                change.value = functools.partial(getattr, parameter, "requires_grad")
                change.rewind = (
                    functools.partial(parameter.requires_grad_, was),
                    functools.partial(parameter.requires_grad_, flag),
                )
                changes.append(change)
        old_grads = before.grads() if not self._sharded else {}
        for name, mark in now.grads().items():
            was_mark = old_grads.get(name)
            if mark == was_mark or name not in old_grads:
                continue
            if mark is None and not self._accumulates():
                continue
            if not self._reported.is_new(f"{name}.grad"):
                continue
            if mark is None:
                fact = f"lost the gradient accumulated so far {when}"
                expected = "it to be kept"
                remedy = "Call `zero_grad()` in training only."
            else:
                fact = f"got {'a' if was_mark is None else 'another'} gradient {when}"
                expected = "`.grad` to be what it was"
                remedy = (
                    "Use `torch.autograd.grad(...)`, which leaves no `.grad` behind."
                )
            changes.append(of_tensor(held[name], fact, expected, remedy, backward=True))
        return changes
