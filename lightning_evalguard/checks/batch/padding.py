"""One short sample, twice in a batch: with the padding that longer ones cause, with less, alone."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import default_collate

from lightning_evalguard.data.batches import (
    common_length,
    graph_count,
    leaves,
    map_samples,
    pieces,
    tensors,
)
from lightning_evalguard.data.loaders import is_iterable_style, length
from lightning_evalguard.data.samples import is_cheap, undisturbed

_READ = 48  # samples, of which a short one and the longest are collated


class Cut(NamedTuple):
    """A dimension that padding makes longer.

    Attributes:
        dim: Which.
        own: How long it is without padding.
        whole: How long it is with all of it.
    """

    dim: int
    own: int
    whole: int

    def at(self, share: float) -> int:
        """How long it is with a share of the padding."""
        return self.own + round((self.whole - self.own) * share)


@dataclass
class Padded:
    """A batch that holds a sample and its padding.

    Attributes:
        batch: It.
        samples: How many it holds.
        row: Which of them is the one.
        other: Which of them is longer.
        rows: The dimension of each tensor that counts samples, by the tensor's ``id``.
        cuts: What padding makes longer in each tensor, by its ``id``.
        left: Whether the padding stands before the sample.
    """

    batch: Any
    samples: int
    row: int
    other: int
    rows: dict[int, int]
    cuts: dict[int, list[Cut]]
    left: bool

    @property
    def longest(self) -> Cut:
        """Where there is most padding."""
        cuts = chain.from_iterable(self.cuts.values())
        return max(cuts, key=lambda cut: cut.whole - cut.own)

    def at(self, share: float, times: int = 2, beside: bool = False) -> Any:
        """The sample so many times, with a share of the padding.

        Args:
            share: 0.0 for none, 1.0 for all.
            times: How often the sample stands in it.
            beside: Whether the longer one stands before them.
        """
        chosen = [self.other] * beside + [self.row] * times

        def take(thing: Any) -> Any:
            if isinstance(thing, Tensor):
                return self._taken(thing, chosen, share)
            if isinstance(thing, (list, tuple)):
                return [thing[i] for i in chosen]
            return thing[chosen]

        return map_samples(self.batch, self.samples, take)

    def _taken(self, tensor: Tensor, chosen: list[int], share: float) -> Tensor:
        taken = tensor
        dim = self.rows.get(id(tensor))
        if dim is not None:
            taken = tensor.index_select(dim, torch.tensor(chosen, device=tensor.device))
        for cut in self.cuts.get(id(tensor), ()):
            size = cut.at(share)
            taken = taken.narrow(cut.dim, cut.whole - size if self.left else 0, size)
        return taken.contiguous()


def padded(batch: Any, loader: Any, nth: int = 0) -> Padded | None:
    """What the loader's own collate function pads, else what a mask or lengths say is padding.

    Args:
        batch: What a step got.
        loader: What gave it.
        nth: Which of the short samples, the shortest one first.
    """
    if graph_count(batch) is not None or any(
        type(p) is PackedSequence for p in pieces(batch)
    ):
        return None
    made = None
    if loader is not None:
        made = _collated(loader, tensors(batch), nth)
    return made or (_marked(batch) if not nth else None)


# --- collated on purpose -------------------------------------------------------------------------


def _collated(loader: Any, like: list[Tensor], nth: int) -> Padded | None:
    """A short sample beside a long one, from the loader's dataset and collate function."""
    collate = getattr(loader, "collate_fn", None)
    if collate is None or collate is default_collate or is_iterable_style(loader):
        return None
    if getattr(loader, "num_workers", 0) and "tokenizers" in sys.modules:
        return None  # its threads, once started here, do not survive the workers' fork
    dataset = getattr(loader, "dataset", None)
    count = length(dataset) or 0
    if count < 2:
        return None
    places = range(0, count, -(-count // _READ))
    try:
        with undisturbed(dataset, collate):
            return _pair(dataset, collate, list(places), like, nth)
    except Exception:  # noqa: BLE001 - of a sample or a collate function that wants more of them
        return None


def _pair(
    dataset: Any,
    collate: Callable[[list[Any]], Any],
    places: list[int],
    like: list[Tensor],
    nth: int,
) -> Padded | None:
    if not is_cheap(dataset, places[0]):
        return None
    samples = [dataset[place] for place in places]
    sizes = [sum(map(_size, leaves(sample))) for sample in samples]
    by_size = sorted(range(len(sizes)), key=sizes.__getitem__)
    short = by_size[min(nth, len(by_size) - 1)]
    long = by_size[-1]
    if sizes[short] == sizes[long]:
        return None

    def made(*chosen: int) -> Any:
        # some empty what they get
        return collate([copy.deepcopy(samples[i]) for i in chosen])

    two = made(short, short)
    three = made(short, short, short)
    among = made(short, long)
    found = _dims(tensors(two), tensors(three), tensors(among))
    if found is None:
        return None
    rows, cuts = found
    for row in (0, 1):
        for left in (False, True):
            if _holds(tensors(two), tensors(among), rows, cuts, row, left):
                return _moved(among, rows, cuts, row, left, like)
    return None


def _size(leaf: Any) -> int:
    if isinstance(leaf, Tensor):
        return leaf.numel()
    size = None
    if type(leaf).__module__ == "numpy":
        size = getattr(leaf, "size", None)
    if isinstance(size, int):
        return size
    if not isinstance(leaf, (str, bytes)):
        return 1
    return len(leaf)


Dims = tuple[list[int | None], list[list[Cut]]]


def _dims(two: list[Tensor], three: list[Tensor], among: list[Tensor]) -> Dims | None:
    """Which dimension of each tensor counts samples, and which ones grow with a longer sample.

    None where none grows, or one does both: samples one after the other, without padding.
    """
    if not len(two) == len(three) == len(among):
        return None
    rows: list[int | None] = []
    cuts: list[list[Cut]] = []
    for x, y, z in zip(two, three, among, strict=True):
        if not x.dim() == y.dim() == z.dim():
            return None
        by_sample = [d for d in range(x.dim()) if x.shape[d] != y.shape[d]]
        sizes = enumerate(zip(x.shape, z.shape, strict=True))
        longer = [Cut(d, own, whole) for d, (own, whole) in sizes if own != whole]
        shared = any(cut.dim in by_sample for cut in longer)
        if len(by_sample) > 1 or shared or any(cut.own > cut.whole for cut in longer):
            return None
        rows.append(by_sample[0] if by_sample else None)
        cuts.append(longer)
    if not any(cuts):
        return None
    return (rows, cuts)


def _holds(
    two: list[Tensor],
    among: list[Tensor],
    rows: list[int | None],
    cuts: list[list[Cut]],
    row: int,
    left: bool,
) -> bool:
    """Whether a row holds the sample that `two` consists of, with padding on that side.

    What is no content may differ in it: a mask of pairs, numbers of positions.
    """
    some = False
    for x, z, dim, longer in zip(two, among, rows, cuts, strict=True):
        if dim is None:
            continue
        mine = z.select(dim, row).unsqueeze(dim)
        for cut in longer:
            mine = mine.narrow(cut.dim, cut.whole - cut.own if left else 0, cut.own)
        same = _same(mine, x.select(dim, 0).unsqueeze(dim))
        if not same and (not longer or z.is_floating_point()):
            return False
        some |= same and bool(longer)
    return some


def _same(a: Tensor, b: Tensor) -> bool:
    if a.is_floating_point():
        return torch.allclose(a, b, equal_nan=True)
    return torch.equal(a, b)


def _moved(
    among: Any,
    rows: list[int | None],
    cuts: list[list[Cut]],
    row: int,
    left: bool,
    like: list[Tensor],
) -> Padded | None:
    """The batch on the device and of the types of the one that the step got."""
    found = tensors(among)
    if len(found) != len(like) or not all(map(_are_alike, found, like)):
        return None  # a hook makes another batch of it
    there: dict[int, Tensor] = {}
    for tensor, example in zip(found, like, strict=True):
        dtype = example.dtype if tensor.is_floating_point() else tensor.dtype
        there[id(tensor)] = tensor.to(example.device, dtype, copy=True)
    batch = map_samples(
        among, 2, lambda t: there[id(t)] if isinstance(t, Tensor) else t
    )
    by_id = {id(there[id(t)]): i for i, t in enumerate(found)}
    return Padded(
        batch,
        2,
        row,
        1 - row,
        {key: dim for key, i in by_id.items() if (dim := rows[i]) is not None},
        {key: cuts[i] for key, i in by_id.items() if cuts[i]},
        left,
    )


def _are_alike(one: Tensor, other: Tensor) -> bool:
    same_type = one.is_floating_point() == other.is_floating_point()
    return same_type and one.dim() == other.dim()


# --- marked in the batch -------------------------------------------------------------------------


class _Marks(NamedTuple):
    lengths: Tensor  # (N,) int64
    whole: int
    left: bool


def _marked(batch: Any) -> Padded | None:
    """The shortest sample of the batch, where a mask or lengths in it tell what is padding.

    Both are believed only where what they call padding is one constant in some other tensor.
    """
    samples = common_length(batch)
    if samples is None or samples < 2:
        return None
    found = [t for t in tensors(batch) if t.dim() and _is_readable(t)]
    for marks in _candidates(found, samples):
        inside = marks.lengths < marks.whole
        long_enough = marks.lengths >= min(2, int(marks.lengths.max()))
        if not bool((inside & long_enough).any()):
            continue
        if not any(_is_padded(t, marks) for t in found):
            continue
        lengths = marks.lengths.masked_fill(~long_enough, marks.whole)
        row = int(lengths.argmin())
        cuts = _cuts(found, marks, row, int(lengths[row]))
        if cuts:
            rows = {id(t): 0 for t in found}
            longest = int(marks.lengths.argmax())
            return Padded(batch, samples, row, longest, rows, cuts, marks.left)
    return None


def _is_readable(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_meta


def _candidates(found: list[Tensor], samples: int) -> Iterator[_Marks]:
    lengths_of = {size for tensor in found for size in tensor.shape[1:]}
    sizes = sorted(lengths_of - {0, 1}, reverse=True)
    for tensor in found:
        plain = tensor.dtype == torch.bool or not tensor.is_complex()
        if tensor.dim() == 2 and tensor.shape[1] > 1 and plain:
            ones = tensor == 1
            if not bool((ones | (tensor == 0)).all()):
                continue
            for valid in (ones, ~ones):
                yield from _of_mask(valid)
    for tensor in found:
        whole = tensor.dtype in (torch.int64, torch.int32, torch.int16)
        if tensor.numel() == samples and whole:
            lengths = tensor.reshape(-1).to(torch.int64)
            for size in sizes:
                if int(lengths.min()) > 0 and int(lengths.max()) <= size:
                    yield _Marks(lengths, size, False)
                    yield _Marks(lengths, size, True)


def _of_mask(valid: Tensor) -> Iterator[_Marks]:
    lengths = valid.sum(1)
    whole = valid.shape[1]
    if int(lengths.min()) == 0:
        return
    places = torch.arange(whole, device=valid.device)
    if torch.equal(valid, places < lengths[:, None]):
        yield _Marks(lengths, whole, False)
    elif torch.equal(valid, places >= whole - lengths[:, None]):
        yield _Marks(lengths, whole, True)


def _is_padded(tensor: Tensor, marks: _Marks) -> bool:
    """Whether a tensor holds one constant wherever there is padding, and other values elsewhere."""
    for dim in range(1, tensor.dim()):
        if tensor.shape[dim] != marks.whole:
            continue
        by_place = tensor.movedim(dim, 1)
        places = torch.arange(marks.whole, device=tensor.device)
        own = places < marks.lengths[:, None].to(tensor.device)
        own = own.flip(1) if marks.left else own
        padding = by_place[~own]
        content = by_place[own]
        if not padding.numel():
            continue
        is_constant = bool((padding == padding.flatten()[0]).all())
        if is_constant and len(torch.unique(content)) > 2:
            return True
    return False


def _cuts(
    found: list[Tensor], marks: _Marks, row: int, own: int
) -> dict[int, list[Cut]] | None:
    """The dimensions of each tensor along which the sample in `row` ends with a constant."""
    cuts: dict[int, list[Cut]] = {}
    for tensor in found:
        dims = []
        for dim in range(1, tensor.dim()):
            if tensor.shape[dim] != marks.whole:
                continue
            start = own
            if marks.left:
                start = 0
            padding = tensor[row].narrow(dim - 1, start, marks.whole - own)
            ends_constant = bool((padding == padding.flatten()[0]).all())
            if ends_constant or not (tensor.is_floating_point() or tensor.dim() > 2):
                dims.append(Cut(dim, own, marks.whole))
        if dims:
            cuts[id(tensor)] = dims
    return cuts


__all__ = ["Cut", "Padded", "padded"]
