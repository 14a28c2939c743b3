"""One bit a sample, right or wrong, so that two runs can be compared sample by sample."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_evalguard.data.fingerprint import keys_of

Hits = tuple[Tensor, Tensor] | str
"""Keys and outcomes of the samples of one rank, or why there are none."""


class Outcomes:
    """The outcomes of one evaluation, by sample.

    Samples are put in the order of their fingerprints: two runs on one set have the same order,
    however it was shuffled, cut into batches and dealt out to ranks.

    Attributes:
        unknown: Why there are none, by key; empty where there are.
    """

    def __init__(self) -> None:
        self._keys: dict[str, list[Tensor]] = {}
        self._owned: dict[str, int | None] = {}
        self.unknown: dict[str, str] = {}

    def see(
        self, key: str, batch: Any, owned: Callable[[], int | None] = lambda: None
    ) -> None:
        """A step is about to run on `batch`.

        Args:
            key: ``val``, ``test``, ...
            batch: Its samples.
            owned: Gives how many of all samples are this rank's own, where a sampler repeats some.
        """
        keys = keys_of(batch)
        if keys is None:
            self.unknown[key] = "a batch shows no samples"
            return
        if key not in self._keys:
            self._keys[key], self._owned[key] = [], owned()
        self._keys[key].append(keys)

    def part(self, key: str, right: Tensor | None) -> Hits:
        """What this rank has to say; waits for the device.

        Args:
            key: ``val``, ``test``, ...
            right: Whether each sample is right, in the order of the batches.
        """
        seen = self._keys.get(key, [])
        if right is None or not seen:
            self.unknown.setdefault(key, "predictions and targets were not seen")
        if key in self.unknown or right is None:
            return self.unknown[key]
        keys = torch.cat([each.cpu() for each in seen])[: self._owned[key]]
        if len(keys) != len(right):
            self.unknown[key] = (
                f"there are {len(right):,} predictions of {len(keys):,} samples, expected one each"
            )
            return self.unknown[key]
        return keys, right.cpu()

    def of(self, key: str, right: Tensor | None) -> dict[str, Any] | None:
        """The outcomes of one process as plain data, or None where they are not known."""
        return self.together(key, [self.part(key, right)])

    def together(self, key: str, parts: Sequence[Hits]) -> dict[str, Any] | None:
        """The outcomes of all ranks as plain data, or None where those of one are not known."""
        known = [part for part in parts if not isinstance(part, str)]
        if len(known) < len(parts):
            self.unknown.setdefault(
                key, next(part for part in parts if isinstance(part, str))
            )
            return None
        keys, right = (torch.cat(each) for each in zip(*known, strict=True))
        # equal samples have equal keys: among them those that are right stand first
        by_outcome = right.long().argsort(descending=True, stable=True)
        order = by_outcome[keys[by_outcome].argsort(stable=True)]
        ordered = keys[order].contiguous().numpy().astype("<i8").tobytes()
        return {
            "samples": len(keys),
            "set": hashlib.sha256(ordered).hexdigest(),
            "right": base64.b64encode(_packed(right[order])).decode(),
        }


def _packed(bits: Tensor) -> bytes:
    """Eight bits a byte, the first one lowest."""
    padded = torch.zeros(-(-len(bits) // 8) * 8, dtype=torch.uint8, device="cpu")
    padded[: len(bits)] = bits.to(torch.uint8)
    weights = torch.tensor([1 << i for i in range(8)], dtype=torch.uint8, device="cpu")
    return bytes((padded.view(-1, 8) * weights).sum(1, dtype=torch.uint8).tolist())


class Paired(NamedTuple):
    """Two runs on the same samples: in how many only one of them is right."""

    samples: int
    only_first: int
    only_second: int

    @property
    def p_value(self) -> float:
        """Of McNemar's exact test: how likely a split at least as uneven is by chance alone."""
        return exact_mcnemar(self.only_first, self.only_second)


def paired(
    first: Mapping[str, Any] | None, second: Mapping[str, Any] | None
) -> Paired | None:
    """Compare two outcomes; None where they are not of the same samples."""
    if not first or not second or first["set"] != second["set"]:
        return None
    a, b = (
        int.from_bytes(base64.b64decode(each["right"]), "little")
        for each in (first, second)
    )
    return Paired(int(first["samples"]), (a & ~b).bit_count(), (b & ~a).bit_count())


def exact_mcnemar(only_first: int, only_second: int) -> float:
    """The two-sided p-value of McNemar's exact test.

    Example:
        >>> round(exact_mcnemar(14, 5), 4), exact_mcnemar(3, 3)
        (0.0636, 1.0)
    """
    n = only_first + only_second
    least = min(only_first, only_second)
    if not n or only_first == only_second:
        return 1.0
    terms = [_log_probability(n, k) for k in range(least + 1)]
    highest = max(terms)
    tail = math.exp(highest) * math.fsum(math.exp(term - highest) for term in terms)
    return min(1.0, 2 * tail)


def _log_probability(n: int, k: int) -> float:
    """Of `k` heads in `n` tosses; a logarithm, for 2^n is beyond a float from n = 1,024 on."""
    chosen = math.lgamma(k + 1)
    others = math.lgamma(n - k + 1)
    return math.lgamma(n + 1) - chosen - others - n * math.log(2)
