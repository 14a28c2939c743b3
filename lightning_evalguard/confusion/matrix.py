"""The confusion matrix: what to count, the sync-free state that counts it, and the result."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_evalguard.confusion import scores as _scores
from lightning_evalguard.confusion.differences import Misread
from lightning_evalguard.confusion.highest import highest
from lightning_evalguard.confusion.result import ConfusionResult, Task

PredsAre = Literal["logits", "probs", "labels"]

# Classes for which one state has room where nothing says how many there are: labels were returned,
# no scores. What was not used is cut off when the evaluation is over.
ROOM = 256
_TINY, _ABOVE_ONE = -1e-30, 1 + 1e-6  # a probability may round to just above 1
_PAIRS = 1 << 20  # keys that wait for compaction, 8 MiB
# An ignored target at most this far from the classes has a row of its own, as have the values
# between: to read that row as ignored costs nothing, to look for the value costs two operators.
_NEAR = 1_000
# Up to so many scores one search is faster than a comparison for each cut. Beyond, comparisons are
# written in the type of what they compare, since those into bool are not vectorised: a fifth.
_FEW_SCORES = 1024


class ConfusionMetrics:
    """What the confusion matrix is counted from, and how; whatever is None is inferred.

    Args:
        num_classes: Number of classes, or of labels with ``task="multilabel"``.
        class_names: One name a class. By default those of the dataset's ``classes``, else indices.
        task: ``binary``, ``multiclass`` or ``multilabel``.
        preds_are: What floating-point predictions of a binary or multilabel model are: ``logits``
            or ``probs``. By default told by the key they came with or a loss that is given the same
            ones, else by whole evaluations: probabilities until a value lies outside [0, 1], and
            from then on logits. Never by batch.
        threshold: Probability above which a binary or multilabel prediction is positive. Logits
            are compared with its logit, so that no sigmoid rounds them.
        ignore_index: Target that is not counted; by default -100, as in PyTorch's losses, or what
            the loss or metric says that the predictions came from.
        source: Where predictions and targets come from: a function of ``(outputs, batch)`` that
            returns ``(preds, target)``; ``"outputs:logits,target"`` for two keys (or indices) of
            what the step returns; ``"metric:val_acc"`` for what that torchmetrics object of the
            module is called with; ``"loss"`` for what the loss is called with. By default the
            first of these that works.
        top_k: Also count targets among the k highest scores; one k or several.
        max_full_classes: Above this number of classes the matrix is not kept, but support,
            predictions and hits of each class and the confused pairs are.
        per_class: Log the F1 of each class where there are at most this many classes.

    Raises:
        ValueError: For an argument out of its range, naming it.

    Example:
        >>> config = ConfusionMetrics(class_names=["ham", "spam"], source="outputs:logits,y")
        >>> config.num_classes
        2
    """

    def __init__(
        self,
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        *,
        task: Task | None = None,
        preds_are: PredsAre | None = None,
        threshold: float = 0.5,
        ignore_index: int | None = None,
        source: Callable[[Any, Any], Any] | str | None = None,
        top_k: int | Sequence[int] | None = None,
        max_full_classes: int = 2048,
        per_class: int = 20,
    ) -> None:
        if task is not None and task not in get_args(Task):
            raise ValueError(f"task={task!r}: expected one of {_listed(get_args(Task))}")
        if preds_are is not None and preds_are not in get_args(PredsAre):
            raise ValueError(
                f"preds_are={preds_are!r}: expected one of {_listed(get_args(PredsAre))}"
            )
        least = 1 if task == "multilabel" else 2
        if num_classes is not None and (not _is_int(num_classes) or num_classes < least):
            raise ValueError(f"num_classes={num_classes!r}: expected an integer of {least} or more")
        if task == "binary" and num_classes not in (None, 2):
            raise ValueError(f"num_classes={num_classes!r}: expected 2 with task='binary'")
        if class_names is not None:
            if not isinstance(class_names, Sequence) or isinstance(class_names, (str, bytes)):
                raise ValueError(
                    f"class_names={class_names!r}: expected a list of names, in the order of the "
                    "class indices"
                )
            class_names = tuple(str(name) for name in class_names)
            expected = num_classes or (2 if task == "binary" else None)
            if expected is not None and len(class_names) != expected:
                raise ValueError(
                    f"class_names has {len(class_names)} names, expected {expected} "
                    f"(num_classes={expected})"
                )
            if len(class_names) < least:
                raise ValueError(
                    f"class_names has {len(class_names)} names, expected {least} or more"
                )
            if len(set(class_names)) != len(class_names):
                raise ValueError("class_names repeats a name, expected each once")
            num_classes = len(class_names)
        if not isinstance(threshold, (int, float)) or not 0 < threshold < 1:
            raise ValueError(f"threshold={threshold!r}: expected a probability between 0 and 1")
        if ignore_index is not None and not _is_int(ignore_index):
            raise ValueError(f"ignore_index={ignore_index!r}: expected an integer")
        if source is not None and not callable(source):
            check_source(source)
        if not (top_k is None or _is_int(top_k) or isinstance(top_k, (list, tuple, range))):
            raise ValueError(f"top_k={top_k!r}: expected an integer or a list of integers")
        ks = (top_k,) if isinstance(top_k, int) else tuple(top_k or ())
        for k in ks:
            if not _is_int(k) or k < 1 or (num_classes is not None and k > num_classes):
                raise ValueError(f"top_k={top_k!r}: expected 1 to num_classes")
        if not _is_int(max_full_classes) or max_full_classes < 2:
            raise ValueError(f"max_full_classes={max_full_classes!r}: expected 2 or more")
        if not _is_int(per_class) or per_class < 0:
            raise ValueError(f"per_class={per_class!r}: expected 0 or more")
        self.num_classes = num_classes
        self.class_names = class_names
        self.task = task
        self.preds_are = preds_are
        self.threshold = threshold
        self.ignore_index = ignore_index
        self.source = source
        self.top_k = ks
        self.max_full_classes = max_full_classes
        self.per_class = per_class


def check_source(source: Any) -> None:
    """Refuse a `source` that is neither a function nor one of the known forms.

    Raises:
        ValueError: Naming the forms.
    """
    if isinstance(source, str):
        kind, _, rest = source.partition(":")
        names = [name.strip() for name in rest.split(",")]
        if kind == "outputs" and len(names) == 2 and all(names):
            return
        if (kind == "metric" and rest) or source == "loss":
            return
    raise ValueError(
        f"source={source!r}: expected a function of (outputs, batch) that returns (preds, target), "
        "'outputs:PREDS,TARGET', 'metric:NAME' or 'loss'"
    )


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
        logits = {self.logit, self.threshold, self.logit if self.rounded is None else self.rounded}
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
            return [int(low >= (self.logit if cut is None else cut)) for low in edges[:-1]]
        below, cut, above = (
            (-0.5, 0.5, 1.5) if preds_are == "labels" else (_TINY, self.threshold, _ABOVE_ONE)
        )
        return [
            2 if high <= below or low >= above else int(low >= cut) for low, high in pairwise(edges)
        ]

    @property
    def near(self) -> bool:
        """Whether the ignored target has a row by its value."""
        return -_NEAR <= self.ignore_index <= self.classes + _NEAR

    @property
    def classes(self) -> int:
        """Values that a target may have."""
        return self.num_classes if self.task == "multiclass" else 2

    @property
    def rows(self) -> tuple[int, int]:
        """Lowest and highest row, the lowest and highest target that are told apart.

        A target beyond them falls on the last one on its side.
        """
        if not self.near:
            return -1, self.classes + 1  # the ignored one has the row after the one above
        return min(-1, self.ignore_index - 1), max(self.classes, self.ignore_index + 1)

    @property
    def width(self) -> int:
        """Columns: predictions below, of, and above the classes; or between `cuts`, and NaN."""
        return self.num_classes + 2 if self.task == "multiclass" else len(self.cuts) + 2

    @property
    def bins(self) -> int:
        """Length of the flat state."""
        low, high = self.rows
        if self.task == "multiclass" and not self.full:
            return (high - low + 2) + 2 * (self.num_classes + 1)
        labels = self.num_classes if self.task == "multilabel" else 1
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
            task, num_classes, preds_are, threshold, ignore_index, top_k, full, exact, by_batch,
            rounded,
        )  # fmt: skip
        self._rows, self._width, self._near = layout.rows, layout.width, layout.near
        self._cuts = layout.cuts if task != "multiclass" else ()
        # An inference tensor, as made inside trainer.validate(), could not be written in the next
        # fit (torchmetrics#1993).
        with torch.inference_mode(False):
            zeros = torch.zeros(self.layout.bins, dtype=torch.long)
            self.add_state("counts", zeros, dist_reduce_fx="sum")
            self.add_state("hits", torch.zeros(len(top_k), dtype=torch.long), dist_reduce_fx="sum")
            self.register_buffer("_one", torch.ones(1, dtype=torch.long), persistent=False)
            self.register_buffer("_edges", torch.tensor(self._cuts), persistent=False)
            self.kept: list[Tensor] | None = (
                None  # the cells of each batch, where they are asked for
            )
            self._pairs = None if full or task != "multiclass" else _Pairs(num_classes)

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
        cells = self._multiclass if self.layout.task == "multiclass" else self._yes_or_no
        index = cells(preds.detach() if preds.requires_grad else preds, target)
        self.counts.index_add_(0, index, self._one.expand_as(index))
        if self.kept is not None:
            self.kept.append(index)

    def _multiclass(self, preds: Tensor, target: Tensor) -> Tensor:
        c = self.layout.num_classes
        scored = preds.ndim == target.ndim + 1
        if scored and preds.shape[1] != c:
            raise ValueError(f"preds has {preds.shape[1]} classes in dim 1, expected {c}")
        if preds.shape[:1] + preds.shape[1 + scored :] != target.shape:
            raise ValueError(f"preds {tuple(preds.shape)} do not fit target {tuple(target.shape)}")
        p = highest(preds) if scored else preds.long().clamp(-1, c)
        t = target.long()
        if self.layout.top_k and scored:
            self._count_hits(preds, p, t)
        if not self.layout.full:
            return self._vectors(p.reshape(-1), t.reshape(-1))
        return self._cell(p, self._row(t), 1)

    def _row(self, target: Tensor) -> Tensor:
        row = target.clamp(*self._rows)
        return (
            row
            if self._near
            else row.clamp_(max=self._rows[1] - 1).masked_fill_(
                target == self.layout.ignore_index, self._rows[1]
            )
        )

    def _cell(self, column: Tensor, row: Tensor, first: int) -> Tensor:
        index = torch.add(column, row, alpha=self._width)
        index.add_(first - self._rows[0] * self._width)
        return index if index.ndim == 1 else index.reshape(-1)

    def _vectors(self, p: Tensor, t: Tensor) -> Tensor:
        c, (low, high) = self.layout.num_classes, self._rows
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
            preds, target = preds.reshape(-1), target.reshape(-1)
        if preds.shape != target.shape:
            raise ValueError(f"preds {tuple(preds.shape)} do not fit target {tuple(target.shape)}")
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
                raise ValueError(f"preds {tuple(preds.shape)} do not have {labels} labels in dim 1")
            offset = torch.arange(labels, device=index.device)
            offset *= self.layout.bins // tables // labels
            index = index.view(preds.shape).add_(offset.view(-1, *[1] * (preds.ndim - 2)))
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
        column, each = torch.empty_like(preds), torch.empty_like(preds)
        torch.gt(preds, self._cuts[0], out=column)
        for cut in self._cuts[1:]:
            column += torch.gt(preds, cut, out=each)
        if preds.is_floating_point():
            column.add_(torch.ne(preds, preds, out=each), alpha=self._width - 1)
        return column.long()

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
        counts, hits = self.counts.cpu(), self.hits.cpu()
        return read(self.layout, counts, hits, class_names, self.pairs())

    def pairs(self) -> tuple[Tensor, Tensor] | None:
        """Keys ``target * C + pred`` of confused pairs and their counts, if there is no matrix."""
        return self._pairs.counted() if self._pairs is not None else None

    def reset(self) -> None:
        """Start again from zero."""
        with torch.inference_mode(False):
            super().reset()
            if self.kept is not None:
                self.kept = []
            if self._pairs is not None:
                self._pairs.clear()

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Any:
        with torch.inference_mode(False):
            if self._pairs is not None:
                self._pairs.apply(fn)
            return super()._apply(fn, exclude_state)


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
        self.buffer, self.keys, self.counts = fn(self.buffer), fn(self.keys), fn(self.counts)

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


def read(
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
    result.class_names = tuple(class_names) if class_names else tuple(str(i) for i in range(n))
    if result.task == "multilabel":
        assert result.judged is not None
        result.scores = _scores.multilabel(
            result.support, result.predicted, result.true_positives, result.judged
        )
    else:
        result.scores = _scores.multiclass(result.support, result.predicted, result.true_positives)
    for k, found in zip(layout.top_k, hits.tolist(), strict=True):
        result.scores[f"top{k}_accuracy"] = found / result.total if result.total else _scores.NAN
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
    batches, c = len(counts), layout.num_classes
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
        labels = c if layout.task == "multilabel" else 1
        tables = counts.view(batches, 1 + layout.by_batch, labels, -1, layout.width).sum(1)
        rows, *_ = layout.split(tables.flatten(0, 1).transpose(0, 1))  # (2, B * L, columns)
        answered = _answered(rows, layout.answers(preds_are))[:, :, :2]
        matrix = answered.view(batches, labels, 2, 2)
        if layout.task == "multilabel":
            judged = matrix.sum((2, 3))
            return matrix[:, :, 1].sum(2), matrix[:, :, :, 1].sum(2), matrix[:, :, 1, 1], judged
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
    labels = layout.num_classes if layout.task == "multilabel" else 1
    return counts.view(1 + layout.by_batch, labels, -1, layout.width).transpose(1, 2)


def _read_yes_or_no(layout: Layout, counts: Tensor, logits: bool) -> ConfusionResult:
    tables = _tables(layout, counts)
    rows, ignored, out_of_range = layout.split(tables.sum(0))  # (2, L, columns)
    preds_are = layout.preds_are
    if preds_are == "unknown":
        preds_are = "logits" if logits or are_logits(layout, counts) else "probs"
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
            "binary", matrix, matrix.sum(1), matrix.sum(0), matrix.diagonal().clone(), (), **common
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
    rounded = exact if layout.rounded is None else layout.answers("logits", layout.rounded)
    unit = "answer" if layout.task == "multilabel" else "sample"
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


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _listed(values: Sequence[str]) -> str:
    return ", ".join(repr(v) for v in values)
