"""Hashes of what tensors contain, computed where the tensors are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors

_SMALL = 1 << 10  # elements: up to here tensors are hashed together
_BUCKET = 1 << 18  # elements hashed together; bounds what hashing allocates
# words summed to one before their place counts: a permutation within a row is missed
_ROW = 64
PIECE = 64  # elements of a large tensor that a sample looks at


class Prints:
    """Hashes of what tensors contain, computed on their device and left there until compared.

    Two sums over the bits read as integers, one of them weighted by place: exact, blind to
    neither order nor equal pairs (``torch.hash_tensor`` is an XOR and blind to both), and at the
    speed of the memory. Nothing is drawn, written or copied to the host before `differing`.

    Args:
        tensors: What to hash, by name.
        whole: Names to hash from end to end; of the others a piece.
        turn: Which piece: the same for two hashes to compare, another for the next two.

    Attributes:
        unreadable: Names that could not be hashed, with the reason.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        whole: Iterable[str] | None = None,
        turn: int = 0,
    ) -> None:
        self.unreadable: dict[str, str] = {}
        self._forms: dict[str, tuple[Any, ...]] = {}
        self._sums: list[tuple[list[str], Tensor]] = []
        self._host: dict[str, tuple[Any, ...]] | None = None
        entire = None
        if whole is not None:
            entire = set(whole)
        together: dict[tuple[Any, Any], list[tuple[str, Tensor]]] = {}
        with torch.no_grad():
            for name, tensor in tensors.items():
                try:
                    local = _local(tensor)
                    self._forms[name] = (tuple(tensor.shape), tensor.dtype)
                    size = local.numel()
                    if entire is not None and size > 4 * PIECE and name not in entire:
                        local = _piece(local, turn)
                    elif size > _SMALL:
                        self._sums.append(([name], _sums_of(_dense(local))))
                        continue
                    if size:
                        together.setdefault((local.device, local.dtype), []).append(
                            (name, local)
                        )
                except (RuntimeError, NotImplementedError, TypeError) as error:
                    self._forms.pop(name, None)
                    self.unreadable[name] = (
                        f"{type(error).__name__}: {str(error).splitlines()[0]}"
                    )
            for group in together.values():
                self._add(group)

    def _add(self, group: list[tuple[str, Tensor]]) -> None:
        bucket: list[tuple[str, Tensor]] = []
        size = 0
        for pair in [*group, None]:
            if bucket and (pair is None or size + pair[1].numel() > _BUCKET):
                names = [name for name, _ in bucket]
                try:
                    self._sums.append((names, _sums_each([t for _, t in bucket])))
                except (RuntimeError, NotImplementedError, TypeError) as error:
                    said = f"{type(error).__name__}: {str(error).splitlines()[0]}"
                    self.unreadable.update(dict.fromkeys(names, said))
                    for name in names:
                        self._forms.pop(name, None)
                bucket, size = [], 0
            if pair is not None:
                bucket.append(pair)
                size += pair[1].numel()

    def __contains__(self, name: str) -> bool:
        return name in self._forms

    def update(self, other: Prints) -> None:
        """Take over what `other` has."""
        self._forms.update(other._forms)
        self._sums += other._sums
        self._host = None

    def values(self) -> dict[str, tuple[Any, ...]]:
        """Shape, dtype and sums by name, on the host."""
        if self._host is None:
            sums: dict[str, tuple[int, ...]] = {}
            by_device: dict[Any, list[tuple[list[str], Tensor]]] = {}
            for pair in self._sums:
                by_device.setdefault(pair[1].device, []).append(pair)
            for pairs in by_device.values():
                # the one copy to the host
                rows = torch.cat([t for _, t in pairs]).tolist()
                names = [name for group, _ in pairs for name in group]
                sums.update((n, tuple(r)) for n, r in zip(names, rows, strict=True))
            self._host = {
                n: (*form, *sums.get(n, ())) for n, form in self._forms.items()
            }
        return self._host

    def differing(self, since: Prints) -> list[str]:
        """Names that both have and that do not contain the same."""
        now = self.values()
        before = since.values()
        return [n for n, value in now.items() if n in before and before[n] != value]


_ORDINARY = frozenset({Tensor, nn.Parameter})
_REAL = frozenset(
    {torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64}
)
_READABLE = frozenset({"cpu", "cuda"})


def _local(tensor: Tensor) -> Tensor:
    """The plain tensor of this process: a DTensor's shard, a quantized tensor's integers."""
    if (
        type(tensor) in _ORDINARY
        and tensor.dtype in _REAL
        and tensor.device.type in _READABLE
    ):
        return tensor
    tensor = tensor.detach()
    if hasattr(tensor, "to_local"):
        tensor = tensor.to_local()
    if tensor.layout != torch.strided:
        raise TypeError(f"is {tensor.layout}")
    if tensor.is_quantized:
        tensor = tensor.int_repr()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if tensor.device.type == "meta":
        raise TypeError("is on the meta device")
    return tensor


def _dense(tensor: Tensor) -> Tensor:
    """The same elements in one dimension, in the order of memory, without a copy where it can."""
    if tensor.is_contiguous():
        return tensor.view(-1)
    if torch.ops.aten.is_non_overlapping_and_dense(tensor):
        return tensor.as_strided((tensor.numel(),), (1,))
    return tensor.flatten()


def _piece(tensor: Tensor, turn: int) -> Tensor:
    if not tensor.is_contiguous():
        tensor = _dense(tensor)
    # A golden-ratio walk: consecutive turns look at places far apart, and in time at all.
    pieces = tensor.numel() // PIECE
    at = int(turn * 0.6180339887498949 * pieces) % pieces
    return tensor.as_strided((PIECE,), (1,), tensor.storage_offset() + at * PIECE)


_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _words(flat: Tensor) -> Tensor:
    """The bits of a dense tensor in one dimension, as the widest integers that fit."""
    start = flat.storage_offset() * flat.element_size()
    size = flat.numel() * flat.element_size()
    width = next(w for w in (8, 4, 2, 1) if start % w == 0 and size % w == 0)
    return flat.view(torch.uint8 if width == 1 else _WORDS[width])


def _sums_of(flat: Tensor) -> Tensor:
    """(1, 2): plain and weighted sum of one large tensor."""
    words = _words(flat)
    rows = words.numel() // _ROW
    sums = words[: rows * _ROW].view(rows, _ROW).sum(1, dtype=torch.int64)
    rest = words[rows * _ROW :].to(torch.int64)
    sums = torch.cat([sums, rest])
    places = torch.arange(1, sums.numel() + 1, device=sums.device)
    return torch.stack([sums.sum(), (sums * places).sum()]).unsqueeze(0)


def _sums_each(tensors: list[Tensor]) -> Tensor:
    """(N, 2): plain and weighted sum of each of many small tensors of one dtype and device."""
    width = _WORDS[tensors[0].element_size()]
    together: Tensor = _flatten_dense_tensors(tensors)  # type: ignore[no-untyped-call]
    flat = together.view(width).to(torch.int64)
    bounds = torch.tensor(
        [0, *accumulate(t.numel() for t in tensors)], device=flat.device
    )
    starts = bounds[:-1]
    ends = bounds[1:]
    places = torch.arange(1, flat.numel() + 1, device=flat.device)
    run = torch.stack([flat, flat * places]).cumsum(1)
    run = torch.cat([run.new_zeros(2, 1), run], 1)
    plain, weighted = run[:, ends] - run[:, starts]
    return torch.stack([plain, weighted - starts * plain], 1)
