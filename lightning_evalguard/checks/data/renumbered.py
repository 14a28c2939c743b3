"""Does the model answer in another numbering of the classes than an evaluated set has?

A model that was trained on other numbers is right under them: nearly all samples of each class are
predicted as one and the same class, each class as another one, and some not as themselves. A model
that has learned little does that, too, on tidy data: so training's own scores must say that it
knows the labels which it was trained on, as means of an epoch. Its accuracy is then nearly as high
as the evaluation's under the other numbers; or each loss that it logged is less than `_LOSS` of
each that the evaluation logged. Two classes that are exchanged may be a property of the data, and
say nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from torch import Tensor

from lightning_evalguard.checks.data.loader_facts import RENUMBER
from lightning_evalguard.confusion.result import ConfusionResult
from lightning_evalguard.report import Finding, Report

_SAMPLES = 10  # of a class that is judged
_SHARE = 0.8  # of each class that is predicted as one other
_WHOLE = 0.9  # of all samples that are predicted so
_MOVED = 0.1  # of all samples, that are predicted as another class than their own
_NEARLY = 0.75  # of the way from the accuracy to the one under the other numbers
_LOSS = 0.25
_FEWEST, _MOST = 3, 512  # classes


class Renumbering(NamedTuple):
    """As which class nearly all samples of each class are predicted.

    Attributes:
        classes: Those that have enough samples.
        answers: The class as which each is predicted.
        shares: How much of each is.
        right: The share of all samples that is predicted as their own class.
        answered: The share of all that is predicted so.
    """

    classes: Tensor
    answers: Tensor
    shares: Tensor
    right: float
    answered: float


class LoggedValues(NamedTuple):
    """Single values by key.

    Attributes:
        training: Means of training's last epoch.
        evaluation: Of the evaluation.
    """

    training: Mapping[str, float]
    evaluation: Mapping[str, float]


def renumbered(
    results: Mapping[str, ConfusionResult],
    logged: Callable[[], LoggedValues],
    report: Report,
) -> Iterator[Finding]:
    """What the confusion matrices of an evaluation show.

    Args:
        results: Of each loader.
        logged: Gives what training and the evaluation have logged.
        report: What has been said of the loaders before.
    """
    said = {f.subject for f in report.findings if f.remedy == RENUMBER}
    for key, result in results.items():
        if _name(key) in said or result.matrix is None or result.task != "multiclass":
            continue
        if not _FEWEST <= len(result.matrix) <= _MOST:
            continue
        found = _renumbering(result.matrix)
        if found is not None and _is_learned(found, logged()):
            yield _finding(key, result, found)


def _renumbering(matrix: Tensor) -> Renumbering | None:
    """How the classes are answered otherwise; None where they are not, or not clearly."""
    support = matrix.sum(1)
    total = int(support.sum())
    classes = (support >= _SAMPLES).nonzero().flatten()
    if len(classes) < _FEWEST:
        return None
    most, answers = matrix[classes].max(1)
    shares = most.double() / support[classes]
    if len(set(answers.tolist())) < len(answers) or float(shares.min()) < _SHARE:
        return None
    moved = int(most[answers != classes].sum())
    answered = int(most.sum())
    if answered < _WHOLE * total or moved < _MOVED * total:
        return None
    right = int(matrix.diagonal().sum()) / total
    return Renumbering(classes, answers, shares, right, answered / total)


def _is_learned(found: Renumbering, logged: LoggedValues) -> bool:
    """Whether training's own scores say that the labels which it was trained on are known."""
    least = found.right + _NEARLY * (found.answered - found.right)
    accuracies = _named(logged.training, "acc")
    if accuracies and least <= min(accuracies) and max(accuracies) <= 1:
        return True
    theirs = _named(logged.training, "loss")
    ours = _named(logged.evaluation, "loss")
    return bool(ours and theirs) and 0 <= max(theirs) < _LOSS * min(ours)


def _named(values: Mapping[str, float], word: str) -> list[float]:
    return [value for key, value in values.items() if word in key.lower()]


def _name(key: str) -> str:
    """Of the loader whose matrix is kept under this key."""
    split, _, loader = key.partition("/")
    index = loader.rpartition("_")[2]
    return f"{split}_dataloader[{index}]" if loader else f"{split}_dataloader"


def _finding(key: str, result: ConfusionResult, found: Renumbering) -> Finding:
    moved = (found.answers != found.classes).nonzero().flatten().tolist()
    names = result.class_names

    def said(k: int) -> str:
        one, other = int(found.classes[k]), int(found.answers[k])
        return f"{found.shares[k]:.0%} of {names[one]!r} as {names[other]!r}"

    listed = ", ".join(map(said, moved[:2]))
    fact = (
        f"the model predicts {listed}, and so {len(moved)} of {len(found.classes)} classes as one "
        "other class each, expected its classes numbered as in training"
    )
    return Finding(
        check="data",
        stage="test" if key.startswith("test") else "validate",
        fact=fact,
        remedy=RENUMBER,
        subject=_name(key),
        epoch=result.epoch,
        step=result.step,
        certain=False,
    )


__all__ = ["LoggedValues", "renumbered"]
