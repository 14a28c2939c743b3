"""Hashes of a set's samples, by which it is recognised once it is gone, or in another process."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_evalguard.data.samples import SampleRows, bits, keys, rows_at

BATCHES = "samples of batches"


class Portrait(NamedTuple):
    """What is kept of the rows or files of a set that may be gone when it is asked for.

    Attributes:
        kind: What was hashed: names, rows of a type and shape, or samples as steps got them.
        hashes: ``(N,)`` int64, sorted.
        whole: Whether every row is among them.
        natural: The share of rows that stand there a second time.
    """

    kind: str
    hashes: Tensor
    whole: bool
    natural: float

    def holds(self, queries: SampleRows) -> Tensor:
        """Which of `queries` stand there, as a mask ``(N,)``."""
        if _kind(queries) != self.kind or not len(self.hashes):
            return torch.zeros(len(queries.chosen), dtype=torch.bool)
        hashes, blank = _hashed(queries)
        return self.holds_hashes(hashes) & ~blank

    def holds_hashes(self, hashes: Tensor) -> Tensor:
        """Which of some hashes, ``(N,)`` int64, stand there, as a mask ``(N,)``."""
        if not len(self.hashes):
            return torch.zeros(len(hashes), dtype=torch.bool)
        at = torch.searchsorted(self.hashes, hashes).clamp_(max=len(self.hashes) - 1)
        return self.hashes[at] == hashes

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        raw = self.hashes.contiguous().numpy().astype("<i8").tobytes()
        return {
            "of": self.kind,
            "hashes": base64.b64encode(raw).decode(),
            "whole": self.whole,
            "repeated": self.natural,
        }

    @classmethod
    def of_dict(cls, said: Mapping[str, Any]) -> Portrait:
        """What `to_dict` gave.

        Raises:
            ValueError: If it is none.
            KeyError: If a part of it is missing.
        """
        raw = bytearray(base64.b64decode(said["hashes"], validate=True))
        if len(raw) % 8:
            raise ValueError("expected eight bytes a hash")
        empty = torch.zeros(0, dtype=torch.int64)
        hashes = empty
        if raw:
            hashes = torch.frombuffer(raw, dtype=torch.int64)
        return cls(
            str(said["of"]), hashes, bool(said["whole"]), float(said["repeated"])
        )


_PORTRAIT = 4096  # rows
_COLUMNS = 256


def portrait(of: SampleRows | None) -> Portrait | None:
    """Hashes of the rows of a set; none of the rows is kept."""
    if of is None or not len(of.chosen):
        return None
    some = of.some(_PORTRAIT)
    hashes, blank = _hashed(some)
    hashes = hashes[~blank].sort().values
    repeated = 0
    if len(hashes):
        repeated = int((hashes[1:] == hashes[:-1]).sum())
    whole = len(some.chosen) == len(of.chosen)
    return Portrait(_kind(of), hashes, whole, repeated / max(1, len(hashes)))


def of_hashes(hashes: Tensor) -> Portrait:
    """A portrait of samples by hashes that were made elsewhere."""
    ordered = hashes.unique()  # type: ignore[no-untyped-call]
    return Portrait(BATCHES, ordered, False, 1 - len(ordered) / max(1, len(hashes)))


def _kind(of: SampleRows) -> str:
    if isinstance(of.values, list):
        return "names"
    return f"rows of {of.values.dtype} {tuple(of.values.shape[1:])}"


def _hashed(of: SampleRows) -> tuple[Tensor, Tensor]:
    """(N,) int64 and (N,) bool: a hash of each row, and whether it says nothing."""
    if isinstance(of.values, list):
        names = [of.values[i].encode() for i in of.chosen.tolist()]
        hashes = [hashlib.blake2b(name, digest_size=8).digest() for name in names]
        numbers = [int.from_bytes(h, "little", signed=True) for h in hashes]
        return torch.tensor(numbers, dtype=torch.int64), torch.zeros(
            len(names), dtype=torch.bool
        )
    flat = of.values.reshape(len(of.values), -1)
    words = bits(rows_at(flat[:, :: -(-flat.shape[1] // _COLUMNS)], of.chosen))
    sums = words.sum(1, dtype=torch.int64) * 0x1E3779B97F4A7C15
    return keys(of.values, of.chosen) ^ sums, (words == words[:, :1]).all(1)
