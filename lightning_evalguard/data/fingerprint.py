"""Which samples did an evaluation see? A hash that neither their order nor the batches change."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from lightning_evalguard.data.batches import (
    MANY,
    NUMBER_TYPES,
    count_of,
    is_array,
    is_column,
    is_image,
    pieces,
)

# of each tensor of a sample, spread over it: all of a label, a grid of an image
VALUES = 64
HASH_OF = f"each sample's tensors, up to {VALUES} values of each; order and batches do not matter"
_MORE = 512  # values of a row of more than `_WHOLE` bytes; all of any other
_WHOLE = 1 << 14
_WORD = 1 << 64
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Blocks:
    """Small batches of one layout are put together: what is computed row by row, once for many.

    What waits is a copy, of at most `_ROOM` elements; a batch that is large, or no plain row of
    tensors with an entry a sample, does not wait.

    Args:
        take: Computes it, of one batch or of many in one.
    """

    def __init__(self, take: Callable[[Any], None]) -> None:
        self._take = take
        self._clear()

    def _clear(self) -> None:
        self._waiting: list[list[Tensor]] = []
        self._elements = 0
        self._layout: tuple[Any, ...] | None = None

    def add(self, batch: Any) -> None:
        """A batch."""
        layout, elements = _layout_of(batch)
        if (
            layout is None
            or layout != self._layout
            or self._elements + elements > _ROOM
        ):
            self.flush()
        if layout is None:
            self._take(batch)
            return
        self._layout = layout
        self._elements += elements
        self._waiting.append([tensor.detach().clone() for tensor in batch])
        if len(self._waiting) == _BATCHES:
            self.flush()

    def flush(self) -> None:
        """Compute what waits."""
        waiting = self._waiting
        if waiting:
            self._clear()
            self._take([torch.cat(column) for column in zip(*waiting, strict=True)])


_SMALL, _ROOM, _BATCHES = 1 << 14, 1 << 17, 32  # elements of one batch, of all; batches


def _layout_of(batch: Any) -> tuple[tuple[Any, ...] | None, int]:
    """What batches must share to be put together, and how many elements this one has."""
    if (type(batch) is not list and type(batch) is not tuple) or not 0 < len(
        batch
    ) <= 8:
        return None, 0
    elements = 0
    rows = -1
    layout = []
    for tensor in batch:
        if type(tensor) is not Tensor or not (shape := tensor.shape):
            return None, 0
        if rows not in (-1, shape[0]) or tensor.layout is not torch.strided:
            return None, 0
        rows = shape[0]
        elements += tensor.numel()
        layout.append((shape[1:], tensor.dtype, tensor.device))
    if 0 < elements <= _SMALL:
        return (tuple(layout), elements)
    return (None, 0)


class Content:
    """Hash of all samples added, computed where they are and without a wait for the device.

    A sample is one row of every tensor of a batch; its hash is mixed from them, so that a label
    belongs to its input, and the hashes of all samples are summed.

    Args:
        owned: How many of the samples to come are this rank's own, where a sampler repeats some.

    Attributes:
        unreadable: Why there is no hash; empty where there is one.
        even: Whether the tensors of each batch had one length: the number of samples.

    Example:
        >>> x, y = torch.rand(10, 3, 8, 8), torch.arange(10)
        >>> one, other = Content(), Content()
        >>> one.add((x, y))
        >>> for i in (9, 5, 6, 7, 8, 0, 1, 2, 3, 4):
        ...     other.add((x[i : i + 1], y[i : i + 1]))
        >>> whole([one.part()]) == whole([other.part()])
        True
    """

    def __init__(self, owned: int | None = None) -> None:
        self._left = owned
        self.unreadable = ""
        self.even = True
        self._samples = 0
        self._sum: Tensor | None = None
        self._blocks = Blocks(self._add_now)

    def add(self, batch: Any) -> None:
        """Add the samples of `batch`."""
        if not self.unreadable:
            self._blocks.add(batch)

    def _add_now(self, batch: Any) -> None:
        try:
            # a subclass of Tensor (an image, a box) has operators of its own
            with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
                self._add(batch)
        except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
            self.unreadable = f"{type(error).__name__}: {str(error).splitlines()[0]}"

    def _add(self, batch: Any) -> None:
        found = list(columns(batch))
        if not found:
            raise ValueError("no tensor in the batch")
        n, agreed = count_of(batch)
        own = n or 0
        if self._left is not None:
            own = min(own, self._left)
            self._left -= own
            if n and not own:
                return  # all of it is repeated
        self._samples += own
        self.even &= agreed
        rows: Tensor | None = None
        for column in found:
            if column.ndim and len(column) == n:
                sums = _row_sums(column)
                rows = (
                    sums if rows is None else (rows * _ODD).add_(sums.to(rows.device))
                )
            else:  # a graph's edges, a scalar, boxes: a row for itself
                self._count(_row_sums(column.reshape(1, -1)))
        if rows is not None:
            self._count(rows[:own])

    def _count(self, rows: Tensor) -> None:
        here = _mixed(rows).sum()
        self._sum = here if self._sum is None else self._sum.to(here.device) + here

    def part(self) -> tuple[int, int, bool, str]:
        """What `whole` needs of this rank: plain data; waits for the device."""
        self._blocks.flush()
        total = 0
        if self._sum is not None:
            total = int(self._sum)
        return total, self._samples, self.even, self.unreadable


def sample_hashes(batch: Any) -> Tensor | None:
    """(N,) int64, on its device: a hash of all that each sample of a batch holds.

    None where the batch does not hold an entry a sample.
    """
    values = values_of(batch)
    if values is None:
        return None
    return hashes_of(values)


def values_of(batch: Any) -> list[Tensor] | None:
    """What `hashes_of` needs of each sample: two tensors for each column of the batch.

    The first has up to `VALUES` values of each row, and may be a view; the second the sum of all of
    them where there are more, ``(N,)`` int64. None where a batch does not hold an entry a sample.
    """
    with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
        n, agreed = count_of(batch)
        if n is None or not agreed:
            return None
        values: list[Tensor] = []
        for column in columns(batch):
            if column.ndim and len(column) == n:
                x = _in_rows(column)
                some = _some(x)
                more = x.shape[1] > VALUES
                values += [some, _all_bits(x) if more else some[:, :0]]
            elif column.ndim and len(column) > 1:
                return None
        return values or None


def hashes_of(values: Sequence[Tensor]) -> Tensor:
    """(N,) int64: a hash of each sample, from what `values_of` gave of it."""
    with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
        mixed: Tensor | None = None
        for some, more in zip(values[::2], values[1::2], strict=True):
            sums = _weighed(some)
            if more.ndim == 1:
                sums = sums ^ (more * _ALSO_ODD)
            mixed = (
                sums if mixed is None else (mixed * _ODD).add_(sums.to(mixed.device))
            )
        assert mixed is not None
        return _mixed(mixed)


def _all_bits(x: Tensor) -> Tensor:
    """(N,) int64: the sum of each row's values, or of many, as integers of eight bytes."""
    size = x.element_size()
    if x.shape[1] * size > _WHOLE:
        x = x[:, :: -(-x.shape[1] // _MORE)]
    if x.shape[1] * size % 8:
        x = x[:, : x.shape[1] * size // 8 * 8 // size]
    x = x.contiguous()
    if x.storage_offset() * size % 8:
        x = x.clone()
    return x.view(torch.int64).sum(1)


def whole(parts: Sequence[tuple[int, int, bool, str]]) -> dict[str, Any]:
    """Number of samples and hash of a set, from the `part` that each rank saw."""
    totals, samples, even, unreadable = zip(*parts, strict=True)
    failed = next(filter(None, unreadable), "")
    return {
        "samples": sum(samples) if all(even) and not failed else None,
        "hash": None if failed else f"{sum(totals) % _WORD:016x}",
        "hash_of": failed or HASH_OF,
    }


def keys_of(batch: Any) -> Tensor | None:
    """One number for each sample of a batch, of all its tensors; None where it shows no samples."""
    try:
        with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
            n, _ = count_of(batch)
            rows: Tensor | None = None
            for column in columns(batch):
                if column.ndim and len(column) == n:
                    sums = _row_sums(column)
                    rows = (
                        sums
                        if rows is None
                        else (rows * _ODD).add_(sums.to(rows.device))
                    )
            if rows is None:
                return None
            return _mixed(rows)
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        return None


def _row_sums(column: Tensor) -> Tensor:
    """One number a row: some of its values' bits, each times a constant of its place."""
    return _weighed(_some(_in_rows(column)))


def _in_rows(column: Tensor) -> Tensor:
    """``(N, F)``."""
    x = column.detach()
    if x.is_complex():
        x = torch.view_as_real(x)
    return x.reshape(len(x), -1)


def _some(x: Tensor) -> Tensor:
    """Up to `VALUES` values of each row."""
    if x.shape[1] <= VALUES:
        return x
    # odd, so that the values of an image do not all stand in one column
    return x[:, :: -(-x.shape[1] // VALUES) | 1]


def _weighed(x: Tensor) -> Tensor:
    if not x.shape[1]:
        return torch.zeros(len(x), dtype=torch.int64, device=x.device)
    if x.is_floating_point() or x.dtype in (torch.uint16, torch.uint32, torch.uint64):
        x = x.view(_BITS[x.element_size()])
    return (x * _weights(x.device)[: x.shape[1]]).sum(1)


def _mixed(x: Tensor) -> Tensor:
    """Every bit of the result depends on every bit of each number (as splitmix64 does)."""
    x = (x ^ (x >> 30)).mul_(_ODD)
    x = (x ^ (x >> 27)).mul_(_ALSO_ODD)
    return x ^ (x >> 31)


def _signed(n: int) -> int:
    if n >> 63:
        return n - _WORD
    return n


_ODD = _signed(0xBF58476D1CE4E5B9)
_ALSO_ODD = _signed(0x94D049BB133111EB)
_PLACES = [_signed((i + 1) * 0x9E3779B97F4A7C15 % _WORD | 1) for i in range(VALUES)]
_held: dict[torch.device, Tensor] = {}


def _weights(device: torch.device) -> Tensor:
    if device not in _held:
        with torch.inference_mode(False):
            _held[device] = torch.tensor(_PLACES, device=device)
    return _held[device]


def columns(batch: Any) -> Iterator[Tensor]:
    """A tensor for each thing in a batch; texts and numbers by a checksum of each."""
    for piece in pieces(batch):
        if isinstance(piece, Tensor):
            yield piece
        elif type(piece) is PackedSequence:
            yield piece.data
        elif is_array(piece):
            yield _of_array(piece)
        elif not is_image(piece):
            yield _checksums(piece if is_column(piece) else [piece])


def _of_array(array: Any) -> Tensor:
    if array.dtype.name in NUMBER_TYPES:
        return torch.tensor(array)
    return _checksums(array.ravel().tolist()[:MANY])


def _checksums(values: Iterable[Any]) -> Tensor:
    return torch.tensor([zlib.crc32(repr(value).encode()) for value in values])
