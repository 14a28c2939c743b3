"""Does a collate function hand on each sample as it is, whatever samples stand beside it?

A sample is collated beside some others, beside others again, and beside itself. Its row of the
largest floating-point tensor must be the same each time, wherever in the batch it stands. Batches
that are no rows of samples (graphs, packed sequences, bags), rows of another shape (padding) and
functions that draw are not judged; nor are those that give the row unchanged in another tensor of
that size, as in-batch negatives do beside their anchors.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from lightning_evalguard.checks.data.loader_facts import EvaluatedSet, workers
from lightning_evalguard.data.batches import tensors
from lightning_evalguard.data.loaders import Fact, is_iterable_style, length, source_of
from lightning_evalguard.data.samples import digest, is_cheap, spread, undisturbed

_BESIDE = 8  # samples of a batch that is made
_LOST = 0.75  # of the samples' numbers that a batch holds which leaves samples out


def mixed_by_collate(one: EvaluatedSet) -> list[Fact]:
    """What the collate function of a set's loader does to a sample by the samples beside it."""
    loader = one.loader
    collate: Any = getattr(loader, "collate_fn", None)
    known = collate is None or collate is default_collate or is_iterable_style(loader)
    if known or getattr(loader, "batch_sampler", None) is None:
        return []
    if workers(loader) and "tokenizers" in sys.modules:
        return []  # its threads, once started here, do not survive the workers' fork
    dataset = loader.dataset
    n = length(dataset) or 0
    if n < 2 * _BESIDE:
        return []
    try:
        with undisturbed(dataset, collate):
            if not is_cheap(dataset, 0):
                return []
            samples = [dataset[spread(k, n)] for k in range(2 * _BESIDE - 1)]
            said = _judged(collate, samples)
    except Exception:  # noqa: BLE001 - a sample or a function that wants other ones
        return []
    if said is None:
        return []
    fact, remedy = said
    called = vars(type(collate)).get("__call__")  # of an object of the user's own
    place = source_of(collate) or source_of(called) or one.location
    return [one.fact(fact, remedy, certain=False)._replace(location=place)]


def _judged(
    collate: Callable[[list[Any]], Any], samples: list[Any]
) -> tuple[str, str] | None:
    first, others = samples[0], samples[1:]

    def made(*beside: Any) -> list[Tensor]:
        batch = collate([copy.deepcopy(sample) for sample in (first, *beside)])
        return [
            t.detach() for t in tensors(batch) if t.layout is torch.strided and t.dim()
        ]

    among = made(*others[: _BESIDE - 1])
    again = made(*others[: _BESIDE - 1])
    if digest(among) != digest(again):
        return None  # it draws
    kept = _samples_kept(among, samples[:_BESIDE])
    if kept is not None:
        return (
            f"its collate function makes {kept} of {_BESIDE} samples and drops the rest, which is "
            "in no score; expected all of them",
            "Return a row for each sample that it is given.",
        )
    alone = made(*[first] * (_BESIDE - 1))
    elsewhere = made(*others[_BESIDE - 1 :])
    if not _changes(alone, among, elsewhere):
        return None
    return (
        "its collate function gives a sample other values beside other samples, expected the same",
        "Compute it from each sample alone, or with numbers of the training set.",
    )


def _samples_kept(batch: list[Tensor], samples: list[Any]) -> int | None:
    """How many samples a batch holds that leaves out most of them; None for any other batch."""
    rows = {len(tensor) for tensor in batch}
    kept = max(rows, default=_BESIDE)
    if len(rows) != 1 or kept > _BESIDE // 2:
        return None
    given = sum(t.numel() for sample in samples for t in tensors(sample))
    held = sum(tensor.numel() for tensor in batch)
    if held < _LOST * given:
        return kept
    return None


def _changes(alone: list[Tensor], among: list[Tensor], elsewhere: list[Tensor]) -> bool:
    """Whether the largest row of a sample is never what it is beside itself."""
    if not len(alone) == len(among) == len(elsewhere):
        return False
    sizes, unlike = [], []
    for x, y, z in zip(alone, among, elsewhere, strict=True):
        rows = len(x) == len(y) == len(z) == _BESIDE and x.is_floating_point()
        if not rows or not x.shape == y.shape == z.shape:
            if x.is_floating_point() and x.dim() > 1:
                return False  # padded, or no rows of samples
            continue
        sizes.append(x[0].numel())
        unlike.append(not (_holds(y, x[0]) or _holds(z, x[0])))
    largest = max(sizes, default=0)
    of_largest = [
        other for size, other in zip(sizes, unlike, strict=True) if size == largest
    ]
    return largest > 1 and all(of_largest)


def _holds(rows: Tensor, row: Tensor) -> bool:
    """Whether a row stands among `rows`, but for less than half of its values."""
    either = (rows != 0) | (row != 0)
    same = torch.isclose(rows, row.unsqueeze(0), rtol=1e-4, atol=1e-6, equal_nan=True)
    changed = (either & ~same).flatten(1).sum(1)
    return bool((2 * changed <= either.flatten(1).sum(1)).any())
