"""Which weights does a model use that are registered nowhere: not trained, not saved, not moved?"""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from lightning_evalguard.checks.check import Moment
from lightning_evalguard.checks.weights.loads import version_of
from lightning_evalguard.checks.weights.words import (
    are,
    listed_modules,
    weights_finding,
)
from lightning_evalguard.model.tensors import Held, Inventory, kept
from lightning_evalguard.report import Finding


class Leaves:
    """Tensors in plain attributes that ask for a gradient, as they stood when training began."""

    def __init__(self) -> None:
        self._at: dict[str, tuple[weakref.ref[Tensor], int]] = {}

    def take_in(self, inventory: Inventory) -> None:
        """Remember those that are new."""
        leaves = {}
        for name, tensor in _leaves(inventory):
            known = self._at.get(name)
            if known is None or known[0]() is not tensor:
                known = weakref.ref(tensor), version_of(tensor)
            leaves[name] = known
        self._at = leaves

    def untrained(self, optimized: Iterable[int]) -> list[str]:
        """Names of those that a gradient reached and nothing wrote."""
        held = set(optimized)
        names = []
        for name, (ref, version) in self._at.items():
            tensor = ref()
            if tensor is None or id(tensor) in held or tensor.grad is None:
                continue
            if version_of(tensor) == version:
                names.append(name)
        return names


def _leaves(inventory: Inventory) -> Iterator[tuple[str, Tensor]]:
    for attribute, tensors in kept(inventory).items():
        for path, one in tensors.items():
            tensor = one.ref()
            if tensor is not None and tensor.requires_grad and tensor.is_leaf:
                yield attribute + path, tensor


def never_trained(names: list[str], now: Moment, *, modules: bool) -> Finding:
    """Layers or tensors that the step uses and that no optimizer gets."""
    others = ""
    if names[1:]:
        others = f", as {are(names[1:])} {listed_modules(names[1:])}"
    what = "is a plain tensor, registered nowhere"
    if modules:
        what = "is registered nowhere"
    return weights_finding(
        now,
        f"{what}, and used by the step{others}: never trained, saved or moved to the device",
        how_to_register(names[0], modules=modules),
        subject=names[0],
    )


def not_saved(names: list[str], now: Moment) -> Finding:
    """Layers that are trained by hand and missing in every checkpoint."""
    others = ""
    if names[1:]:
        others = f", as {are(names[1:])} {listed_modules(names[1:])}"
    return weights_finding(
        now,
        f"is trained and registered nowhere{others}: no checkpoint has its weights",
        how_to_register(names[0], modules=True),
        subject=names[0],
    )


def how_to_register(name: str, *, modules: bool) -> str:
    """One imperative that has `name` registered."""
    match = re.match(r"(.*?)((?:\[[^\]]*\])+)", name)
    path, item = (match.group(1), match.group(2)) if match else (name, "")
    attribute = f"self.{path.rpartition('.')[2]}"
    kinds = (
        ("ModuleList", "ModuleDict") if modules else ("ParameterList", "ParameterDict")
    )
    if not item:
        made = "`nn.Parameter`"
        if modules:
            made = "nn.Module attribute"
        return f"Make `{attribute}` an {made} of the model."
    return f"Make `{attribute}` an nn.{kinds[0] if item[1:-1].isdigit() else kinds[1]}."


def saves_by_hand(root: nn.Module) -> bool:
    """Whether the model has a say in what a checkpoint holds."""
    hooks = ("on_save_checkpoint", "state_dict", "get_extra_state")
    for kind in type(root).__mro__:
        if kind.__module__.startswith(("lightning.", "pytorch_lightning.", "torch.")):
            break
        if any(hook in vars(kind) for hook in hooks):
            return True
    return False


def outermost(hidden: Iterable[Held]) -> list[str]:
    """Where the modules that hold these stand, each once."""
    return list(dict.fromkeys(held.owner for held in hidden))
