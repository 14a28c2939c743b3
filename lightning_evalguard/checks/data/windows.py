"""Are windows of one series drawn at random for training and for evaluation?

Where both sets take their samples from one dataset, its neighbours overlap: all but the first
steps of a sample are the first ones of the next. Most evaluated samples then stand in training too,
but for a few steps. A split by time has such neighbours at its border alone; samples that repeat
themselves, or that hold few values, tell nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_evalguard.checks.data.history import Side
from lightning_evalguard.checks.data.loader_facts import EvaluatedSet
from lightning_evalguard.checks.data.shifted import shifted
from lightning_evalguard.data import loaders as _loaders
from lightning_evalguard.data.loaders import Fact, Part
from lightning_evalguard.data.samples import (
    is_cheap,
    largest_tensor,
    rich,
    rows,
    spread,
    undisturbed,
)

_PAIRS = 8  # neighbours that are compared
_MOST = 0.5  # of the evaluated samples that have a neighbour in training
_LONGEST = 1 << 14  # values of a sample


def overlapping(one: EvaluatedSet, side: Side) -> list[Fact]:
    """What shows that evaluated samples overlap training's."""
    mine = _loaders.parts(one.loader)
    theirs = side.parts
    if len(mine) != 1 or len(theirs) != 1:
        return []
    text = _of_neighbours(mine[0], theirs[0], side.words)
    if text is None:
        text = _by_content(mine[0], theirs[0], side.words)
    if text is None:
        return []
    return [
        one.fact(
            f"{text}; expected a split by time",
            "Split the series by time before windows are cut: the first part for training, the "
            "last for the evaluation.",
            certain=False,
        )
    ]


def _of_neighbours(mine: Part, theirs: Part, words: str) -> str | None:
    """Both sets take from one dataset, in which windows follow one another."""
    n = len(mine.indices)
    if mine.root is not theirs.root or n < 2 * _PAIRS:
        return None
    beside = _beside(mine.indices, theirs.indices)
    if int(beside.sum()) <= _MOST * n:
        return None
    pairs = [int(place) for place in mine.indices[beside & _followed(mine, theirs)]]
    chosen = [pairs[spread(k, len(pairs))] for k in range(min(_PAIRS, len(pairs)))]
    shift = _shift(mine, chosen)
    if not shift:
        return None
    return (
        f"{int(beside.sum())} of its {n} samples overlap one of {words}: sample {chosen[0]} of "
        f"`{type(mine.root).__name__}` continues in the next one, shifted by {shift}"
    )


def _by_content(mine: Part, theirs: Part, words: str) -> str | None:
    """Windows were shuffled before the split, or cut by each dataset for itself."""
    found = shifted(mine, theirs)
    if found is None:
        return None
    return (
        f"{found.found} of {found.looked} samples that were looked at overlap one of {words}: "
        f"sample {found.place} of `{type(mine.root).__name__}` continues there, shifted by "
        f"{found.shift}"
    )


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
        return [largest_tensor(part.root[i]) for i in wanted]


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
