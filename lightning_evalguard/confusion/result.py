"""What one evaluation counted: the matrix, its scores, and how they read in a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from lightning_evalguard.confusion import differences as _differences
from lightning_evalguard.confusion import intervals as _intervals
from lightning_evalguard.confusion import scores as _scores
from lightning_evalguard.confusion import text as _text
from lightning_evalguard.confusion.differences import Difference, Misread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

Task = Literal["binary", "multiclass", "multilabel"]


class Confused(NamedTuple):
    """One cell off the diagonal: `count` samples of `true` were predicted as `predicted`.

    ``share`` is relative to all samples of `true`. Of a multilabel task, one label: `true` is the
    label and `predicted` is ``missed`` or ``false alarm``.
    """

    true: str
    predicted: str
    count: int  # type: ignore[assignment]
    share: float


@dataclass(eq=False)
class ConfusionResult:
    """Confusion matrix and scores of one evaluation.

    Attributes:
        task: ``binary``, ``multiclass`` or ``multilabel``.
        matrix: Counts ``(C, C)``, int64 on the CPU: rows the targets, columns the predictions;
            ``(L, 2, 2)`` for a multilabel task; None above ``max_full_classes``.
        support: Samples of each class in the targets, ``(C,)``.
        predicted: Samples predicted as each class, ``(C,)``.
        true_positives: Samples of each class predicted as such, ``(C,)``.
        class_names: One name a class.
        ignored: Targets equal to ``ignore_index``; not counted elsewhere.
        out_of_range: Targets outside the classes; not counted elsewhere.
        nan_preds: Predictions that are NaN; not counted elsewhere.
        unusable_preds: Predictions that are no class, or no probability; not counted elsewhere.
        preds_are: ``logits``, ``probs`` or ``labels``: what the scores were taken for.
        scores: Every score by name, see `lightning_evalguard.confusion.scores`.
        source: Where predictions and targets came from.
        epoch: Trainer's epoch, where known.
        step: Trainer's global step, where known.
    """

    task: Task
    matrix: Tensor | None
    support: Tensor
    predicted: Tensor
    true_positives: Tensor
    class_names: tuple[str, ...]
    ignored: int = 0
    out_of_range: int = 0
    nan_preds: int = 0
    unusable_preds: int = 0
    preds_are: str = "labels"
    scores: dict[str, float] = field(default_factory=dict)
    source: str = ""
    epoch: int | None = None
    step: int | None = None
    pairs: tuple[Tensor, Tensor] | None = field(default=None, repr=False)
    judged: Tensor | None = field(default=None, repr=False)
    misread: tuple[Misread, ...] = field(default=(), repr=False)
    # of each sample, not saved
    right: Tensor | None = field(default=None, init=False, repr=False)
    _intervals: dict[str, tuple[float, float]] | None = field(
        default=None, init=False, repr=False
    )

    @property
    def total(self) -> int:
        """Samples in the matrix (answers, for a multilabel task)."""
        return int((self.support if self.judged is None else self.judged).sum())

    @property
    def num_classes(self) -> int:
        """Number of classes, or of labels."""
        return len(self.support)

    def interval(self, score: str) -> tuple[float, float]:
        """The 95 % interval of a score, from the counts alone.

        Args:
            score: A name in `scores`, or a class's score, ``recall_class/<class name>``.

        Returns:
            Low and high; NaN where nothing was counted.

        Raises:
            ValueError: If there is no such score.

        Example:
            >>> from lightning_evalguard.confusion.matrix import ConfusionMatrix
            >>> confmat = ConfusionMatrix(2)
            >>> confmat.update(torch.tensor([0, 1, 1, 1]), torch.tensor([0, 1, 1, 0]))
            >>> [round(bound, 2) for bound in confmat.result().interval("accuracy")]
            [0.3, 0.95]
        """
        found = self.intervals.get(score) or _intervals.of_class(self, score)
        if found is None:
            raise ValueError(
                f"interval({score!r}): expected one of {', '.join(self.scores)}"
            )
        return found

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """The 95 % interval of every score in `scores`, computed when it is first asked for."""
        if self._intervals is None:
            self._intervals = _intervals.of_result(self)
        return self._intervals

    def most_confused(self, k: int = 5) -> list[Confused]:
        """The `k` largest cells off the diagonal, largest first.

        Example:
            >>> from lightning_evalguard.confusion.matrix import ConfusionMatrix
            >>> confmat = ConfusionMatrix(3)
            >>> confmat.update(torch.tensor([0, 1, 1, 1]), torch.tensor([0, 1, 2, 2]))
            >>> confmat.result(["cat", "dog", "fox"]).most_confused(1)
            [Confused(true='fox', predicted='dog', count=2, share=1.0)]
        """
        if self.task == "multilabel":
            return self._most_wrong_answers(k)
        if self.pairs is not None:
            keys, counts = self.pairs
            cells = [(int(keys[i]), count) for i, count in _largest(counts, k)]
        elif self.matrix is not None:
            cells = _largest((self.matrix - self.matrix.diag().diag()).flatten(), k)
        else:
            cells = []
        names = self.class_names
        confused = []
        for cell, count in cells:
            true, predicted = divmod(cell, self.num_classes)
            share = count / int(self.support[true])
            confused.append(Confused(names[true], names[predicted], count, share))
        return confused

    def _most_wrong_answers(self, k: int) -> list[Confused]:
        """Of a multilabel task: a label's missed answers and its false alarms."""
        assert self.judged is not None
        missed = self.support - self.true_positives
        false_alarms = self.predicted - self.true_positives
        wrong = torch.stack((missed, false_alarms), dim=1).flatten()
        of = torch.stack((self.support, self.judged - self.support), dim=1).flatten()
        answers = []
        for cell, count in _largest(wrong, k):
            label, is_false_alarm = divmod(cell, 2)
            what = ("missed", "false alarm")[is_false_alarm]
            share = count / max(1, int(of[cell]))
            answers.append(Confused(self.class_names[label], what, count, share))
        return answers

    def table(self) -> list[dict[str, Any]]:
        """One row a class: ``class``, ``support``, ``predicted``, scores, and what it is taken for.

        ``confused_with`` is the class that most of its errors went to, ``confused`` how many did;
        ``precision_low`` and ``precision_high`` are the 95 % interval, and so on.
        """
        each = _scores.per_class(
            self.support, self.predicted, self.true_positives, self.judged
        )
        worst = self._worst_by_class()
        confused = [worst.get(i, ("", 0)) for i in range(self.num_classes)]
        columns = {
            "class": self.class_names,
            "support": self.support.tolist(),
            "predicted": self.predicted.tolist(),
            "precision": each.precision.tolist(),
            "recall": each.recall.tolist(),
            "f1": each.f1.tolist(),
            "specificity": each.specificity.tolist(),
            "confused_with": [name for name, _ in confused],
            "confused": [count for _, count in confused],
            **_bounds(self),
        }
        rows = zip(*columns.values(), strict=True)
        return [dict(zip(columns, row, strict=True)) for row in rows]

    def _worst_by_class(self) -> dict[int, tuple[str, int]]:
        names = self.class_names
        n = self.num_classes
        if self.task == "multilabel":
            return {}
        if self.pairs is not None:
            worst: dict[int, tuple[str, int]] = {}
            for key, m in zip(*(x.tolist() for x in self.pairs), strict=True):
                if m > worst.get(key // n, ("", 0))[1]:
                    worst[key // n] = names[key % n], m
            return worst
        if self.matrix is None:
            return {}
        count, column = (self.matrix - self.matrix.diag().diag()).max(dim=1)
        rows = zip(count.tolist(), column.tolist(), strict=True)
        return {i: (names[j], m) for i, (m, j) in enumerate(rows) if m}

    def plot(self, title: str = "", **kwargs: Any) -> tuple[Figure, Axes]:
        """Draw the matrix; see `lightning_evalguard.confusion.figure.figure` for the keywords.

        Returns:
            The figure, which pyplot does not know, so that there is nothing to close, and its axes.
        """
        from lightning_evalguard.confusion.figure import figure

        drawn = figure(self, title, **kwargs)
        return drawn, drawn.axes[0]

    def to_pandas(self) -> DataFrame:
        """The `table` as a data frame, with the classes as its index.

        Raises:
            ModuleNotFoundError: Where pandas is not installed.
        """
        try:
            import pandas
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "to_pandas() needs pandas: run `pip install pandas`, or take table()"
            ) from error
        return pandas.DataFrame(self.table()).set_index("class")

    @property
    def insight(self) -> str:
        """What the accuracy hides, in one line; empty where it hides nothing."""
        return _insight(self)

    def difference(self, score: str, theirs: float, why: str = "") -> str:
        """How a value that the module logs under a score's name differs from ours, and why.

        Args:
            score: A name in `scores`.
            theirs: The module's value.
            why: What is known of how the module got it.

        Returns:
            The fact, with the reason where one is known; empty where both agree.

        Example:
            >>> from lightning_evalguard.confusion.matrix import ConfusionMatrix
            >>> confmat = ConfusionMatrix(3)
            >>> confmat.update(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 2]))
            >>> print(confmat.result().difference("accuracy", 75.0))
            is 75.0000, expected 0.7500 (accuracy); it is in percent
        """
        return self.explained(score, theirs, why).fact

    def explained(
        self, score: str, theirs: float, why: str = "", remedy: str = ""
    ) -> Difference:
        """As `difference`, and what to do about it."""
        return _differences.difference(self, self.misread, score, theirs, why, remedy)

    def problems(self) -> list[str]:
        """One sentence for each kind of sample that could not be counted."""
        what = "class"
        if self.task == "multilabel":
            what = "label"
        out_of_range = f"target{{s}} outside the {self.num_classes} {what}es"
        unusable = f"prediction{{s}} outside the {self.num_classes} {what}es"
        if self.preds_are == "probs":
            unusable = "prediction{s} outside [0, 1]"
        said = (
            (self.out_of_range, out_of_range),
            (self.nan_preds, "prediction{s} that {are} NaN"),
            (self.unusable_preds, unusable),
        )
        return [_numbered(number, text) for number, text in said if number]

    def __str__(self) -> str:
        return _text.shown_text(self)

    def _repr_html_(self) -> str:
        """The matrix and the scores of each class, for notebooks."""
        from lightning_evalguard.views.page import result_frame

        return result_frame(self)

    def to_dict(self) -> dict[str, Any]:
        """The result as plain data that ``json.dumps`` takes."""
        return {
            "task": self.task,
            "class_names": list(self.class_names),
            "matrix": None if self.matrix is None else self.matrix.tolist(),
            "support": self.support.tolist(),
            "predicted": self.predicted.tolist(),
            "true_positives": self.true_positives.tolist(),
            "total": self.total,
            "ignored": self.ignored,
            "out_of_range": self.out_of_range,
            "nan_preds": self.nan_preds,
            "unusable_preds": self.unusable_preds,
            "preds_are": self.preds_are,
            "scores": {score: _finite(v) for score, v in self.scores.items()},
            "intervals": {
                score: list(map(_finite, ends))
                for score, ends in self.intervals.items()
            },
            "most_confused": [pair._asdict() for pair in self.most_confused(20)],
            "source": self.source,
            "epoch": self.epoch,
            "step": self.step,
            "pairs": None if self.pairs is None else [x.tolist() for x in self.pairs],
            "judged": None if self.judged is None else self.judged.tolist(),
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> ConfusionResult:
        """The result that `to_dict` made `plain` of."""
        given = {
            f.name: plain[f.name] for f in fields(cls) if f.init and f.name in plain
        }
        for name in ("matrix", "support", "predicted", "true_positives", "judged"):
            if given.get(name) is not None:
                given[name] = torch.tensor(given[name], dtype=torch.int64)
        if given.get("pairs") is not None:
            keys, counts = (torch.tensor(x, dtype=torch.int64) for x in given["pairs"])
            given["pairs"] = keys, counts
        given["class_names"] = tuple(given["class_names"])
        scores = dict(given["scores"])
        for score, value in scores.items():
            if value is None:  # JSON has no NaN
                scores[score] = math.nan
        given["scores"] = scores
        return cls(**given)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ConfusionResult):
            return NotImplemented
        return self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]  # it holds tensors


def _numbered(number: int, text: str) -> str:
    plural, are = "", "is"
    if number > 1:
        plural, are = "s", "are"
    return f"{number:,} " + text.format(s=plural, are=are)


def _finite(value: float) -> float | None:
    if not math.isfinite(value):
        return None
    return value


def _bounds(result: ConfusionResult) -> dict[str, list[float]]:
    """Columns of the low and the high end of each class's intervals."""
    columns: dict[str, list[float]] = {}
    for score, (low, high) in _intervals.per_class_intervals(result)._asdict().items():
        columns[f"{score}_low"], columns[f"{score}_high"] = low.tolist(), high.tolist()
    return columns


def _insight(result: ConfusionResult) -> str:
    s = result.scores
    if result.task == "multilabel" or not result.total:
        return ""
    recall = _scores.per_class(
        result.support, result.predicted, result.true_positives
    ).recall
    seen = result.support > 0
    if int(seen.sum()) < 2:
        return ""
    lowest = int(torch.where(seen, recall, 2.0).argmin())
    name = f"recall of `{result.class_names[lowest]}` is {recall[lowest]:.2f}"
    accuracy = s["accuracy"]
    baseline = s["majority_baseline"]
    if accuracy <= baseline + 5e-4:
        than = "is below"
        if accuracy >= baseline - 5e-4:
            than = "equals"
        return f"accuracy {accuracy:.3f} {than} the majority baseline {baseline:.3f}; {name}"
    # Accuracy is the mean recall of classes of one size: only a small class can hide in it.
    small = int(result.support[lowest]) < result.total / int(seen.sum()) / 2
    if small and accuracy - float(recall[lowest]) > 0.15:
        return f"accuracy {accuracy:.3f} hides that {name}"
    return ""


def _largest(counts: Tensor, k: int) -> list[tuple[int, int]]:
    top = counts.topk(min(k, len(counts)))
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return sorted(((i, m) for i, m in pairs if m > 0), key=lambda x: (-x[1], x[0]))
