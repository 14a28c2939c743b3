"""The samples of a batch, to be put together again: some of them, or one in the place of another.

Rows of tensors, or the graphs of a batch of graphs: a class that declares `num_graphs` and has the
two methods of torch-geometric's `Batch`. It is believed only where the graphs that it gives make
the same batch again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_evalguard.data.batches import (
    common_length,
    graph_count,
    map_samples,
    tensors,
)

_FEWEST = 4  # that make two halves
_BATCHED = ("to_data_list", "from_data_list")


class Span(NamedTuple):
    """Where some samples stand in a result.

    Attributes:
        first: Their first row.
        rows: How many they have.
    """

    first: int
    rows: int


Spans = dict[int, dict[int, Span]]
"""By the length of dim 0, and by the first sample of a half: where that half stands."""


@dataclass
class Samples:
    """The samples of a batch; where they are fewer than four, each of the first two twice.

    Attributes:
        count: How many.
        graphs: Whether they are graphs.
    """

    count: int
    graphs: bool
    _order: list[int]
    _sizes: list[
        list[int]
    ]  # of each thing that samples have many of: how many each has
    _make: Callable[[Sequence[int]], Any]

    @property
    def half(self) -> int:
        """How many make a half."""
        return self.count // 2

    def is_batch(self, places: Sequence[int]) -> bool:
        """Whether the samples at some places are the batch itself, as the step got it."""
        return list(places) == self._order

    def made(self, places: Sequence[int]) -> Any:
        """A batch of those at some places."""
        chosen = [self._order[place] for place in places]
        if isinstance(places, range) and chosen == list(
            range(chosen[0], chosen[-1] + 1)
        ):
            return self._make(range(chosen[0], chosen[-1] + 1))
        return self._make(chosen)

    def spans(self, places: Sequence[int], starts: Sequence[int]) -> Spans:
        """Where the halves that begin at `starts` stand in results of what is `made` of places."""
        found: Spans = {}
        doubtful = set()
        order = list(places)
        for sizes in self._sizes:
            lengths = [sizes[self._order[place]] for place in places]
            total = sum(lengths)
            halves = {}
            for start in starts:
                at = (
                    start if order[start : start + 1] == [start] else order.index(start)
                )
                rows = sum(lengths[at : at + self.half])
                halves[start] = Span(sum(lengths[:at]), rows)
            if found.setdefault(total, halves) != halves:
                doubtful.add(total)
        return {n: halves for n, halves in found.items() if n not in doubtful}

    def repeated(self, start: int) -> list[int]:
        """The half from `start` on, among copies of itself instead of the others.

        They are as many as the others were; graphs have no fixed number of nodes, and are more.
        """
        kept = list(range(start, start + self.half))
        if self.graphs:
            return kept * 4
        after = self.count - start - self.half
        return [*(kept * 2)[:start], *kept, *(kept * 2)[:after]]


def samples_of(batch: Any) -> Samples | None:
    """The samples of a batch of at least two; None where dim 0 of its tensors is not samples."""
    count = graph_count(batch)
    if count is not None:
        return _of_graphs(batch, count)
    count = common_length(batch)
    if count is None or count < 2:
        return None

    def make(places: Sequence[int]) -> Any:
        return map_samples(batch, count, lambda items: _taken(items, places))

    return _samples(count, False, [[1] * count], make)


def _samples(
    count: int,
    graphs: bool,
    sizes: list[list[int]],
    make: Callable[[Sequence[int]], Any],
) -> Samples:
    order = list(range(count))
    if count < _FEWEST:
        order = [0, 0, 1, 1]
    return Samples(len(order), graphs, order, sizes, make)


def _taken(items: Any, places: Sequence[int]) -> Any:
    if isinstance(places, range):
        return items[places.start : places.stop]
    if isinstance(items, (list, tuple)):
        return [items[place] for place in places]
    return items[list(places)]


# --- graphs --------------------------------------------------------------------------------------


def _of_graphs(batch: Any, count: int) -> Samples | None:
    if count < 2:
        return None
    items = _items(batch)
    graphs = {i: _graphs(item) for i, item in items if _is_batched(item)}
    if not graphs or any(len(own) != count for own in graphs.values()):
        return None
    for i, item in items:
        if i not in graphs and not _goes_along(item, count):
            return None

    def make(places: Sequence[int]) -> Any:
        made = {}
        for i, item in items:
            made[i] = item
            if i in graphs:
                made[i] = _batched(item, [graphs[i][place] for place in places])
            elif not isinstance(item, Tensor) or item.dim():
                made[i] = _taken(item, places)
        return _as_items(batch, made)

    if not _are_equal(make(range(count)), batch):
        return None
    sizes = [[1] * count]
    for own in graphs.values():
        sizes += _sizes(own)
    return _samples(count, True, sizes, make)


def _items(batch: Any) -> list[tuple[Any, Any]]:
    """What a step gets beside each other: by key, by place, or the batch alone."""
    if isinstance(batch, Mapping):
        return list(batch.items())
    if isinstance(batch, (list, tuple)):
        return list(enumerate(batch))
    return [(0, batch)]


def _as_items(batch: Any, made: dict[Any, Any]) -> Any:
    if isinstance(batch, Mapping):
        return dict(made)
    if isinstance(batch, (list, tuple)):
        items = list(made.values())
        if getattr(type(batch), "_fields", None):
            return type(batch)(*items)
        return type(batch)(items)
    return made[0]


def _is_batched(item: Any) -> bool:
    return all(callable(getattr(type(item), name, None)) for name in _BATCHED)


def _goes_along(item: Any, count: int) -> bool:
    """Whether an item beside a batch of graphs has an entry a graph, or is one number for all."""
    if isinstance(item, Tensor):
        return not item.dim() or len(item) == count
    return type(item) in (list, tuple) and len(item) == count


def _graphs(item: Any) -> list[Any]:
    return list(item.to_data_list())


def _batched(item: Any, graphs: list[Any]) -> Any:
    """A batch like `item`: where it numbers the graphs of an attribute's entries, so does it."""
    keys = getattr(item, "keys", ())
    held = list(map(str, keys() if callable(keys) else keys))
    followed = [key for key in held if f"{key}_batch" in held]
    if followed:
        return type(item).from_data_list(graphs, follow_batch=followed)
    return type(item).from_data_list(graphs)


def _are_equal(one: Any, other: Any) -> bool:
    a, b = tensors(one), tensors(other)
    return len(a) == len(b) and all(map(_same, a, b))


def _same(one: Tensor, other: Tensor) -> bool:
    if one.layout is not torch.strided or other.layout is not torch.strided:
        return False
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(one.nan_to_num(), other.to(one.device).nan_to_num())


def _sizes(graphs: list[Any]) -> Iterator[list[int]]:
    """How many of each thing, nodes and edges, the graphs have."""
    for own in zip(*map(tensors, graphs), strict=False):
        if all(map(_is_pairs, own)):
            yield [t.shape[1] for t in own]
        elif all(t.dim() for t in own):
            yield [t.shape[0] for t in own]


def _is_pairs(tensor: Tensor) -> bool:
    """Whether it lists edges, by a row of nodes from which and one to which they go."""
    return tensor.dim() == 2 and len(tensor) == 2 and not tensor.is_floating_point()


__all__ = ["Samples", "Span", "Spans", "samples_of"]
