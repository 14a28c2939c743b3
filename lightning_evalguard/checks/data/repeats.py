"""Is a sample given twice in one evaluation? By index where there is one, else by content."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, Sampler

from lightning_evalguard.checks.data.loader_facts import (
    EvaluatedSet,
    listed_places,
    workers,
)
from lightning_evalguard.data import loaders as _loaders
from lightning_evalguard.data.fingerprint import Blocks, hashes_of, values_of
from lightning_evalguard.data.loaders import Fact
from lightning_evalguard.data.samples import undisturbed

_INDICES = 1 << 20  # of one evaluation
_UNREADABLE = (RuntimeError, NotImplementedError, TypeError, ValueError)
_FEWEST = 16  # distinct samples from which on equal multiplicities are no chance
_SURE = 12.0  # samples that would stand there three times, had chance paired them


def by_index(one: EvaluatedSet) -> tuple[list[Fact], bool]:
    """What the loader's indices show, and whether they show which samples it gives."""
    given = _given(one.loader)
    if given is None:
        return [], False
    roots: dict[int, list[tuple[Tensor, Tensor]]] = {}
    for part in _loaders.parts_at(one.loader, given):
        roots.setdefault(id(part.root), []).append((part.indices, part.at))
    again, places = 0, list[int]()
    for pieces in roots.values():
        indices = torch.cat([piece for piece, _ in pieces])
        at = torch.cat([piece for _, piece in pieces])
        _, group, counts = indices.unique(return_inverse=True, return_counts=True)  # type: ignore[no-untyped-call]
        again += int((counts - 1).sum())
        places += at[counts[group] > 1].tolist()
    if not again:
        return [], True
    return [_fact(one, again, len(given), sorted(set(places)), certain=True)], True


def _given(loader: Any) -> Tensor | None:
    """The indices that an evaluation takes from the loader's dataset, in order."""
    n = _loaders.length(getattr(loader, "dataset", None))
    order = _loaders.order(loader)
    if (
        _loaders.is_iterable_style(loader)
        or n is None
        or n > _INDICES
        or order == "drawn"
    ):
        return None
    sampler = _loaders.sampler_of(loader)
    batches = getattr(loader, "batch_sampler", None)
    if batches is not None and not isinstance(batches, BatchSampler):
        return _iterated(loader, batches)
    if _loaders.distributed(loader) is not None:
        return torch.arange(n)  # whose repetitions are said, and not counted
    if order in ("fixed", "shuffled"):
        indices = getattr(sampler, "indices", None)
        if indices is None:
            return torch.arange(n)
        return torch.as_tensor(list(indices))
    if type(sampler) in (list, tuple, range):
        return torch.as_tensor(list(sampler))
    return _iterated(loader, sampler)


def _iterated(loader: Any, sampler: Any) -> Tensor | None:
    """What a sampler of the user's own gives in one pass, which leaves no trace."""
    batches = getattr(loader, "batch_sampler", None)
    own = (
        isinstance(batches, BatchSampler)
        and type(batches).__iter__ is BatchSampler.__iter__
    )
    source = batches
    if own:
        source = sampler
    if not isinstance(source, Sampler) or torch.distributed.is_initialized():
        return None
    try:
        with undisturbed(source):
            flat = list(_flat(source))
        if not flat:
            return None
        return torch.as_tensor(flat, dtype=torch.int64)
    except Exception:  # noqa: BLE001 - a sampler that cannot be asked twice
        return None


def _flat(source: Any) -> Iterator[int]:
    for count, item in enumerate(source):
        if count > _INDICES:
            raise OverflowError("a sampler without an end")
        if isinstance(item, (list, tuple)):
            yield from item
        else:
            yield item


class Repeats:
    """Hashes of the samples of one evaluation, as its steps get them: nothing is read for it.

    Args:
        one: The evaluated set.
        owned: How many of its samples are this rank's own.
        counts: Whether samples given twice are looked for, or the hashes alone are of use.
    """

    def __init__(
        self, one: EvaluatedSet, owned: int | None, counts: bool = True
    ) -> None:
        self._one = one
        self.counts = counts
        self._left = owned
        self._hashes: list[Tensor] = []
        self._number = 0
        self.off = False
        self._blocks = Blocks(self._hash)

    def add(self, batch: Any) -> None:
        """A step gets `batch`."""
        if self.off:
            return
        try:
            values = values_of(batch)
        except _UNREADABLE:
            values = None
        if values is None or self._number > _INDICES:
            self._end()
        else:
            self._blocks.add(values)

    def _end(self) -> None:
        self.off = True
        self._hashes.clear()

    def _hash(self, values: Any) -> None:
        if self.off:
            return
        try:
            hashes = hashes_of(values)
        except _UNREADABLE:
            self._end()
            return
        if self._left is not None:
            hashes = hashes[: self._left]
            self._left -= len(hashes)
        self._number += len(hashes)
        self._hashes.append(hashes)

    def hashes(self) -> Tensor | None:
        """Of all samples, on the host; waits for the device."""
        self._blocks.flush()
        if self.off or not self._hashes:
            return None
        return torch.cat([h.cpu() for h in self._hashes])

    def facts(self) -> list[Fact]:
        """Whether all of this evaluation's samples are given several times."""
        hashes = self.hashes()
        if hashes is None:
            return []
        _, group, counts = hashes.unique(return_inverse=True, return_counts=True)  # type: ignore[no-untyped-call]
        if not is_repeated(counts):
            return []
        again = int((counts - 1).sum())
        places = (counts[group] > 1).nonzero().flatten().tolist()
        return [_fact(self._one, again, len(hashes), places, certain=False)]


def is_repeated(counts: Tensor) -> bool:
    """Whether samples stand there several times by a mistake and not by nature.

    By nature the more often a value comes, the likelier it comes again: where pairs are frequent,
    some come three times. Samples of a set that is given twice come twice, and none three times.

    Args:
        counts: How often each distinct sample came, ``(D,)``.
    """
    if len(counts) < _FEWEST:
        return False
    times, samples = counts.unique(return_counts=True)  # type: ignore[no-untyped-call]
    least = int(times[0])
    if least > 1:  # none came once
        return bool((times % least == 0).all()) or len(times) == 1
    if len(times) != 2:
        return False
    once, several = map(float, samples)
    k = int(times[1])
    # of a Poisson distribution with so many that came k times and once
    rate = (several / once * math.factorial(min(k, 20))) ** (1 / (k - 1))
    return bool(several * rate / (k + 1) >= _SURE)


def _fact(
    one: EvaluatedSet, again: int, of: int, places: list[int], certain: bool
) -> Fact:
    cause = ""
    if not certain and workers(one.loader) > 1:
        cause = f": each of its {workers(one.loader)} workers reads the whole stream"
    remedy = (
        "Give each sample once: leave the sampler out, or drop the copy of the set."
    )
    if cause:
        remedy = "Share the stream out in `__iter__` by `torch.utils.data.get_worker_info()`."
    which = listed_places(places)
    return one.fact(
        f"{again} of the {of} samples that it gives are repetitions ({which}), expected "
        f"each once{cause}",
        remedy,
        certain,
    )
