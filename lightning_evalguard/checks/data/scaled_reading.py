"""Does each dataset scale what it reads by statistics of its own rows?

A dataset holds raw rows in memory and scales a sample as it is read. A few samples of each set are
read and held against their rows: where each column is a straight line of its row, the line tells by
which shift and scale. Both sets then have lines of their own, and each is that of the statistics of
its own rows (mean and deviation, smallest and largest value, median and quartiles; by column, by
channel or over all). One scaler for both sets gives one line, whosever it is; a sample that is
normalised by itself, or at random, gives none.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_evalguard.data.loaders import Part
from lightning_evalguard.data.samples import largest_tensor, rows, spread, undisturbed

_READS = 8  # samples of each set
_FEWEST = 16  # rows of a set
_STRAIGHT = 1e-3  # of what a column spans
_EQUAL = 1e-4  # of a scale: two sets have one line
_OWN = 1e-3  # of a scale: the line is that of the statistics
_MOST_COLUMNS = 0.9
_MOST = 1 << 24  # values of a set


Read = tuple[Part, Any]
"""The samples of a set, and the dataset of its loader."""


class Scaling(NamedTuple):
    """By what the columns of a sample are scaled: ``(row - shift) / scale``.

    Attributes:
        rows: Those of the set, and where they are others, all that a dataset holds.
        told: Which columns a few samples tell, ``(F,)`` bool.
        shift: Of each column.
        scale: Of each column.
    """

    rows: list[Tensor]
    told: Tensor
    shift: Tensor
    scale: Tensor


def own_scaling(mine: Read, theirs: Read) -> str | None:
    """By which statistics of its own each of two sets is scaled; None where they are not."""
    with torch.no_grad():
        a = _lines(*mine)
        b = a and _lines(*theirs)
        if a is None or not b or a.rows[0].shape[1:] != b.rows[0].shape[1:]:
            return None
        both = a.told & b.told
        if not bool(both.any()) or _mostly(_near(a, b.shift, b.scale, _EQUAL), both):
            return None
        theirs_own = set(_own(b))
        return next((name for name in _own(a) if name in theirs_own), None)


def _lines(part: Part, dataset: Any) -> Scaling | None:
    """The lines of a dataset that scales; None where it gives its rows, or something else."""
    held = rows(part.root, part.indices)
    if held is None or not isinstance(held.values, Tensor):
        return None
    table, n = held.values, len(part.indices)
    if len(table) < _FEWEST or n < _READS or table.numel() > _MOST:
        return None
    chosen = [spread(k, n) for k in range(_READS)]
    read = _read(dataset, part.at[chosen].tolist(), table[0].numel())
    if read is None:
        return None
    raw = table[part.indices[chosen]].flatten(1).double()
    if torch.allclose(raw, read) or not bool(read.isfinite().all()):
        return None
    held_by = [table]
    if n != len(table):
        held_by.insert(0, table[part.indices])
    return _fitted(held_by, raw, read)


def _read(dataset: Any, places: list[int], numel: int) -> Tensor | None:
    """``(N, F)``: samples as the dataset gives them; None where they are no rows."""
    read = []
    try:
        with undisturbed(dataset):
            for place in places:
                sample = largest_tensor(dataset[place])
                if sample.numel() != numel or not sample.is_floating_point():
                    return None
                read.append(sample.flatten().double().cpu())
    except Exception:  # noqa: BLE001 - a dataset that cannot be read so
        return None
    return torch.stack(read)


def _fitted(tables: list[Tensor], raw: Tensor, read: Tensor) -> Scaling | None:
    low, high = raw.min(0), raw.max(0)
    span = high.values - low.values
    first, last = (
        read.gather(0, at.indices.unsqueeze(0)).squeeze(0) for at in (low, high)
    )
    slope = (last - first) / span
    start = first - slope * low.values
    off = (read - (slope * raw + start)).abs().amax(0)
    moved = (span > 0) & (slope != 0)
    told = moved & (off <= _STRAIGHT * (last - first).abs())
    if not bool(told.any()) or 2 * int(told.sum()) < int(moved.sum()):
        return None
    return Scaling(tables, told, -start / slope, 1 / slope)


def _near(of: Scaling, shift: Tensor, scale: Tensor, within: float) -> Tensor:
    """``(F,)``: the columns whose lines have this shift and scale."""
    allowed = within * scale.abs()
    same = ((of.shift - shift).abs() <= allowed) & ((of.scale - scale).abs() <= allowed)
    return same & (allowed > 0)


def _mostly(near: Tensor, told: Tensor) -> bool:
    """Whether half of the columns that tell are near."""
    return 2 * int((near & told).sum()) >= int(told.sum())


def _own(of: Scaling) -> Iterator[str]:
    """The statistics of its own rows by which a dataset scales."""
    shape = of.rows[0].shape[1:]
    for name, shift, scale in itertools.chain.from_iterable(
        _statistics(table.double()) for table in of.rows
    ):
        wide = [t.expand(1, *shape).flatten() for t in (shift, scale)]
        near = _near(of, wide[0], wide[1], _OWN) & of.told
        if int(near.sum()) >= _MOST_COLUMNS * int(of.told.sum()):
            yield name


def _statistics(table: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    """What rows are scaled by: a name, a shift and a scale, as wide as a row or to be spread."""
    over = [(0,), tuple(range(table.ndim))]
    if table.ndim > 2:
        over += [(0, *range(2, table.ndim)), tuple(range(table.ndim - 1))]
    for dims in over:
        mean = table.mean(dims, keepdim=True)
        for correction in (0, 1):
            deviation = table.std(dims, keepdim=True, correction=correction)
            yield "mean and standard deviation", mean, deviation
        yield "mean", mean, torch.ones_like(mean)
        low = table.amin(dims, keepdim=True)
        high = table.amax(dims, keepdim=True)
        yield "smallest and largest value", low, high - low
        yield "largest value", torch.zeros_like(high), high
    ordered = table.sort(0).values
    low, middle, high = (_quantile(ordered, q) for q in (0.25, 0.5, 0.75))
    yield "median and quartiles", middle, high - low


def _quantile(ordered: Tensor, q: float) -> Tensor:
    """As numpy has it: between two rows, in proportion."""
    at = q * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return torch.lerp(ordered[low], ordered[high], at - low).unsqueeze(0)
