"""Scores of one class each, averaged over batches: of which score of which class they are made."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_evalguard.checks.scores.summaries import by_chance
from lightning_evalguard.confusion.by_batch import Batches, exactly, mean_of
from lightning_evalguard.confusion.differences import Counts, close
from lightning_evalguard.confusion.result import ConfusionResult
from lightning_evalguard.confusion.scores import per_class
from lightning_evalguard.data.loaders import Fact

_FAMILIES = {"recall": "recall", "precision": "precision", "f1": "F1", "iou": "IoU"}
_MOST_CLASSES = 100
_BY_CHANCE = 0.01  # how likely it may be that some class's score is the logged one
_SPEAKS_OF_ONE = re.compile(
    r"acc|recall|prec|f1|f_?score|sensitiv|tpr|ppv|class|cls|dice|iou|jaccard",
    re.IGNORECASE,
)
_METRIC = (
    'Update a torchmetrics object with average="none" in each step, and log what it computes when '
    "the epoch ends."
)


class ClassWise(NamedTuple):
    """A logged value that is the mean of batches' scores of one class.

    Attributes:
        key: Under which it was logged.
        value: The value.
        of: Which score: recall, precision, F1 or IoU.
        label: The class.
        right: That score of all samples.
        batches: How many batches it is a mean of.
        location: Where it was logged.
    """

    key: str
    value: float
    of: str
    label: int
    right: float
    batches: int
    location: str | None


class Averaged(NamedTuple):
    """A logged value, and what each step gave of it.

    Attributes:
        key: Under which it was logged.
        value: What came of it.
        values: What each step logged; empty where it was logged after the steps.
        weights: How those were weighed.
        steps: In which steps.
        location: Where it was logged.
    """

    key: str
    value: float
    values: Sequence[float]
    weights: Sequence[float]
    steps: Sequence[int]
    location: str | None


def is_a_score(value: float, result: Counts) -> bool:
    """Whether a value is a score of all classes or of one."""
    each = per_class(
        result.support, result.predicted, result.true_positives, result.judged
    )
    every = [*result.scores.values(), *(v for scores in each for v in scores.tolist())]
    return any(close(value, score) for score in every)


def class_wise(
    logged: Averaged, batches: Batches, result: ConfusionResult, samples: Sequence[int]
) -> ClassWise | None:
    """Of which class's score in each batch a value is the mean, if it is one.

    Batches of pixels or tokens are left alone: a mean over images is a score of its own.

    Args:
        logged: The value. What the steps logged of it must be the class's score in each of them;
            after the steps, its key must speak of a score or a class.
        batches: What each batch counted.
        result: What all of them counted.
        samples: How many samples each batch had.
    """
    margins = batches.margins()
    if margins is None or by_chance(logged.value) or is_a_score(logged.value, result):
        return None
    support = margins[0]
    few = len(support) < 2 or not 1 < support.shape[1] <= _MOST_CLASSES
    one_each = result.task == "multilabel" or support.sum(1).tolist() == list(samples)
    if few or not one_each:
        return None
    each = _scores_of(*margins)
    totals = result.support, result.predicted, result.true_positives, result.judged
    whole = _scores_of(*totals)
    predicted = margins[1]
    exists = {"recall": support, "precision": predicted}
    for family, words in _FAMILIES.items():
        scores = each[family]
        many = exists.get(family, support + predicted)
        label = None
        if logged.values:
            label = _same_in_each(logged, scores, many)
        elif _SPEAKS_OF_ONE.search(logged.key):
            label = _mean_of_one(logged.value, scores, many > 0)
        if label is not None:
            of_all = float(whole[family][label])
            n = len(logged.values) or len(scores)
            return ClassWise(
                logged.key, logged.value, words, label, of_all, n, logged.location
            )
    return None


def _scores_of(
    support: Tensor, predicted: Tensor, right: Tensor, judged: Tensor | None
) -> dict[str, Tensor]:
    each = per_class(support, predicted, right, judged)
    scores = {"recall": each.recall, "precision": each.precision, "f1": each.f1}
    return scores | {"iou": each.f1 / (2 - each.f1)}


def _same_in_each(logged: Averaged, scores: Tensor, many: Tensor) -> int | None:
    """The class whose score is, in each step, what the step logged.

    Args:
        logged: The value.
        scores: Of each step and class.
        many: Of how many samples each of them is a share.
    """
    steps = logged.steps
    if len(steps) < 2 or len(steps) != len(logged.weights) or steps[-1] >= len(scores):
        return None
    if not exactly(logged.value, mean_of(logged.values, logged.weights)):
        return None  # what the steps logged is not what came of it
    given = torch.tensor(logged.values, dtype=torch.float64)
    same = ((scores[list(steps)] - given[:, None]).abs() < 1e-6).all(0)
    if not same.any() or given.max() - given.min() < 1e-6:
        return None
    label = int(same.nonzero()[0])
    # another share of a few samples may be the same one in each step
    chance = float((1 / (1 + many[list(steps), label].double())).prod())
    if chance * scores.shape[1] * len(_FAMILIES) > _BY_CHANCE:
        return None
    return label


def _mean_of_one(value: float, scores: Tensor, exists: Tensor) -> int | None:
    """The class whose scores, of all batches or of those that have it, have this mean."""
    in_all = scores.mean(0)
    in_those = (scores * exists).sum(0) / exists.sum(0).clamp(min=1)
    for label, means in enumerate(zip(in_all.tolist(), in_those.tolist(), strict=True)):
        spread = scores[:, label].max() - scores[:, label].min()
        if spread > 1e-6 and any(exactly(value, mean) for mean in means):
            return label
    return None


def fact_of(found: Sequence[ClassWise]) -> list[Fact]:
    """One finding of all the keys that are made in this way."""
    if not found:
        return []
    first = found[0]
    others = ""
    if len(found) > 1:
        named = [f"`{one.key}`" for one in found[1:4]]
        more = ", ..." if len(found) > 4 else ""
        others = f" ({', '.join(named)}{more} are made in the same way)"
    fact = (
        f"is {first.value:.4f}, the mean of {first.batches} batches' {first.of} of class "
        f"{first.label}; all samples give {first.right:.4f}{others}"
    )
    return [Fact(fact, _METRIC, first.key, location=first.location, certain=False)]
