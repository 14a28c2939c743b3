"""Tensors that the steps kept, and that become arrays when the epoch ends.

A step that keeps ``logits.argmax(1)`` and its labels in lists shows nothing by itself. What is made
of the lists afterwards has as many rows as the loader gave, and the labels begin with those of the
first batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_evalguard.confusion.arrays import (
    Array,
    array_pair,
    fit,
    told_apart,
    without,
)
from lightning_evalguard.confusion.labels import begins_with
from lightning_evalguard.confusion.sources import Pair

_LISTS = 4  # that one line may turn into arrays


def pairs_of_epoch(
    given: Sequence[Array], first: Sequence[Tensor], samples: int
) -> list[tuple[str, Pair]]:
    """What may be predictions and targets of a whole evaluation, each with its place.

    Args:
        given: What became an array since the last step.
        first: The labels of the first batch.
        samples: How many the loader gave.
    """
    whole = _joined(given, samples)
    targets = [array for array in whole if begins_with(array.tensor, first)][:1]
    others = without(whole, targets)
    if not targets:
        targets, others = told_apart(others)
    found: dict[str, Pair] = {}
    for target in targets:
        for array in others:
            answers = _answers(array.tensor, target.tensor)
            if answers is not None:
                place = f"{array.location} {target.location}"
                pair = array_pair(Array(answers, array.text, array.location), target)
                found.setdefault(place, pair)
    return list(found.items())


def _joined(given: Sequence[Array], samples: int) -> list[Array]:
    """The arrays that hold one row for each sample, put together from what one place made."""
    places: dict[object, list[Array]] = {}
    for array in given:
        places.setdefault(array.place, []).append(array)
    whole = []
    for arrays in places.values():
        for part in _parts(arrays, samples):
            tensor = torch.cat([_whole_numbers(array.tensor) for array in part])
            whole.append(Array(tensor, part[0].text, part[0].location))
    return whole


def _parts(arrays: list[Array], samples: int) -> list[list[Array]]:
    """The lists that one place turned into arrays: one after the other, or in turns."""
    rows = sum(len(array.tensor) for array in arrays)
    lists, rest = divmod(rows, samples)
    if rest or not 0 < lists <= _LISTS:
        return []
    in_turns = [arrays[i::lists] for i in range(lists)]
    after_another: list[list[Array]] = [[] for _ in range(lists)]
    count = 0
    for array in arrays:
        after_another[min(count // samples, lists - 1)].append(array)
        count += len(array.tensor)
    for parts in (after_another, in_turns):
        if all(_are_rows(part, samples) for part in parts):
            return parts
    return []


def _are_rows(part: Sequence[Array], samples: int) -> bool:
    kinds = {(a.tensor.dtype, a.tensor.shape[1:], a.tensor.device) for a in part}
    return len(kinds) == 1 and sum(len(array.tensor) for array in part) == samples


def _whole_numbers(tensor: Tensor) -> Tensor:
    """Labels as integers, also where they are written as floating-point numbers."""
    flat = tensor
    if tensor.ndim == 2 and tensor.shape[1] == 1:
        flat = tensor[:, 0]
    if flat.ndim == 1 and flat.is_floating_point():
        is_whole = bool(((flat >= 0) & (flat % 1 == 0)).all())
        if is_whole:
            return flat.long()
        return flat
    return flat


def _answers(preds: Tensor, target: Tensor) -> Tensor | None:
    """Predictions that fit the targets; scores of yes or no too, where the targets are that."""
    if fit(preds, target):
        return preds
    if preds.shape != target.shape or target.is_floating_point():
        return None
    is_yes_or_no = bool(((target == 0) | (target == 1)).all())
    if is_yes_or_no and not preds.is_complex():
        return preds
    return None
