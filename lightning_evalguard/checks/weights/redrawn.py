"""Were weights drawn anew after a load or a fit had written them?

``setup``, ``configure_model`` or a hook that initialises runs before each evaluation, too. A load
and the end of a fit leave a count of writes and some values of each parameter; what was written a
few times since, holds quite other values and is what an initialisation gives was drawn anew. Other
weights that were copied in (an average, another checkpoint) are no such draw.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor

from lightning_evalguard.checks.check import Moment
from lightning_evalguard.checks.weights import loads
from lightning_evalguard.checks.weights.initial import (
    holds_constant,
    holds_draw,
    holds_normal,
    holds_uniform,
    is_drawn,
)
from lightning_evalguard.checks.weights.loads import Load, probe, version_of
from lightning_evalguard.checks.weights.origin import (
    kind_of,
    parameters_of,
)
from lightning_evalguard.checks.weights.reads import MemoryReads
from lightning_evalguard.checks.weights.words import (
    are,
    listed_modules,
    tops,
    weights_finding,
)
from lightning_evalguard.model.identity import Identity
from lightning_evalguard.model.tensors import Held, Inventory, identity
from lightning_evalguard.report import Finding

_FEW = 4  # writes of an initialisation
_ALIKE = 0.8  # the cosine of an average and what it averages is above
_FEWEST = 8  # values that tell
_MANY = 1024  # parameters that are remembered before those gone are looked for


class _End(NamedTuple):
    """A parameter as the last fit left it."""

    same: Identity
    version: int
    values: list[float] | None


class Ends:
    """The parameters that fits of this process trained, as the last one left them."""

    def __init__(self) -> None:
        self._at: dict[int, _End] = {}
        self._many = _MANY

    def add(self, parameters: Iterable[Held]) -> None:
        """A fit that trained these is over."""
        for held in parameters:
            tensor = held.tensor
            end = _End(identity(held), version_of(tensor), probe(tensor))
            self._at[id(tensor)] = end
        if len(self._at) > self._many:
            self._at = {k: end for k, end in self._at.items() if not end.same.gone}
            self._many = max(_MANY, 2 * len(self._at))

    def of(self, tensor: Tensor) -> _End | None:
        """How a fit left it; None where none did."""
        end = self._at.get(id(tensor))
        if end is None or not end.same(tensor):
            return None
        return end


ends = Ends()


def redrawn(parameters: Iterable[Held]) -> list[Held]:
    """Those of the parameters that were drawn anew.

    A bias of zeros beside a weight that changed is proof enough. Values within the bounds of a
    uniform draw, or those of a normal one beside a bias that is still the loaded one, are some only
    where no other weight of the model has become a quite other one: where all were copied in, some
    may look so.
    """
    others = [held for held in parameters if _is_other(held.tensor)]
    zeroed = {held.owner for held in others if _is_beside_zeros(held)}
    uniform = [held for held in others if _is_uniform(held) or _is_normal(held)]
    drawn = {id(held.tensor) for held in uniform}
    copied = [h for h in others if h.tensor.ndim > 1 and h.owner not in zeroed]
    if any(id(held.tensor) not in drawn for held in copied):
        drawn = set()
    return [h for h in others if h.owner in zeroed or id(h.tensor) in drawn]


def _is_uniform(held: Held) -> bool:
    tensor = held.tensor
    key = held.name.rpartition(".")[2]
    return is_drawn(held.module, key, tensor, writes=1) or holds_uniform(tensor)


def _is_normal(held: Held) -> bool:
    """Whether it is a normal draw beside a bias that nothing wrote since the load or fit."""
    bias = vars(held.module).get("_parameters", {}).get("bias")
    if bias is None or held.name.rpartition(".")[2] != "weight":
        return False
    if _last(bias) is None or _was_written(bias):
        return False
    return not holds_constant(held.module, "bias", bias) and holds_normal(held.tensor)


def _is_beside_zeros(held: Held) -> bool:
    """Whether it is a weight whose bias was zeroed as it was written."""
    bias = vars(held.module).get("_parameters", {}).get("bias")
    if bias is None or held.name.rpartition(".")[2] != "weight":
        return False
    zeros = _was_written(bias) and holds_constant(held.module, "bias", bias)
    return zeros and holds_draw(held.tensor)


def _was_written(tensor: Tensor) -> bool:
    """Whether something wrote it after the last load or fit that did."""
    known = _last(tensor)
    if known is None:
        return False
    version, values = known
    return version_of(tensor) != version or values != probe(tensor)


def _is_other(tensor: Tensor) -> bool:
    """Whether it was written a few times since, and holds quite other values."""
    known = _last(tensor)
    if known is None or not 0 <= version_of(tensor) - known[0] <= _FEW:
        return False
    then, now = known[1], probe(tensor)
    if then is None or now is None or len(now) < _FEWEST or then == now:
        return False
    numbers = all(isinstance(value, float) for value in (*then, *now))
    return numbers and _cosine(then, now) < _ALIKE


def _last(tensor: Tensor) -> tuple[int, list[float] | None] | None:
    """Count of writes and values as the last load or fit left them."""
    known = []
    if (load := loads.brought(tensor)) is not None:
        known.append(load[1:])
    if (end := ends.of(tensor)) is not None:
        known.append((end.version, end.values))
    return max(known, key=lambda one: one[0], default=None)


def _cosine(a: list[float], b: list[float]) -> float:
    product = math.fsum(x * y for x, y in zip(a, b, strict=True))
    norms = math.hypot(*a) * math.hypot(*b)
    if not norms:
        return 1.0
    return product / norms


def evaluated(
    inventory: Inventory, reads: MemoryReads | None, before: set[int], now: Moment
) -> list[Finding]:
    """Weights that an evaluation reads, and that were drawn anew before it.

    Args:
        inventory: The model's tensors.
        reads: What the evaluation's first step reads; None where that is not known.
        before: Parameters that were drawn anew before the run began.
        now: Where the run stands.
    """
    chosen = redrawn(parameters_of(inventory))
    if reads is not None:
        chosen = [held for held in chosen if held.tensor in reads]
    if now.stage == "validate":  # a baseline before the next training
        chosen = [held for held in chosen if id(held.tensor) not in before]
    if not chosen:
        return []
    return [_finding(chosen, inventory, now, "evaluated")]


def trained_anew(inventory: Inventory, before: set[int], now: Moment) -> list[Finding]:
    """A fit that begins from scratch, although a load had written all its weights.

    Args:
        inventory: The model's tensors.
        before: Parameters that were drawn anew before the run began: on purpose.
        now: Where the run stands.
    """
    everything = parameters_of(inventory)
    chosen = [h for h in redrawn(everything) if loads.touched(h.tensor)]
    chosen = [held for held in chosen if id(held.tensor) not in before]
    drawn = _elements(chosen)
    size = _elements(everything)
    if not chosen or drawn < size / 2:  # a new head on purpose
        return []
    return [_finding(chosen, inventory, now, "trained")]


def _elements(chosen: Iterable[Held]) -> int:
    return sum(held.tensor.numel() for held in chosen)


def _finding(
    chosen: list[Held], inventory: Inventory, now: Moment, said: str
) -> Finding:
    names = tops(chosen, parameters_of(inventory))
    load = _load_of(chosen)
    by = "a fit had trained"
    if load is not None:
        at = f" at {load.site.location}" if load.site is not None else ""
        by = f"a load{at} had written"
    others = ""
    if names[1:]:
        others = f"; so {are(names[1:])} {listed_modules(names[1:], inventory.modules)}"
    return weights_finding(
        now,
        f"{are(names[:1])} {said} as drawn anew: something initialised it after {by} it; expected "
        f"those weights{others}",
        "Draw weights in `__init__`, before a load, or return from the hook that draws them where "
        "the model has its weights already.",
        subject=names[0],
        kind=kind_of(names[0], inventory),
        # a fit from scratch may be meant, and some trained weights look like a normal draw
        certain=said == "evaluated" and not any(map(_is_normal, chosen)),
    )


def _load_of(chosen: Iterable[Held]) -> Load | None:
    """The load whose weights are gone; None where a later fit's are."""
    for held in chosen:
        brought = loads.brought(held.tensor)
        end = ends.of(held.tensor)
        if brought is not None and (end is None or end.version <= brought[1]):
            return brought[0]
    return None
