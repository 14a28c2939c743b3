"""How a state of counts is laid out, and what it says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from lightning_evalguard.confusion import scores as _scores
from lightning_evalguard.confusion.differences import Misread
from lightning_evalguard.confusion.result import ConfusionResult, Task

# Classes for which one state has room where nothing says how many there are: labels were returned,
# no scores. What was not used is cut off when the evaluation is over.
ROOM = 256
_TINY, _ABOVE_ONE = -1e-30, 1 + 1e-6  # a probability may round to just above 1
# An ignored target at most this far from the classes has a row of its own, as have the values
# between: to read that row as ignored costs nothing, to look for the value costs two operators.
_NEAR = 1_000


@dataclass(frozen=True)
class Layout:
    """How one state is laid out: equal on every rank, fixed for the run.

    Attributes:
        task: ``binary``, ``multiclass`` or ``multilabel``.
        num_classes: Classes, or labels of a multilabel task.
        preds_are: ``logits``, ``probs``, ``labels``, or for binary and multilabel tasks
            ``unknown`` until a value has shown that they are logits.
        threshold: As in `ConfusionMetrics`.
        ignore_index: Target that is not counted.
        top_k: Each k of the top-k accuracies.
        full: Whether the matrix itself is kept.
        exact: False where `num_classes` is only the room there is.
        by_batch: Whether logits of batches that have all of them in [0, 1] are counted apart,
            which torchmetrics takes for probabilities.
        rounded: Of scores in 16 bits the highest logit whose sigmoid, in 16 bits too, is not above
            the threshold.
    """

    task: Task
    num_classes: int
    preds_are: str = "labels"
    threshold: float = 0.5
    ignore_index: int = -100
    top_k: tuple[int, ...] = ()
    full: bool = True
    exact: bool = True
    by_batch: bool = False
    rounded: float | None = None

    @property
    def cuts(self) -> tuple[float, ...]:
        """Where the number line is cut: a binary score's column is how many cuts lie below it."""
        low, high = _TINY, _ABOVE_ONE
        logits = {
            self.logit,
            self.threshold,
            self.logit if self.rounded is None else self.rounded,
        }
        return {
            "logits": tuple(sorted(logits)),
            "probs": (low, self.threshold, high),
            "labels": (-0.5, 0.5, 1.5),
            "unknown": tuple(sorted(logits | {low, high})),
        }["unknown" if self.by_batch else self.preds_are]

    @property
    def logit(self) -> float:
        """Of the threshold."""
        return math.log(self.threshold / (1 - self.threshold))

    def answers(self, preds_are: str, cut: float | None = None) -> list[int]:
        """What each column between `cuts` says, read as `preds_are`: 0, 1, or 2 for neither.

        Args:
            preds_are: ``logits``, ``probs`` or ``labels``.
            cut: Where logits are cut, by default at the logit of the threshold.
        """
        edges = [-math.inf, *self.cuts, math.inf]
        if preds_are == "logits":
            if cut is None:
                cut = self.logit
            return [int(low >= cut) for low in edges[:-1]]
        below = _TINY
        middle = self.threshold
        above = _ABOVE_ONE
        if preds_are == "labels":
            below = -0.5
            middle = 0.5
            above = 1.5
        answers = []
        for low, high in pairwise(edges):
            answer = int(low >= middle)
            if high <= below or low >= above:
                answer = 2
            answers.append(answer)
        return answers

    @property
    def near(self) -> bool:
        """Whether the ignored target has a row by its value."""
        return -_NEAR <= self.ignore_index <= self.classes + _NEAR

    @property
    def classes(self) -> int:
        """Values that a target may have."""
        if self.task != "multiclass":
            return 2
        return self.num_classes

    @property
    def rows(self) -> tuple[int, int]:
        """Lowest and highest row, the lowest and highest target that are told apart.

        A target beyond them falls on the last one on its side.
        """
        if not self.near:
            # the ignored one has the row after the one above
            return -1, self.classes + 1
        return min(-1, self.ignore_index - 1), max(self.classes, self.ignore_index + 1)

    @property
    def width(self) -> int:
        """Columns: predictions below, of, and above the classes; or between `cuts`, and NaN."""
        if self.task == "multiclass":
            return self.num_classes + 2
        return len(self.cuts) + 2

    @property
    def bins(self) -> int:
        """Length of the flat state."""
        low, high = self.rows
        if self.task == "multiclass" and not self.full:
            return (high - low + 2) + 2 * (self.num_classes + 1)
        labels = 1
        if self.task == "multilabel":
            labels = self.num_classes
        return (1 + self.by_batch) * labels * (high - low + 1) * self.width

    def split(self, table: Tensor) -> tuple[Tensor, int, int]:
        """Rows of the classes, and how many targets were ignored and out of range.

        Args:
            table: Counts, rows first.
        """
        low, high = self.rows
        ignored = self.ignore_index - low if self.near else high - low
        classes = table[-low : -low + self.classes].clone()
        if 0 <= self.ignore_index < self.classes:
            classes[self.ignore_index] = 0
        left_out = int(table[ignored].sum())
        return classes, left_out, int(table.sum() - classes.sum()) - left_out


def read_state(
    layout: Layout,
    counts: Tensor,
    hits: Tensor,
    class_names: Sequence[str] | None = None,
    pairs: tuple[Tensor, Tensor] | None = None,
    least: int = 2,
    per_class: int = 20,
    logits: bool = False,
) -> ConfusionResult:
    """Read a state: what was counted, what could not be, and every score.

    Args:
        layout: How `counts` is laid out.
        counts: The flat state, on the host.
        hits: Top-k hits, on the host.
        class_names: One name a class; by default the indices.
        pairs: Keys and counts of confused pairs, where the matrix is not kept.
        least: Classes there are at least, where the layout only gives their room.
        per_class: Classes up to which ``f1_class/<name>`` is among the scores.
        logits: Whether scores of an ``unknown`` kind are known to be logits by now.
    """
    if layout.task == "multiclass":
        result = _read_multiclass(layout, counts, pairs, least)
    else:
        result = _read_yes_or_no(layout, counts, logits)
    n = result.num_classes
    result.class_names = (
        tuple(class_names) if class_names else tuple(str(i) for i in range(n))
    )
    if result.task == "multilabel":
        assert result.judged is not None
        result.scores = _scores.multilabel(
            result.support, result.predicted, result.true_positives, result.judged
        )
    else:
        result.scores = _scores.multiclass(
            result.support, result.predicted, result.true_positives
        )
    for k, found in zip(layout.top_k, hits.tolist(), strict=True):
        result.scores[f"top{k}_accuracy"] = (
            found / result.total if result.total else _scores.NAN
        )
    if n <= per_class:
        each = _scores.per_class(
            result.support, result.predicted, result.true_positives, result.judged
        )
        f1 = each.f1 if result.total else torch.full_like(each.f1, _scores.NAN)
        result.scores.update(_scores.named("f1", f1, result.class_names))
    return result


def _read_multiclass(
    layout: Layout, counts: Tensor, pairs: tuple[Tensor, Tensor] | None, least: int
) -> ConfusionResult:
    c, (low, high) = layout.num_classes, layout.rows
    if not layout.full:
        rows, predicted, right = counts.split([high - low + 2, c + 1, c + 1])  # type: ignore[no-untyped-call]
        support, ignored, out_of_range = layout.split(rows[:-1])
        return ConfusionResult(
            "multiclass",
            None,
            support,
            predicted[:c].clone(),
            right[:c].clone(),
            (),
            ignored=ignored,
            out_of_range=out_of_range,
            preds_are=layout.preds_are,
            pairs=pairs,
            **_unusable(layout, int(rows[-1])),
        )
    cells, ignored, out_of_range = layout.split(counts.view(-1, layout.width))
    matrix = cells[:, 1 : c + 1]
    unusable = int(cells.sum() - matrix.sum())
    if not layout.exact:
        used = (matrix.sum(0) + matrix.sum(1)).nonzero()
        c = max(least, int(used.max()) + 1 if len(used) else 0)
        matrix = matrix[:c, :c]
    matrix = matrix.clone()
    return ConfusionResult(
        "multiclass",
        matrix,
        matrix.sum(1),
        matrix.sum(0),
        matrix.diagonal().clone(),
        (),
        ignored=ignored,
        out_of_range=out_of_range,
        preds_are=layout.preds_are,
        **_unusable(layout, unusable),
    )


def margins(
    layout: Layout, num_classes: int, preds_are: str, counts: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Support, predicted, true positives and answers judged of several states at once.

    Args:
        layout: How each is laid out.
        num_classes: How many classes, or labels, to read.
        preds_are: What the scores were taken for.
        counts: The flat states, ``(B, bins)``.

    Returns:
        ``(B, C)`` each, the last ``(B, 1)`` unless the task is multilabel.
    """
    batches = len(counts)
    c = layout.num_classes
    if layout.task == "multiclass" and not layout.full:
        low, high = layout.rows
        rows, predicted, right = counts.split([high - low + 2, c + 1, c + 1], dim=1)  # type: ignore[no-untyped-call]
        support, *_ = layout.split(rows[:, :-1].T)
        found = support.T, predicted[:, :c], right[:, :c]
    elif layout.task == "multiclass":
        cells, *_ = layout.split(counts.view(batches, -1, layout.width).transpose(0, 1))
        matrix = cells[:, :, 1 : c + 1].transpose(0, 1)  # (B, C, C)
        found = matrix.sum(2), matrix.sum(1), matrix.diagonal(dim1=1, dim2=2)
    else:
        labels = 1
        if layout.task == "multilabel":
            labels = c
        tables = counts.view(
            batches, 1 + layout.by_batch, labels, -1, layout.width
        ).sum(1)
        # (2, B * L, columns)
        rows, *_ = layout.split(tables.flatten(0, 1).transpose(0, 1))
        answered = _answered(rows, layout.answers(preds_are))[:, :, :2]
        matrix = answered.view(batches, labels, 2, 2)
        if layout.task == "multilabel":
            judged = matrix.sum((2, 3))
            return (
                matrix[:, :, 1].sum(2),
                matrix[:, :, :, 1].sum(2),
                matrix[:, :, 1, 1],
                judged,
            )
        one = matrix[:, 0]
        found = one.sum(2), one.sum(1), one.diagonal(dim1=1, dim2=2)
    support, predicted, hits = (x[:, :num_classes] for x in found)
    return support, predicted, hits, support.sum(1, keepdim=True)


def _unusable(layout: Layout, n: int) -> dict[str, Any]:
    return {"unusable_preds" if layout.preds_are == "labels" else "nan_preds": n}


def are_logits(layout: Layout, counts: Tensor) -> bool:
    """Whether scores of an ``unknown`` kind are logits, for one at least lies outside [0, 1]."""
    if layout.preds_are != "unknown":
        return False
    outside = [i for i, a in enumerate(layout.answers("probs")) if a == 2]
    rows, *_ = layout.split(_tables(layout, counts).sum(0))
    return bool(rows[:, :, outside].any())


def _tables(layout: Layout, counts: Tensor) -> Tensor:
    """Counts of yes-or-no answers, ``(1 or 2, rows, L, columns)``."""
    labels = 1
    if layout.task == "multilabel":
        labels = layout.num_classes
    return counts.view(1 + layout.by_batch, labels, -1, layout.width).transpose(1, 2)


def _read_yes_or_no(layout: Layout, counts: Tensor, logits: bool) -> ConfusionResult:
    tables = _tables(layout, counts)
    rows, ignored, out_of_range = layout.split(tables.sum(0))  # (2, L, columns)
    preds_are = layout.preds_are
    if preds_are == "unknown":
        preds_are = "probs"
        if logits or are_logits(layout, counts):
            preds_are = "logits"
    cells = _answered(rows, layout.answers(preds_are))
    matrix = cells[:, :, :2].clone()
    common: dict[str, Any] = {
        "ignored": ignored,
        "out_of_range": out_of_range,
        "nan_preds": int(rows[:, :, -1].sum()),
        "unusable_preds": int(cells[:, :, 2].sum()),
        "preds_are": preds_are,
        "misread": _misread(layout, tables) if preds_are == "logits" else (),
    }
    if layout.task == "binary":
        matrix = matrix[0]
        return ConfusionResult(
            "binary",
            matrix,
            matrix.sum(1),
            matrix.sum(0),
            matrix.diagonal().clone(),
            (),
            **common,
        )
    return ConfusionResult(
        "multilabel",
        matrix,
        matrix[:, 1].sum(1),
        matrix[:, :, 1].sum(1),
        matrix[:, 1, 1].clone(),
        (),
        judged=matrix.sum((1, 2)),
        **common,
    )


def _answered(rows: Tensor, answers: Sequence[int]) -> Tensor:
    """Cells ``(L, 2, 3)`` of rows ``(2, L, columns)``: no, yes and neither."""
    cells = torch.zeros(rows.shape[1], 2, 3, dtype=torch.long)
    for column, answer in enumerate(answers):
        cells[:, :, answer] += rows[:, :, column].T
    return cells


def _misread(layout: Layout, tables: Tensor) -> tuple[Misread, ...]:
    """What is counted where logits are taken for something else, or rounded.

    Args:
        layout: How they are laid out.
        tables: Counts ``(1, rows, L, columns)``, or ``(2, ...)`` if `layout` is by batch.
    """
    logits, *inside = (layout.split(table)[0] for table in tables)
    rows = sum(inside, logits)
    exact = layout.answers("logits")
    rounded = exact
    if layout.rounded is not None:
        rounded = layout.answers("logits", layout.rounded)
    unit = "sample"
    if layout.task == "multilabel":
        unit = "answer"
    found = []

    def add(cells: Tensor, how: str, **kwargs: Any) -> None:
        matrix = cells[0, :, :2] if layout.task == "binary" else cells[:, :, :2]
        found.append(Misread(matrix, how, **kwargs))

    if rounded != exact:
        n = int(rows[:, :, [i for i, a in enumerate(exact) if a != rounded[i]]].sum())
        add(
            _answered(rows, rounded),
            f"of {n:,} {unit}{'s' * (n > 1)} the sigmoid, in 16 bits, is rounded to the other side "
            f"of {layout.threshold:g}",
            rounds=True,
        )
    for part in inside:
        if n := int(part.sum()):
            add(
                _answered(logits, rounded) + _answered(part, layout.answers("probs")),
                f"the logits of {n:,} {unit}{'s' * (n > 1)} were taken for probabilities, because "
                "all of their batch lie in [0, 1]",
            )
    if layout.logit != layout.threshold:
        add(
            _answered(rows, layout.answers("logits", layout.threshold)),
            f"it cuts logits at {layout.threshold:g}, expected {layout.logit:g}",
        )
    return tuple(found)


def reshaped(counts: Tensor, old: Layout, new: Layout) -> Tensor | None:
    """Counts of one layout in another: of more classes, or of all labels as one question.

    None where they cannot be moved.
    """
    if old == new:
        return counts
    if old.task == "multilabel" and new.task == "binary":
        each = counts.view(1 + old.by_batch, old.num_classes, -1)
        return each.sum(1).reshape(-1)
    wider = old.task == new.task == "multiclass" and old.num_classes <= new.num_classes
    if not wider or not (old.full and new.full) or old.ignore_index != new.ignore_index:
        return None
    table = counts.view(-1, old.width)
    moved = counts.new_zeros(new.bins).view(-1, new.width)
    columns = [*range(old.width - 1), new.width - 1]
    for i, row in enumerate(table):
        moved[_row_in(i, old, new), columns] += row
    return moved.view(-1)


def _row_in(i: int, old: Layout, new: Layout) -> int:
    """Where a row of one layout stands in another."""
    low, high = old.rows
    new_low, new_high = new.rows
    value = i + low
    if not old.near and value == high:  # the ignored ones
        return new_high - new_low
    above = value >= old.num_classes and value != old.ignore_index
    return (new.num_classes if above else value) - new_low


def highest_not_above(threshold: float, dtype: torch.dtype) -> float:
    """The highest of all numbers in 16 bits whose sigmoid, in 16 bits too, is not above."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    every = bits.view(dtype)[bits.view(dtype).isfinite()]
    return float(every[~(every.sigmoid() > threshold)].max())
