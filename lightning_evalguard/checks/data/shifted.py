"""Do evaluated windows go on in training's, whatever dataset each of them stands in?

Windows were cut from one series, shuffled, and split as two tensors, or two datasets cut them from
one series at places of their own: no index tells that they are neighbours, but their content does.
All but the first steps of an evaluated window are then the first ones of a training window. Of a
split by time this holds at no place, since training goes before; a block in the middle goes on in
training at its end alone, and its windows have their next neighbour among themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_evalguard.data.batches import is_array
from lightning_evalguard.data.loaders import Part
from lightning_evalguard.data.samples import (
    is_cheap,
    keys,
    largest_tensor,
    rich,
    rows,
    spread,
    undisturbed,
)

_LOOKED = 64  # evaluated windows
_FEWEST = 16
_TABLE = 1 << 14  # training windows in memory
_READ = 512  # training windows that are read
_SHIFTS = 256
_POINTS = 8  # values by which the beginnings of windows are told apart
_LONGEST = 1 << 14  # values of a window
_AS_MUCH = 2.0
_OVERLAP, _NEARER = 0.5, 0.25  # of the evaluated windows


class Shifted(NamedTuple):
    """Evaluated windows that go on in training.

    Attributes:
        found: How many.
        looked: Of how many.
        place: One of them, in its dataset.
        shift: By how many steps training's window begins later.
    """

    found: int
    looked: int
    place: int
    shift: int


def shifted(mine: Part, theirs: Part) -> Shifted | None:
    """The evaluated windows that go on in training's; None where most do not."""
    places = mine.indices
    if len(places) < _FEWEST or len(theirs.indices) < _FEWEST:
        return None
    looked = min(_LOOKED, len(places))
    chosen = places[[spread(k, len(places)) for k in range(looked)]]
    held = [rows(part.root, part.indices) for part in (mine, theirs)]
    values = [one.values for one in held if one is not None]
    with torch.no_grad():
        if len(values) == 2:
            own, other = values
            if not (isinstance(own, Tensor) and isinstance(other, Tensor)):
                return None
            training = (other, theirs.indices)
            windows = own[chosen]
            around = (own, places)
        elif mine.root is not theirs.root and _of_one_series(mine.root, theirs.root):
            read = _read(mine.root, chosen), _read(theirs.root, _some(theirs.indices))
            if read[0] is None or read[1] is None:
                return None
            windows = read[0]
            training = (read[1], torch.arange(len(read[1])))
            around = windows, torch.arange(looked)
        else:
            return None
        return _compared(windows, around, training, chosen)


def is_trend(mine: Sequence[Part], theirs: Sequence[Part]) -> bool:
    """Whether values that differ from training's do so as those of a series go.

    Both sets are windows that overlap among themselves, and step by step the values move as much
    in one as in the other: what was scaled otherwise moves otherwise.
    """
    if len(mine) != 1 or len(theirs) != 1:
        return False
    with torch.no_grad():
        ours = _moves(mine[0])
        training = None if ours is None else _moves(theirs[0])
    if ours is None or training is None:
        return False
    return max(ours, training) <= _AS_MUCH * min(ours, training)


def _moves(part: Part) -> float | None:
    """How much the values of overlapping windows move from step to step; None of others."""
    held = rows(part.root, part.indices)
    places = part.indices
    if held is None or not isinstance(held.values, Tensor) or len(places) < _FEWEST:
        return None
    table = held.values
    if table.ndim < 2 or table[0].numel() > _LONGEST or not table.is_floating_point():
        return None
    windows = table[[int(places[spread(k, len(places))]) for k in range(_FEWEST)]]
    for dim in {1, table.ndim - 1}:
        steps = windows.movedim(dim, 1)
        found = _shifts(steps, table.movedim(dim, 1), places)
        shift = min((s for s in found if s), default=0)
        if 2 * sum(map(bool, found)) > len(found):
            return float((steps[:, shift:] - steps[:, :-shift]).double().std())
    return None


def _some(indices: Tensor) -> Tensor:
    return indices[:: max(1, -(-len(indices) // _READ))]


def _compared(
    windows: Tensor,
    own: tuple[Tensor, Tensor],
    training: tuple[Tensor, Tensor],
    chosen: Tensor,
) -> Shifted | None:
    shape = windows.shape[1:]
    if shape != training[0].shape[1:] or windows.dtype != training[0].dtype:
        return None
    if not shape or windows[0].numel() > _LONGEST or windows.is_complex():
        return None
    for dim in {1, len(shape)}:
        steps = windows.movedim(dim, 1)
        there = _shifts(steps, training[0].movedim(dim, 1), training[1])
        found = [k for k, shift in enumerate(there) if shift]
        if len(found) <= _OVERLAP * len(there):
            continue
        here = _shifts(steps, own[0].movedim(dim, 1), own[1])
        nearer = [k for k in found if not here[k] or there[k] < here[k]]
        if len(nearer) >= _NEARER * len(there):
            k = nearer[0]
            return Shifted(len(found), len(there), int(chosen[k]), there[k])
    return None


def _shifts(windows: Tensor, table: Tensor, chosen: Tensor) -> list[int]:
    """By how many steps the nearest later window of a table begins after each; 0 for none."""
    length = windows.shape[1]
    most = min(length // 2, _SHIFTS)
    if most < 1:
        return [0] * len(windows)
    chosen = chosen[:: max(1, -(-len(chosen) // _TABLE))]
    points = [spread(j, length - most) for j in range(min(_POINTS, length - most))]
    known, row_of = _beginnings(table, points)[chosen, 0].sort()
    at = _beginnings(windows[:, 1:], points, most)
    place = torch.searchsorted(known, at).clamp_(max=len(known) - 1)
    candidates = (known[place] == at).nonzero().tolist()
    shifts = [0] * len(windows)
    for window, k in candidates:
        if not shifts[window]:
            other = table[chosen[row_of[place[window, k]]]]
            shifts[window] = (k + 1) * _goes_on(windows[window], other, k + 1)
    return shifts


def _beginnings(windows: Tensor, points: list[int], many: int = 1) -> Tensor:
    """``(N, many)`` int64: equal for windows that begin with equal steps.

    Args:
        windows: ``(N, L, ...)``.
        points: Which of their first steps are compared.
        many: How many windows are looked at in each: one that begins at each of so many steps.
    """
    values = []
    for j, point in enumerate(points):
        steps = windows[:, point : point + many]
        while steps.ndim > 2:
            steps = steps.select(-1, j % steps.shape[-1])
        values.append(steps)
    table = torch.stack(values, 2).flatten(0, 1)
    return keys(table, torch.arange(len(table))).view(len(windows), many)


def _goes_on(a: Tensor, b: Tensor, shift: int) -> bool:
    """Whether `b` is what follows in `a`, and that is no coincidence."""
    rest = a[shift:]
    if not torch.equal(rest, b[:-shift]) or not rich(rest):
        return False
    return not torch.equal(rest, a[:-shift])  # it repeats itself


def _of_one_series(a: Any, b: Any) -> bool:
    """Whether two datasets hold one tensor, array or list, or parts of one."""
    return not _memory(a).isdisjoint(_memory(b))


def _memory(root: Any) -> set[int]:
    places = set()
    for value in vars(root).values() if isinstance(root, Dataset) else ():
        if isinstance(value, Tensor) and value.layout == torch.strided:
            places.add(value.untyped_storage().data_ptr())
        elif is_array(value):
            places.add(id(value if value.base is None else value.base))
        elif type(value) is list and len(value) > _LOOKED:
            places.add(id(value))
    return places


def _read(root: Any, places: Tensor) -> Tensor | None:
    """The samples at some places of a dataset; None where they cannot be had for little."""
    try:
        with undisturbed(root):
            if not is_cheap(root, int(places[0])):
                return None
            return torch.stack([largest_tensor(root[i]) for i in places.tolist()])
    except Exception:  # noqa: BLE001 - a dataset that cannot be read so
        return None
