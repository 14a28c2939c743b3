"""Are windows of one series drawn at random for training and for evaluation?

Both sets take their samples from one dataset, whose neighbours overlap: all but the first steps of
a sample are the first ones of the next. Most evaluated samples then stand in training too, but for
a few steps. A split by time has such neighbours at its border alone; samples that repeat
themselves, or that hold few values, tell nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_evalguard.checks.data.history import Side
from lightning_evalguard.checks.data.loader_facts import EvaluatedSet, spread
from lightning_evalguard.data import loaders as _loaders
from lightning_evalguard.data.batches import NUMBER_TYPES, is_array, leaves
from lightning_evalguard.data.loaders import Fact, Part
from lightning_evalguard.data.samples import is_cheap, rich, rows, undisturbed

_PAIRS = 8  # neighbours that are compared
_MOST = 0.5  # of the evaluated samples that have a neighbour in training
_LONGEST = 1 << 14  # values of a sample


def overlapping(one: EvaluatedSet, side: Side) -> list[Fact]:
    """What shows that evaluated samples overlap training's."""
    mine, theirs = _loaders.parts(one.loader), side.parts
    if len(mine) != 1 or len(theirs) != 1 or mine[0].root is not theirs[0].root:
        return []
    beside = _beside(mine[0].indices, theirs[0].indices)
    n = len(mine[0].indices)
    if n < 2 * _PAIRS or int(beside.sum()) <= _MOST * n:
        return []
    pairs = [
        int(place) for place in mine[0].indices[beside & _followed(mine[0], theirs[0])]
    ]
    chosen = [pairs[spread(k, len(pairs))] for k in range(min(_PAIRS, len(pairs)))]
    shift = _shift(mine[0], chosen)
    if not shift:
        return []
    return [
        one.fact(
            f"{int(beside.sum())} of its {n} samples overlap one of {side.words}: sample "
            f"{chosen[0]} of `{type(mine[0].root).__name__}` goes on in the next one, {shift} "
            "further on; expected a split by time",
            "Split the series by time before windows are cut: the first part for training, the "
            "last for the evaluation.",
            certain=False,
        )
    ]


def _beside(mine: Tensor, theirs: Tensor) -> Tensor:
    """Which evaluated places have a neighbour in training, as a mask."""
    return torch.isin(mine - 1, theirs) | torch.isin(mine + 1, theirs)


def _followed(mine: Part, theirs: Part) -> Tensor:
    """Which evaluated places are followed by another that one of the sets holds."""
    after = mine.indices + 1
    return torch.isin(after, theirs.indices) | torch.isin(after, mine.indices)


def _shift(part: Part, places: list[int]) -> int:
    """By how many steps neighbours are shifted, one and the same for nearly all; 0 for no."""
    if len(places) < _PAIRS:
        return 0
    wanted = [i for place in places for i in (place, place + 1)]
    try:
        samples = _samples(part, wanted)
    except Exception:  # noqa: BLE001 - a dataset that cannot be read so
        return 0
    shifts = [_between(a, b) for a, b in zip(samples[::2], samples[1::2], strict=True)]
    found = max(set(shifts), key=shifts.count, default=0)
    if found and shifts.count(found) >= _PAIRS - 1:
        return found
    return 0


def _samples(part: Part, wanted: list[int]) -> list[Tensor]:
    held = rows(part.root, torch.tensor(wanted))
    if held is not None:
        if not isinstance(held.values, Tensor):
            return []
        return [held.values[i] for i in wanted]
    with undisturbed(part.root):
        if not is_cheap(part.root, wanted[0]):
            return []
        return [_largest(part.root[i]) for i in wanted]


def _largest(sample: Any) -> Tensor:
    held = [leaf for leaf in leaves(sample) if isinstance(leaf, Tensor)]
    arrays = [leaf for leaf in leaves(sample) if is_array(leaf)]
    held += [torch.tensor(a) for a in arrays if a.dtype.name in NUMBER_TYPES]
    return max((t.detach() for t in held), key=Tensor.numel)


def _between(a: Tensor, b: Tensor) -> int:
    """How many steps of `a` lie before `b`, along its first or last dim; 0 where they are apart."""
    if a.shape != b.shape or not a.ndim or a.numel() > _LONGEST or not rich(a):
        return 0
    for dim in {0, a.ndim - 1}:
        x, y = a.movedim(dim, 0), b.movedim(dim, 0)
        for shift in range(1, len(x) // 2 + 1):
            if torch.equal(x[shift:], y[:-shift]):
                own = torch.equal(x[shift:], x[:-shift]) or not rich(x[shift:])
                return 0 if own else shift
    return 0
