"""How a module is set up beside its tensors: its hooks, its rates and other knobs."""

from __future__ import annotations

from typing import Any

from torch import nn

from lightning_evalguard.checks.state.change import PUT_BACK, Change, of_module
from lightning_evalguard.instruments.source import Site, owner_of, site_at
from lightning_evalguard.model.tensors import Inventory

_KNOBS = (
    "p",
    "dropout",
    "dropout_p",
    "drop_prob",
    "drop_rate",
    "momentum",
    "eps",
    "max_norm",
)
HOOKS = {
    "_forward_pre_hooks": "forward pre-hook",
    "_forward_hooks": "forward hook",
    "_backward_pre_hooks": "backward pre-hook",
    "_backward_hooks": "backward hook",
}


def hook_counts(module: nn.Module) -> dict[str, int]:
    """How many hooks of each kind a module has, where it has any."""
    own = module.__dict__
    return {registry: n for registry in HOOKS if (n := len(own.get(registry) or ()))}


def is_librarys(hook: Any) -> bool:
    """Whether a library registered a hook."""
    code = getattr(getattr(hook, "__func__", hook), "__code__", None)
    return code is not None and owner_of(code.co_filename) in (
        "torch",
        "lightning",
        "self",
    )


def definition(hook: Any) -> Site | None:
    """Where a hook's function is written: as near as one comes to where it was registered."""
    code = getattr(getattr(hook, "__func__", hook), "__code__", None)
    if code is None:
        return None
    return site_at(code, 0, code.co_firstlineno)


def knobs(module: nn.Module) -> dict[str, float | None]:
    """The numbers of a module by which it computes: rates, momentum."""
    own = module.__dict__
    return {
        k: v
        for k in _KNOBS
        if k in own and isinstance(v := own[k], (int, float, type(None)))
    }


class Configuration:
    """The hooks and knobs of all modules as an evaluation found them.

    Args:
        inventory: Of the model.
    """

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory
        self._modules = dict(inventory.modules)
        self._hooks = {n: hook_counts(m) for n, m in self._modules.items()}
        self._knobs = {n: knobs(m) for n, m in self._modules.items()}

    def changes(self, when: str) -> list[Change]:
        changes = []
        for name, module in self._inventory.modules.items():
            if self._modules.get(name) is not module:
                continue
            for registry, count in hook_counts(module).items():
                more = count - self._hooks[name].get(registry, 0)
                hook = next(reversed(getattr(module, registry).values()))
                if more <= 0 or is_librarys(hook):
                    continue
                noun = HOOKS[registry] + ("s" if more > 1 else "")
                fact = f"got {more} {noun} {when}"
                expected = "none to stay"
                remedy = "Keep the handle and call its `.remove()`."
                site = definition(hook)
                changes.append(of_module(name, module, fact, expected, remedy, site))
            for knob, value in knobs(module).items():
                was = self._knobs[name].get(knob, value)
                if value != was:
                    fact = f"went from {knob}={was} to {knob}={value} {when}"
                    expected = f"{was} as before it"
                    changes.append(of_module(name, module, fact, expected, PUT_BACK))
        return changes
