"""The modules of the model, and which tensors are registered in them."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from lightning_evalguard.checks.state.change import (
    PUT_BACK,
    REGISTER,
    Change,
    of_module,
    of_tensor,
)
from lightning_evalguard.checks.state.reported import Reported
from lightning_evalguard.instruments.source import Site
from lightning_evalguard.model.tensors import Inventory


class Structure:
    """The modules as an evaluation found them, and their parameters and buffers.

    Args:
        inventory: Of the model.
        reported: What was reported of this evaluation.
        assigned: The lines that registered something in it.
        sharded: Whether parameters are exchanged for gathered ones.
    """

    def __init__(
        self,
        inventory: Inventory,
        reported: Reported,
        assigned: Mapping[str, Site | None],
        sharded: bool,
    ) -> None:
        self._inventory = inventory
        self._reported = reported
        self._assigned = assigned
        self._sharded = sharded
        self._held = dict(inventory.held)
        self._modules = dict(inventory.modules)
        self._classes = {n: type(m) for n, m in self._modules.items()}

    def changes(self, when: str) -> list[Change]:
        changes = []
        assigned = self._assigned
        before = self._modules
        now = self._inventory.modules
        lazy = {h.owner for h in self._held.values() if h.lazy}
        still_lazy = {h.owner for h in self._inventory.held.values() if h.lazy}
        owners = {h.owner for h in self._held.values()}
        for name, module in now.items():
            old = before.get(name)
            if old is None:
                inside_another = name.rpartition(".")[0] not in before
                if not inside_another and any(True for _ in module.parameters()):
                    fact = f"was added {when}"
                    expected = "the modules as before it"
                    remedy = "Make it in `__init__` or `configure_model`."
                    site = assigned.get(name)
                    changes.append(
                        of_module(name, module, fact, expected, remedy, site)
                    )
            elif name in lazy:
                if name not in still_lazy:
                    self._reported.update(
                        n for n, h in self._held.items() if h.owner == name
                    )
                    fact = f"was materialized {when}"
                    expected = "initialized lazy modules before it"
                    remedy = "Run one batch through the model in `setup`."
                    change = of_module(name, module, fact, expected, remedy)
                    change.certain = False
                    changes.append(change)
            elif module is not old or type(module) is not self._classes[name]:
                self._reported.update(
                    n for n, h in self._held.items() if h.owner == name
                )
                fact = f"replaced a {self._classes[name].__name__} {when}"
                expected = "the modules as before it"
                remedy = PUT_BACK
                change = of_module(
                    name, module, fact, expected, remedy, assigned.get(name)
                )
                # The same weights in another module may be another way to compute the same.
                change.certain = not self._same_tensors(name)
                changes.append(change)
        for name, module in before.items():
            if name not in now and name in owners:
                fact = f"was removed {when}"
                expected = "the modules as before it"
                changes.append(of_module(name, module, fact, expected, PUT_BACK))
        return [*changes, *self._registered(when)]

    def _same_tensors(self, name: str) -> bool:
        """Whether all that a module held, and its submodules, is still there under its name."""
        old = {
            n: h.tensor for n, h in self._held.items() if f"{n}.".startswith(f"{name}.")
        }
        new = self._inventory.held
        return all(n in new and new[n].tensor is tensor for n, tensor in old.items())

    def _registered(self, when: str) -> list[Change]:
        """Parameters and buffers that are other tensors, or new, in modules that are the same."""
        changes = []
        for name, h in self._inventory.held.items():
            before = self._held.get(name)
            if self._modules.get(h.owner) is not h.module:
                continue
            if before is None and h.persistent and self._reported.is_new(name):
                fact = f"was added {when}"
                expected = "the state_dict as before it"
                remedy = REGISTER
                changes.append(of_tensor(h, fact, expected, remedy, writes=True))
            elif (
                before is not None
                and h.kind == "parameter"
                and h.tensor is not before.tensor
                and not (self._sharded or isinstance(h.module, torch.jit.ScriptModule))
                and self._reported.is_new(name)
            ):
                fact = f"was replaced by another Parameter {when}"
                expected, remedy = (
                    "the one that the optimizer holds",
                    "Copy into it instead.",
                )
                changes.append(of_tensor(h, fact, expected, remedy, writes=True))
        return changes
