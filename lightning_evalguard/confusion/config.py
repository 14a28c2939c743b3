"""What the user may say of the confusion matrix: what it is counted from, and how."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

from lightning_evalguard.confusion.result import Task
from lightning_evalguard.hints import did_you_mean, names_keywords

PredsAre = Literal["logits", "probs", "labels"]

_PER_CLASS = 20  # classes up to which the F1 of each is computed
# What is logged by default: at most eight of one task, and what is asked for by `top_k`.
_LOGGED: dict[Task, tuple[str, ...]] = {
    "binary": (
        "accuracy", "balanced_accuracy", "precision", "recall", "f1", "specificity", "f1_macro",
        "mcc",
    ),
    "multiclass": (
        "accuracy", "balanced_accuracy", "precision_macro", "recall_macro", "f1_macro",
        "f1_weighted", "mcc", "kappa", "top*_accuracy",
    ),
    "multilabel": (
        "accuracy", "hamming_accuracy", "precision_micro", "recall_micro", "f1_micro",
        "precision_macro", "recall_macro", "f1_macro",
    ),
}  # fmt: skip
_KNOWN = frozenset(
    {
        *itertools.chain(*_LOGGED.values()),
        "precision_weighted",
        "recall_weighted",
        "f1_weighted",
        "specificity_macro",
        "specificity_weighted",
        "recall_min",
        "majority_baseline",
    }
)


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
        scores: Which scores are logged, as names or glob patterns: ``["accuracy", "f1_class/*"]``,
            ``["*"]``. By default eight: accuracy, balanced accuracy, macro precision, recall and
            F1, weighted F1, MCC and kappa; of a binary task precision, recall, F1 and specificity
            of the positive class in the place of the macro and weighted ones and kappa, but for
            macro F1. All stand in ``result.scores`` in any case; what a
            callback or a scheduler monitors is logged too.
        per_class: Log the F1 of each class where there are at most this many classes; by default
            they are computed up to 20 classes, and not logged.

    Raises:
        ValueError: For an argument out of its range, naming it.

    Example:
        >>> config = ConfusionMetrics(class_names=["ham", "spam"], source="outputs:logits,y")
        >>> config.num_classes
        2
    """

    @names_keywords
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
        scores: Sequence[str] | None = None,
        per_class: int | None = None,
    ) -> None:
        _check_kinds(task, preds_are)
        least = 2
        if task == "multilabel":
            least = 1
        if num_classes is not None and (
            not _is_int(num_classes) or num_classes < least
        ):
            raise ValueError(
                f"num_classes={num_classes!r}: expected an integer of {least} or more"
            )
        if task == "binary" and num_classes not in (None, 2):
            raise ValueError(
                f"num_classes={num_classes!r}: expected 2 with task='binary'"
            )
        if class_names is not None:
            expected = num_classes or (2 if task == "binary" else None)
            class_names = _checked_names(class_names, expected, least)
            num_classes = len(class_names)
        _check_pairs(threshold, ignore_index, source)
        ks = _checked_ranks(top_k, num_classes)
        _check_sizes(max_full_classes, per_class)
        self.num_classes = num_classes
        self.class_names = class_names
        self.task = task
        self.preds_are = preds_are
        self.threshold = threshold
        self.ignore_index = ignore_index
        self.source = source
        self.top_k = ks
        self.max_full_classes = max_full_classes
        self.per_class = _PER_CLASS if per_class is None else per_class
        self.scores = None if scores is None else _checked_scores(scores)
        self._asks_per_class = per_class is not None

    def logs(self, score: str, task: Task) -> bool:
        """Whether a score of a task is logged, as far as this says it.

        Example:
            >>> ConfusionMetrics().logs("mcc", "binary")
            True
            >>> ConfusionMetrics(scores=["f1_*"]).logs("mcc", "binary")
            False
        """
        if (
            self.scores is None
            and self._asks_per_class
            and score.startswith("f1_class/")
        ):
            return True
        patterns = _LOGGED[task] if self.scores is None else self.scores
        return any(fnmatchcase(score, pattern) for pattern in patterns)


def check_metrics(given: Any) -> None:
    """Refuse what does not say what to count.

    Raises:
        ValueError: Naming the argument and what it takes.
    """
    asked = isinstance(given, ConfusionMetrics)
    if given is not None and given != "auto" and not asked:
        raise ValueError(
            f"metrics={given!r}: expected 'auto', a ConfusionMetrics or None"
        )


def _check_kinds(task: Any, preds_are: Any) -> None:
    if task is not None and task not in get_args(Task):
        raise ValueError(f"task={task!r}: expected one of {_listed(get_args(Task))}")
    if preds_are is not None and preds_are not in get_args(PredsAre):
        raise ValueError(
            f"preds_are={preds_are!r}: expected one of {_listed(get_args(PredsAre))}"
        )


def _check_pairs(threshold: Any, ignore_index: Any, source: Any) -> None:
    if not isinstance(threshold, (int, float)) or not 0 < threshold < 1:
        raise ValueError(
            f"threshold={threshold!r}: expected a probability between 0 and 1"
        )
    if ignore_index is not None and not _is_int(ignore_index):
        raise ValueError(f"ignore_index={ignore_index!r}: expected an integer")
    if source is not None and not callable(source):
        check_source(source)


def _check_sizes(max_full_classes: Any, per_class: Any) -> None:
    if not _is_int(max_full_classes) or max_full_classes < 2:
        raise ValueError(f"max_full_classes={max_full_classes!r}: expected 2 or more")
    if per_class is not None and (not _is_int(per_class) or per_class < 0):
        raise ValueError(f"per_class={per_class!r}: expected 0 or more")


def _checked_scores(given: Any) -> tuple[str, ...]:
    """The names and patterns of the scores that are logged."""
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
        raise ValueError(f"scores={given!r}: expected a list of names or patterns")
    listed = list(given)
    for name in listed:
        if not isinstance(name, str):
            raise ValueError(f"scores={listed!r}: expected a list of names or patterns")
        known = (
            name in _KNOWN or fnmatchcase(name, "top*_accuracy") or "_class/" in name
        )
        if not known and not set("*?[") & set(name):
            raise ValueError(
                f"scores: {name!r} is no score{did_you_mean(name, _KNOWN)}"
            )
    return tuple(listed)


def _checked_names(names: Any, expected: int | None, least: int) -> tuple[str, ...]:
    """The names of the classes, so many as are expected, each once."""
    if not isinstance(names, Sequence) or isinstance(names, (str, bytes)):
        raise ValueError(
            f"class_names={names!r}: expected a list of names, in the order of the class indices"
        )
    listed = tuple(str(name) for name in names)
    if expected is not None and len(listed) != expected:
        raise ValueError(
            f"class_names has {len(listed)} names, expected {expected} (num_classes={expected})"
        )
    if len(listed) < least:
        raise ValueError(
            f"class_names has {len(listed)} names, expected {least} or more"
        )
    if len(set(listed)) != len(listed):
        raise ValueError("class_names repeats a name, expected each once")
    return listed


def _checked_ranks(top_k: Any, num_classes: int | None) -> tuple[int, ...]:
    """The numbers of best classes that are asked for."""
    if not (top_k is None or _is_int(top_k) or isinstance(top_k, (list, tuple, range))):
        raise ValueError(f"top_k={top_k!r}: expected an integer or a list of integers")
    ks = (top_k,) if isinstance(top_k, int) else tuple(top_k or ())
    for k in ks:
        if not _is_int(k) or k < 1 or (num_classes is not None and k > num_classes):
            raise ValueError(f"top_k={top_k!r}: expected 1 to num_classes")
    return ks


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


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _listed(values: Sequence[str]) -> str:
    return ", ".join(repr(v) for v in values)
