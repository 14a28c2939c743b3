"""Which samples were right: read off the cells that each batch was counted in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class LayoutLike(Protocol):
    """What is needed of a `Layout`; see there."""

    @property
    def task(self) -> str:
        """``binary``, ``multiclass`` or ``multilabel``."""

    @property
    def num_classes(self) -> int:
        """Classes, or labels."""

    @property
    def full(self) -> bool:
        """Whether the matrix itself is kept."""

    @property
    def rows(self) -> tuple[int, int]:
        """Lowest and highest row."""

    @property
    def width(self) -> int:
        """Columns."""

    def answers(self, preds_are: str) -> list[int]:
        """What each column of a yes-or-no answer says."""


def right(layout: LayoutLike, batches: Sequence[Tensor], preds_are: str) -> Tensor:
    """Whether each sample is right, in the order in which they were counted.

    A sample of a multilabel task is right where all its labels are; one whose target is ignored,
    or that has no prediction, is not.

    Args:
        layout: How the cells are laid out.
        batches: The cell of each answer, flat, one tensor a batch.
        preds_are: What the scores were taken for.

    Returns:
        Bool of shape ``(N,)``, on the CPU.
    """
    if not batches:
        return torch.zeros(0, dtype=torch.bool, device="cpu")
    if layout.task == "multiclass" and not layout.full:
        # support, predicted and hits, one after the other: a hit has the number of its class
        hits = torch.cat([batch[2 * len(batch) // 3 :] for batch in batches]).cpu()
        low, high = layout.rows
        first = (high - low + 2) + (layout.num_classes + 1)
        return hits < first + layout.num_classes
    index = torch.cat(tuple(batches)).cpu()
    low, high = layout.rows
    if layout.task == "multiclass":
        target = index // layout.width + low
        predicted = index % layout.width - 1
        return (
            (target == predicted) & (predicted >= 0) & (predicted < layout.num_classes)
        )
    cell = index % ((high - low + 1) * layout.width)
    target = cell // layout.width + low
    column = cell % layout.width
    answers = [*layout.answers(preds_are), 2]  # the last column is NaN
    answered = torch.tensor(answers, device="cpu")[column]
    each = (answered == target) & (answered < 2)
    if layout.task == "multilabel":
        return each.view(-1, layout.num_classes).all(1)
    return each
