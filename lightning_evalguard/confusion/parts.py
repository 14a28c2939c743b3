"""Of two answers of a step, is one a part of the other, and what of the batch chose it?

A mask, lengths, or a label that counts for nothing say which answers are meant. A subset that
nothing of the batch explains, a random tenth of the pixels, is not the step's answer where all of
it is scored too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lightning_evalguard.confusion.choice import WEAK, Question
from lightning_evalguard.confusion.stream import Stream

_VALUES = 64  # of a tensor of the batch that may each stand for what is left out


def sizes_of(leaves: Iterable[Tensor], sizes: set[int]) -> set[int]:
    """How many answers the tensors of a batch may choose, of so many each.

    A mask chooses those that it holds to be true, as does a number of ids all but the padding;
    lengths choose their sum.
    """
    chosen: set[int] = set()
    for leaf in leaves:
        if leaf.is_floating_point() or leaf.is_complex() or not leaf.numel():
            continue
        if leaf.dtype != torch.bool:
            chosen.add(int(leaf.sum()))
        if leaf.numel() in sizes:
            _, counts = torch.unique(leaf, return_counts=True)
            few = counts[:_VALUES].tolist()
            chosen.update(few)
            chosen.update(leaf.numel() - count for count in few)
    return chosen


def unexplained(
    questions: Sequence[Question], chosen: set[int]
) -> list[tuple[Question, Question]]:
    """Each question that is a part of another one, which nothing of the batch chose.

    Args:
        questions: Of a step.
        chosen: How many answers the batch chooses, see `sizes_of`.
    """
    found = []
    for part in questions:
        for whole in questions:
            if part is not whole and _is_part(
                part.streams[0], whole.streams[0], chosen
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


def _is_part(part: Stream, whole: Stream, chosen: set[int]) -> bool:
    if part.elements >= whole.elements or part.elements in chosen:
        return False
    if (part.layout.task == "multilabel") != (whole.layout.task == "multilabel"):
        return False
    roles = {part.role, whole.role} - {None}
    if len(roles) > 1 or (part.is_whole_tensor and part.role != whole.role):
        return False  # of another tensor of the batch: another task
    return _is_contained(part, whole)


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


def _cells(stream: Stream) -> tuple[list[tuple[int, int]], list[int]]:
    """Each target with each answer that it was given, and how often."""
    assert stream.target is not None
    assert stream.preds is not None
    pairs = torch.stack((stream.target, stream.preds.to(stream.target.device)), 1)
    pairs = pairs[stream.target != stream.layout.ignore_index]
    cells, counts = torch.unique(pairs, dim=0, return_counts=True)
    return [(t, p) for t, p in cells.tolist()], counts.tolist()
