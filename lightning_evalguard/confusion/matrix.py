"""The sync-free state that counts predictions against targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_evalguard.confusion.by_batch import Batches
from lightning_evalguard.confusion.config import ConfusionMetrics as ConfusionMetrics
from lightning_evalguard.confusion.highest import highest
from lightning_evalguard.confusion.layout import Layout, read_state, reshaped
from lightning_evalguard.confusion.result import ConfusionResult, Task

_PAIRS = 1 << 20  # keys that wait for compaction, 8 MiB
# Up to so many scores one search is faster than a comparison for each cut. Beyond, comparisons are
# written in the type of what they compare, since those into bool are not vectorised: a fifth.
_FEW_SCORES = 1024
# Answers of one batch up to which they wait for others, and how much waits: at most 1 MiB.
_SMALL, _WAITING, _STEPS = 1 << 12, 1 << 16, 32


class _Waiting:
    """What small batches answered and is not counted yet.

    An object of its own: an attribute of a metric takes longer to write than an answer.

    Attributes:
        answers: The classes, flat, and the scores that show which of them are NaN.
        targets: Copies of the targets, flat.
        elements: How many targets.
        ends: Of the steps, in targets that wait.
        each: Is to know what was counted at each of those.
    """

    __slots__ = ("answers", "each", "elements", "ends", "targets")

    def __init__(self) -> None:
        self.answers: list[tuple[Tensor, Tensor | None]] = []
        self.targets: list[Tensor] = []
        self.elements = 0
        self.ends: list[int] = []
        self.each: Batches | None = None


class ConfusionMatrix(Metric):
    """Counts predictions against targets without ever making the host wait for the device.

    One flat int64 state, one ``index_add_`` a batch. Targets outside the classes, ignored ones
    and predictions that are NaN (or no class) have bins of their own: they are counted exactly and
    corrupt nothing. Validation is what one reads off the state after the last batch.

    Args:
        num_classes: Number of classes, or of labels of a multilabel task.
        task: ``multiclass`` takes preds ``(N, C, ...)`` scores or ``(N, ...)`` labels and target
            ``(N, ...)``; ``binary`` takes both ``(N, ...)``; ``multilabel`` both ``(N, L, ...)``.
        preds_are: ``logits``, ``probs``, ``labels`` or ``unknown``; of a multiclass task it is
            told by the shape.
        threshold: Probability above which a binary or multilabel prediction is positive.
        ignore_index: Target that is not counted.
        top_k: Each k of the top-k accuracies.
        full: Keep the matrix; else support, predicted and hits of each class, and the confused
            pairs as keys in a buffer that is compacted when it is full.
        exact: False where `num_classes` is only the room there is.
        by_batch: Count the logits of batches apart that have all of them in [0, 1].
        rounded: Count the logits apart that lie between the threshold's and this one.
        kwargs: As of `torchmetrics.Metric`.

    Example:
        >>> confmat = ConfusionMatrix(3)
        >>> confmat.update(torch.tensor([0, 1, 1, 2]), torch.tensor([0, 1, 2, 7]))
        >>> confmat.compute().tolist()
        [[1, 0, 0], [0, 1, 0], [0, 1, 0]]
        >>> confmat.result().out_of_range
        1
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    counts: Tensor
    hits: Tensor
    _one: Tensor
    _edges: Tensor

    def __init__(
        self,
        num_classes: int = 2,
        task: Task = "multiclass",
        *,
        preds_are: str = "labels",
        threshold: float = 0.5,
        ignore_index: int = -100,
        top_k: tuple[int, ...] = (),
        full: bool = True,
        exact: bool = True,
        by_batch: bool = False,
        rounded: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if task == "binary":
            num_classes = 2
        self.layout = layout = Layout(
            task,
            num_classes,
            preds_are,
            threshold,
            ignore_index,
            top_k,
            full,
            exact,
            by_batch,
            rounded,
        )
        self._rows = layout.rows
        self._width = layout.width
        self._near = layout.near
        self._cuts = layout.cuts if task != "multiclass" else ()
        # An inference tensor, as made inside trainer.validate(), could not be written in the next
        # fit (torchmetrics#1993).
        with torch.inference_mode(False):
            zeros = torch.zeros(self.layout.bins, dtype=torch.long)
            self.add_state("counts", zeros, dist_reduce_fx="sum")
            self.add_state(
                "hits", torch.zeros(len(top_k), dtype=torch.long), dist_reduce_fx="sum"
            )
            self.register_buffer(
                "_one", torch.ones(1, dtype=torch.long), persistent=False
            )
            self.register_buffer("_edges", torch.tensor(self._cuts), persistent=False)
            # the cells of each batch, where they are asked for
            self.kept: list[Tensor] | None = None
            self._pairs = None if full or task != "multiclass" else _Pairs(num_classes)
        self._waits = task == "multiclass" and full and not top_k
        self._waiting = _Waiting()

    @classmethod
    def of(cls, layout: Layout, **kwargs: Any) -> ConfusionMatrix:
        """A state of that layout."""
        return cls(**vars(layout), **kwargs)

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Count one batch.

        Args:
            preds: Scores ``(N, C, ...)`` or labels ``(N, ...)``; for binary and multilabel tasks
                scores or labels of the target's shape.
            target: Class indices ``(N, ...)``; for a binary task 0 and 1 of any dtype, for a
                multilabel one ``(N, L, ...)``.

        Raises:
            ValueError: If the shapes do not fit each other or the number of classes.
        """
        self.count(preds, target)

    def count(self, preds: Tensor, target: Tensor) -> None:
        """`update` without torchmetrics' bookkeeping, which takes longer than a small batch."""
        cells = (
            self._multiclass if self.layout.task == "multiclass" else self._yes_or_no
        )
        index = cells(preds.detach() if preds.requires_grad else preds, target)
        self.counts.index_add_(0, index, self._one.expand_as(index))
        if self.kept is not None:
            self.kept.append(index)

    def note(self, preds: Tensor, target: Tensor) -> None:
        """`count`, with many small batches in one go: what they answered waits for `settle`."""
        n = target.numel()
        if not self._waits or self.kept is not None or n > _SMALL:
            self.settle()
            self.count(preds, target)
            return
        preds = preds.detach() if preds.requires_grad else preds
        flat = target if target.ndim == 1 else target.reshape(-1)
        waiting = self._waiting
        is_row = flat is target and preds.is_floating_point()
        answer: tuple[Tensor, Tensor | None]
        if is_row and preds.shape == (n, self.layout.num_classes):
            # most pairs: nothing else is asked of them
            top, p = preds.max(1)
            answer = p, top
        else:
            answer = self._predicted_soon(preds, target), None
        # a copy: the target is the batch's own
        kept = flat.clone() if flat.dtype == torch.long else flat.long()
        waiting.answers.append(answer)
        waiting.targets.append(kept)
        waiting.elements += n
        if waiting.elements > _WAITING or len(waiting.targets) > 2 * _STEPS:
            self.settle()

    def step_over(self, each: Batches) -> None:
        """A step is over: `each` is to know what was counted so far."""
        waiting = self._waiting
        waiting.each = each
        waiting.ends.append(waiting.elements)
        if len(waiting.ends) == _STEPS:
            self.settle()

    def settle(self) -> None:
        """Count what waits."""
        waiting = self._waiting
        if not waiting.targets and not waiting.ends:
            return
        self._waiting = _Waiting()
        each = waiting.each
        ends = waiting.ends
        bins = len(self.counts)
        knows = each is not None and each.takes(len(ends), bins)
        if not waiting.targets:
            if each is not None and knows:
                each.take(self.counts.expand(len(ends), -1).clone())
            return
        rows = self._row(torch.cat(waiting.targets))
        index = self._cell(self._joined(waiting.answers), rows, 1)
        if each is None or not knows:
            self.counts.index_add_(0, index, self._one.expand_as(index))
            return
        # one table for each step, and one for what came after the last of them
        _number(index, ends, bins)
        tables = self.counts.new_zeros((len(ends) + 1) * bins)
        tables.index_add_(0, index, self._one.expand_as(index))
        totals = tables.view(-1, bins).cumsum(0).add_(self.counts)
        self.counts.copy_(totals[-1])
        each.take(totals[:-1])

    def _predicted(self, preds: Tensor, target: Tensor) -> Tensor:
        scored = self._is_scored(preds, target)
        if scored:
            return highest(preds)
        return preds.long().clamp(-1, self.layout.num_classes)

    def _is_scored(self, preds: Tensor, target: Tensor) -> bool:
        c = self.layout.num_classes
        scored = preds.ndim == target.ndim + 1
        if scored and preds.shape[1] != c:
            raise ValueError(
                f"preds has {preds.shape[1]} classes in dim 1, expected {c}"
            )
        if preds.shape[:1] + preds.shape[1 + scored :] != target.shape:
            raise ValueError(
                f"preds {tuple(preds.shape)} do not fit target {tuple(target.shape)}"
            )
        return scored

    def _predicted_soon(self, preds: Tensor, target: Tensor) -> Tensor:
        """The classes, flat."""
        p = self._predicted(preds, target)
        return p if p.ndim == 1 else p.reshape(-1)

    def _joined(self, answers: Sequence[tuple[Tensor, Tensor | None]]) -> Tensor:
        """What waits in one, a class beyond all where the highest score is NaN."""
        joined = torch.cat([p for p, _ in answers])
        tops = [top for _, top in answers if top is not None]
        if len(tops) == len(answers):
            return joined.masked_fill_(torch.cat(tops).isnan(), self.layout.num_classes)
        at = 0
        for p, top in answers:
            if top is not None:
                part = joined[at : at + len(p)]
                part.masked_fill_(top.isnan(), self.layout.num_classes)
            at += len(p)
        return joined

    def _multiclass(self, preds: Tensor, target: Tensor) -> Tensor:
        p = self._predicted(preds, target)
        t = target.long()
        if self.layout.top_k and preds.ndim == target.ndim + 1:
            self._count_hits(preds, p, t)
        if not self.layout.full:
            return self._vectors(p.reshape(-1), t.reshape(-1))
        return self._cell(p, self._row(t), 1)

    def _row(self, target: Tensor) -> Tensor:
        row = target.clamp(*self._rows)
        if self._near:
            return row
        return row.clamp_(max=self._rows[1] - 1).masked_fill_(
            target == self.layout.ignore_index, self._rows[1]
        )

    def _cell(self, column: Tensor, row: Tensor, first: int) -> Tensor:
        index = torch.add(column, row, alpha=self._width)
        index.add_(first - self._rows[0] * self._width)
        if index.ndim == 1:
            return index
        return index.reshape(-1)

    def _vectors(self, p: Tensor, t: Tensor) -> Tensor:
        c = self.layout.num_classes
        low, high = self._rows
        valid = (t >= 0) & (t < c) & (t != self.layout.ignore_index)
        usable = (p >= 0) & (p < c)
        counted = valid & usable
        if self._pairs is not None:
            self._pairs.add(torch.where(counted & (p != t), t * c + p, -1))
        support = torch.where(valid & ~usable, high + 1, self._row(t)).sub_(low)
        first = high - low + 2
        predicted = torch.where(counted, p, c).add_(first)
        right = torch.where(counted & (p == t), p, c).add_(first + c + 1)
        return torch.cat((support, predicted, right))

    def _count_hits(self, scores: Tensor, p: Tensor, t: Tensor) -> None:
        ks = self.layout.top_k
        best = scores.topk(min(max(ks), scores.shape[1]), dim=1).indices
        counted = (p < scores.shape[1]) & (t != self.layout.ignore_index)
        found = (best == t.unsqueeze(1)) & counted.unsqueeze(1)
        self.hits += torch.stack([found[:, :k].sum() for k in ks])

    def _yes_or_no(self, preds: Tensor, target: Tensor) -> Tensor:
        many = self.layout.task == "multilabel"
        if not many and preds.numel() == target.numel():
            preds = preds.reshape(-1)
            target = target.reshape(-1)
        if preds.shape != target.shape:
            raise ValueError(
                f"preds {tuple(preds.shape)} do not fit target {tuple(target.shape)}"
            )
        if preds.dtype in (torch.float16, torch.bfloat16):
            preds = preds.float()  # or the cut itself would be rounded to 16 bits
        column = self._column(preds)
        if target.is_floating_point():
            # Only 0 and 1 are answers: a share, as of soft labels, is out of range; NaN too.
            beyond = self._rows[1] - (not self._near)
            target = torch.where(target == target.trunc(), target, beyond)
        index = self._cell(column, self._row(target.long()), 0)
        tables = 1 + self.layout.by_batch
        if many:
            labels = self.layout.num_classes
            if preds.ndim < 2 or preds.shape[1] != labels:
                raise ValueError(
                    f"preds {tuple(preds.shape)} do not have {labels} labels in dim 1"
                )
            offset = torch.arange(labels, device=index.device)
            offset *= self.layout.bins // tables // labels
            index = index.view(preds.shape).add_(
                offset.view(-1, *[1] * (preds.ndim - 2))
            )
        if tables == 2 and preds.numel():
            low, high = preds.aminmax()
            index.add_((low >= 0) & (high <= 1), alpha=self.layout.bins // 2)
        return index.reshape(-1)

    def _column(self, preds: Tensor) -> Tensor:
        """How many cuts lie below each of `preds`; one more than all of them for NaN."""
        device = preds.device.type
        few = device == "cuda" or (device == "cpu" and preds.numel() <= _FEW_SCORES)
        if few and preds.dtype == torch.float32:
            column = torch.bucketize(preds.contiguous(), self._edges)
            return column.masked_fill_(preds.isnan(), self._width - 1)
        if preds.dtype == torch.bool:
            preds = preds.byte()
        column = torch.empty_like(preds)
        each = torch.empty_like(preds)
        torch.gt(preds, self._cuts[0], out=column)
        for cut in self._cuts[1:]:
            column += torch.gt(preds, cut, out=each)
        if preds.is_floating_point():
            column.add_(torch.ne(preds, preds, out=each), alpha=self._width - 1)
        return column.long()

    def into(self, other: ConfusionMatrix) -> bool:
        """Add these counts to a state of another layout; whether that was possible."""
        self.settle()
        moved = reshaped(self.counts, self.layout, other.layout)
        if moved is None:
            return False
        other.counts += moved
        if len(self.hits) == len(other.hits):
            other.hits += self.hits
        return True

    def compute(self) -> Tensor:
        """The matrix ``(C, C)``, rows the targets; ``(L, 2, 2)`` for a multilabel task.

        Above ``max_full_classes``: support, predicted and true positives as ``(3, C)``.
        """
        result = self.result()
        if result.matrix is not None:
            return result.matrix
        return torch.stack((result.support, result.predicted, result.true_positives))

    def result(self, class_names: Sequence[str] | None = None) -> ConfusionResult:
        """Everything the counts say, copied to the host once."""
        self.settle()
        counts = self.counts.cpu()
        hits = self.hits.cpu()
        return read_state(self.layout, counts, hits, class_names, self.pairs())

    def pairs(self) -> tuple[Tensor, Tensor] | None:
        """Keys ``target * C + pred`` of confused pairs and their counts, if there is no matrix."""
        if self._pairs is None:
            return None
        return self._pairs.counted()

    def reset(self) -> None:
        """Start again from zero."""
        with torch.inference_mode(False):
            super().reset()
            self._waiting = _Waiting()
            if self.kept is not None:
                self.kept = []
            if self._pairs is not None:
                self._pairs.clear()

    def _apply(
        self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = ""
    ) -> Any:
        with torch.inference_mode(False):
            if self._pairs is not None:
                self._pairs.apply(fn)
            return super()._apply(fn, exclude_state)


def _number(index: Tensor, ends: Sequence[int], bins: int) -> None:
    """Move the cells of each step to a table of its own."""
    first = ends[0]
    sizes = [end - start for start, end in pairwise((0, *ends, len(index)))]
    if (
        first
        and all(n == first for n in sizes[:-2])
        and sizes[-2] <= first
        and not sizes[-1]
    ):
        table = torch.arange(len(index), device=index.device)
        index.add_(table.div_(first, rounding_mode="floor"), alpha=bins)
        return
    start = 0
    for i, n in enumerate(sizes):
        index[start : start + n].add_(i * bins)
        start += n


class _Pairs:
    """Confused pairs as keys ``target * C + pred``, counted exactly.

    A batch's keys go to a buffer at a position that the host knows; when the buffer is full it is
    compacted, which is the one time in `_PAIRS` samples that the host waits. Takes 8 MiB, and 16
    bytes for each pair that was ever confused.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.buffer = torch.empty(0, dtype=torch.long)
        self.clear()

    def clear(self) -> None:
        self.used = 0
        self.keys = self.buffer.new_empty(0)
        self.counts = self.buffer.new_empty(0)

    def apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        self.buffer, self.keys, self.counts = (
            fn(self.buffer),
            fn(self.keys),
            fn(self.counts),
        )

    def add(self, keys: Tensor) -> None:
        if not len(self.buffer):
            with torch.inference_mode(False):
                self.buffer = torch.empty(_PAIRS, dtype=torch.long, device=keys.device)
        for part in keys.split(len(self.buffer)):  # type: ignore[no-untyped-call]
            if self.used + len(part) > len(self.buffer):
                self.compact()
            self.buffer[self.used : self.used + len(part)].copy_(part)
            self.used += len(part)

    def compact(self) -> None:
        new = self.buffer[: self.used]
        new = new[new >= 0]
        keys = torch.cat((self.keys.to(new.device), new))
        weights = torch.cat((self.counts.to(new.device), torch.ones_like(new)))
        with torch.inference_mode(False):
            self.keys, place = keys.unique(return_inverse=True)  # type: ignore[no-untyped-call]
            self.counts = torch.zeros_like(self.keys).scatter_add_(0, place, weights)
        self.used = 0

    def counted(self) -> tuple[Tensor, Tensor]:
        """Keys and how often each was seen, on the host."""
        self.compact()
        return self.keys.cpu(), self.counts.cpu()
