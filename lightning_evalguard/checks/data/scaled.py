"""Are both sets scaled by the statistics of training, or each by its own?

Told by the rows that the datasets hold in memory; a dataset that scales what it reads is left to
`scaled_reading`. Over all rows of the evaluated
set, and over all of training's, each column (or channel) has mean 0 and standard deviation 1 up to
rounding; or the smallest value of each is exactly 0 and the largest exactly 1, mostly once. Chance
does neither: of rows that another set's statistics scaled the mean misses 0 by about
``1 / sqrt(N)``, and who clips to a range stands at its ends more than once. Columns of few values
say nothing: balanced codes of -1 and 1 have mean 0 honestly, one-hot columns and pixels the ends 0
and 1. Nor do rows that are normalised each by itself, or in groups (a subject, a day) one after
the other, of which a set is made.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_evalguard.checks.data.history import Side
from lightning_evalguard.checks.data.loader_facts import EvaluatedSet
from lightning_evalguard.checks.data.scaled_reading import own_scaling
from lightning_evalguard.data import loaders as _loaders
from lightning_evalguard.data.loaders import Fact, Part
from lightning_evalguard.data.samples import rows

_FEWEST = 32  # samples
_CLOSE = 1e-4  # to a mean of 0, and to a deviation of 1
_VALUES = 8  # distinct ones of a column that says something
_RANGED = 4  # columns that have their ends at 0 and 1
_CHANNELS = 64
_MOST = 1 << 22  # values of a set


def by_own_statistics(one: EvaluatedSet, side: Side) -> list[Fact]:
    """What shows that an evaluated set and training's are each scaled by their own statistics."""
    mine = _loaders.parts(one.loader)
    theirs = side.parts
    if len(mine) != 1 or len(theirs) != 1:
        return []
    how = _scaled(mine[0])
    if how is not None:
        if _scaled(theirs[0]) != how:
            return []
        said = f"over the whole set {how}"
    else:
        statistics = own_scaling(
            (mine[0], one.loader.dataset), (theirs[0], side.dataset)
        )
        if statistics is None:
            return []
        said = f"what is read is scaled by the {statistics} of this set"
    return [
        one.fact(
            f"{said}, and so it is in {side.words}: each set is scaled by its own statistics, "
            "expected those of training for both",
            "Pass both sets through `transform` of a scaler that is fitted to the training set.",
            certain=False,
        )
    ]


def _scaled(part: Part) -> str | None:
    """How the rows of a set are scaled by statistics of its own; None where they are not."""
    held = rows(part.root, part.indices)
    if held is None or not isinstance(held.values, Tensor):
        return None
    table = held.values
    chosen = len(held.chosen)
    if chosen < _FEWEST or not table.is_floating_point():
        return None
    if chosen * table[0].numel() > _MOST:
        return None
    with torch.no_grad():
        table = table[held.chosen].double()
        if not bool(table.isfinite().all()):
            return None
        for columns in _columns(table):
            if _is_standardised(columns):
                return "each column has mean 0 and standard deviation 1"
        if table.ndim == 2 and _is_ranged(table):
            return "each column goes from exactly 0 to exactly 1"
    return None


def _columns(table: Tensor) -> Iterator[Tensor]:
    """``(N, M, C)``: what may be standardised by column, M values of each sample."""
    if table.ndim == 2:
        yield table.unsqueeze(1)
        return
    for dim in {1, table.ndim - 1}:
        if 2 <= table.shape[dim] <= _CHANNELS:
            last = table.movedim(dim, -1)
            yield last.reshape(len(last), -1, last.shape[-1])


def _is_standardised(columns: Tensor) -> bool:
    flat = columns.flatten(0, 1)
    mean = flat.mean(0)
    deviations = [flat.std(0, correction=c) for c in (0, 1)]
    scaled = torch.stack([(s - 1).abs() < _CLOSE for s in deviations]).any(0)
    scaled &= mean.abs() < _CLOSE
    if int(scaled.sum()) < 2:  # most sets end here
        return False
    rich = _distinct(flat) >= _VALUES
    scaled &= rich
    if int(scaled.sum()) < 2 or 2 * int(scaled.sum()) < int(rich.sum()):
        return False
    samples = columns[:, :, scaled].mean(1)
    alone = columns.shape[1] > 1 and bool((samples.abs() < _CLOSE).all(1).any())
    return not (alone or _in_groups(samples))


def _in_groups(samples: Tensor) -> bool:
    """Whether the first of the samples, up to some place, have mean 0 already."""
    count = torch.arange(1, len(samples), dtype=samples.dtype)
    means = samples.cumsum(0)[:-1] / count.unsqueeze(1)
    return bool((means.abs() < _CLOSE).all(1).any())


def _is_ranged(table: Tensor) -> bool:
    """Whether each column of many values has its ends at 0 and 1, and most stand there once."""
    low = table.min(0).values
    high = table.max(0).values
    ends = (low == 0) & ((high - 1).abs() < 1e-6)
    if int(ends.sum()) < _RANGED:
        return False
    many = _distinct(table) > len(table) // 2
    once = ((table == low).sum(0) == 1) & ((table == high).sum(0) == 1)
    if int(many.sum()) < _RANGED or not bool(ends[many].all()):
        return False
    return 2 * int(once[many].sum()) >= int(many.sum())


def _distinct(flat: Tensor) -> Tensor:
    """``(C,)``: how many values each column has."""
    ordered = flat.sort(0).values
    return (ordered[1:] != ordered[:-1]).sum(0) + 1
