"""Of two answers of a step, is one a part of the other, and what of the batch chose it?

A mask, lengths, or a label that counts for nothing say which answers are meant. A subset that
nothing of the batch explains, a random tenth of the pixels, is not the step's answer where all of
it is scored too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_evalguard.confusion.choice import WEAK, Question
from lightning_evalguard.confusion.stream import Stream

_LONG = 4096  # samples, of which a number each is kept
_VALUES = 64  # of a tensor of the batch that may each stand for what is left out


@dataclass
class Choosers:
    """What of a batch may choose answers.

    Attributes:
        sizes: How many answers its tensors may choose.
        columns: Copies of those with a number for each sample.
    """

    sizes: set[int] = field(default_factory=set)
    columns: list[Tensor] = field(default_factory=list)


def choosers_of(leaves: Iterable[Tensor], streams: Sequence[Stream]) -> Choosers:
    """What of a batch may choose the answers that the streams of a step show.

    What labels choose themselves is told by their values, see `_is_contained`.
    """
    sizes = {stream.elements for stream in streams}
    targets = [stream.target for stream in streams if stream.target is not None]
    found = Choosers()
    for leaf in leaves:
        if leaf.is_floating_point() or leaf.is_complex() or not leaf.numel():
            continue
        if leaf.ndim and leaf.numel() == len(leaf) <= _LONG:
            found.columns.append(leaf.reshape(-1).clone())
        elif not any(_holds_the_values_of(leaf, target) for target in targets):
            found.sizes |= _sizes_of(leaf, sizes)
    return found


def _sizes_of(leaf: Tensor, sizes: set[int]) -> set[int]:
    """How many answers a tensor may choose, of so many.

    A mask chooses those that it holds to be true, as does a number of ids all but the padding;
    lengths choose their sum.
    """
    chosen: set[int] = set()
    if leaf.dtype != torch.bool:
        chosen.add(int(leaf.sum()))
    if leaf.numel() in sizes:
        _, counts = torch.unique(leaf, return_counts=True)
        few = counts[:_VALUES].tolist()
        chosen.update(few)
        chosen.update(leaf.numel() - count for count in few)
    return chosen


def _holds_the_values_of(leaf: Tensor, target: Tensor) -> bool:
    if leaf.numel() != target.numel():
        return False
    return torch.equal(leaf.reshape(-1).to(target), target.reshape(-1))


def _chooses(column: Tensor, part: Stream, whole: Stream) -> bool:
    """Whether a part are the answers of the samples that have one value, or have another."""
    if len(column) != whole.elements:
        return part.elements in _sizes_of(column, {part.elements})
    values, counts = torch.unique(column, return_counts=True)
    few = zip(values[:_VALUES], counts[:_VALUES].tolist(), strict=True)
    for value, count in few:
        masks = (count, column == value), (len(column) - count, column != value)
        for size, mask in masks:
            if size == part.elements and _cells(whole, mask) == _cells(part):
                return True
    return False


def unexplained(
    questions: Sequence[Question], choosers: Choosers
) -> list[tuple[Question, Question]]:
    """Each question that is a part of another one, which nothing of the batch chose.

    Args:
        questions: Of a step.
        choosers: What of the batch may have chosen it.
    """
    found = []
    for part in questions:
        for whole in questions:
            if part is not whole and _is_part(
                part.streams[0], whole.streams[0], choosers
            ):
                found.append((part, whole))  # noqa: PERF401 - three lines of a comprehension
    return found


def is_beaten(part: Question, whole: Question) -> bool:
    """Whether the whole is the step's answer, and not its part.

    It is where it is scored too, and where a loss of all of it is a number and the part's labels
    are only compared. A pair that a step returns is what it means, and a metric on a part alone
    may have a mask of its own.
    """
    if part.of("outputs"):
        return False
    if whole.of("metric", "function", *WEAK):
        return True
    return is_all_that_counts(whole) and not part.of("metric", "function")


def is_all_that_counts(question: Question) -> bool:
    """Whether a loss takes all of it for a number: what is left out later is not."""
    losses = [stream.value for stream in question.of("loss")]
    return any(value is not None and value.numel() == 1 for value in losses)


def _is_part(part: Stream, whole: Stream, choosers: Choosers) -> bool:
    if part.elements >= whole.elements or part.elements in choosers.sizes:
        return False
    if (part.layout.task == "multilabel") != (whole.layout.task == "multilabel"):
        return False
    roles = {part.role, whole.role} - {None}
    if len(roles) > 1 or (part.is_whole_tensor and part.role != whole.role):
        return False  # of another tensor of the batch: another task
    if not _is_contained(part, whole):
        return False
    return not any(_chooses(column, part, whole) for column in choosers.columns)


def _is_contained(part: Stream, whole: Stream) -> bool:
    """Whether the answers of one stand among the other's, and no label says which are left out."""
    cells, counts = _cells(whole)
    mine, few = _cells(part)
    places = dict(zip(cells, counts, strict=True))
    if any(count > places.get(cell, 0) for cell, count in zip(mine, few, strict=True)):
        return False
    of_label: dict[int, list[int]] = {}
    for cell, count in places.items():
        of_label.setdefault(cell[0], [0, 0])[1] += count
    for cell, count in zip(mine, few, strict=True):
        of_label[cell[0]][0] += count
    return any(0 < taken < there for taken, there in of_label.values())


def _cells(
    stream: Stream, mask: Tensor | None = None
) -> tuple[list[tuple[int, int]], list[int]]:
    """Each target with each answer that it was given, and how often."""
    assert stream.target is not None
    assert stream.preds is not None
    pairs = torch.stack((stream.target, stream.preds.to(stream.target.device)), 1)
    kept = stream.target != stream.layout.ignore_index
    pairs = pairs[kept if mask is None else kept & mask.to(kept.device)]
    cells, counts = torch.unique(pairs, dim=0, return_counts=True)
    return [(t, p) for t, p in cells.tolist()], counts.tolist()
