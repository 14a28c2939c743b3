"""Every score that follows from support, predicted and true positives, in float64 on the host.

The averaging is always in the name. Where a definition leaves a choice, it is this one:

- *0/0 is 0.0*, as in scikit-learn and torchmetrics: a class never predicted has precision 0.0.
- *Absent classes are left out of macro averages*: a class that is neither in the targets nor among
  the predictions says nothing about the model. One that is predicted but never in the targets
  counts with 0.0 in ``*_macro`` (each of those predictions is wrong), as in scikit-learn.
  ``balanced_accuracy`` averages the recall of classes that are in the targets.
- *An empty epoch is NaN*, in every score.
- *MCC and Cohen's kappa are 0.0 where their denominator is 0* (a single class on either side):
  nothing is explained beyond chance.
- *Weighted* means weighted by support, so ``recall_weighted`` equals ``accuracy``.
- *With two classes* ``precision``, ``recall``, ``f1`` and ``specificity``, without a suffix, are
  those of class 1, the positive one.

float64 because float32 loses the products: torchmetrics returns an MCC of 0.0 where it is 0.971
once a class has some 10^5 samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

NAN = float("nan")


class PerClass(NamedTuple):
    """Scores of each class, float64 of shape ``(C,)``."""

    precision: Tensor
    recall: Tensor
    f1: Tensor
    specificity: Tensor


def per_class(
    support: Tensor,
    predicted: Tensor,
    true_positives: Tensor,
    total: Tensor | int | None = None,
) -> PerClass:
    """Precision, recall, F1 and specificity of each class; 0/0 is 0.0.

    Args:
        support: Samples of each class in the targets, ``(C,)``.
        predicted: Samples predicted as each class, ``(C,)``.
        true_positives: Samples of each class predicted as such, ``(C,)``.
        total: Samples judged for each class; by default all, the sum of `support`.

    Example:
        >>> counts = torch.tensor([160, 40]), torch.tensor([164, 36]), torch.tensor([154, 30])
        >>> [round(x[1].item(), 4) for x in per_class(*counts)]
        [0.8333, 0.75, 0.7895, 0.9625]
    """
    n = support.sum() if total is None else torch.as_tensor(total)
    s = support.double()
    p = predicted.double()
    tp = true_positives.double()
    negatives = n.double() - s
    return PerClass(
        precision=_ratio(tp, p),
        recall=_ratio(tp, s),
        f1=_ratio(2 * tp, s + p),
        specificity=_ratio(negatives - (p - tp), negatives),
    )


def multiclass(
    support: Tensor, predicted: Tensor, true_positives: Tensor
) -> dict[str, float]:
    """Scores over all classes, each sample having one target and one prediction.

    Args:
        support: Samples of each class in the targets, ``(C,)``.
        predicted: Samples predicted as each class, ``(C,)``.
        true_positives: Samples of each class predicted as such, ``(C,)``.

    Returns:
        ``accuracy``, ``balanced_accuracy``, ``precision_macro``, ``recall_macro``, ``f1_macro``,
        ``specificity_macro``, ``precision_weighted``, ``f1_weighted``, ``specificity_weighted``,
        ``mcc``, ``kappa``, ``majority_baseline`` (the accuracy of always answering the most
        frequent class) and ``recall_min`` (the lowest among classes with support). With two
        classes also ``precision``, ``recall``, ``f1`` and ``specificity`` of class 1.

    Example:
        >>> counts = torch.tensor([160, 40]), torch.tensor([164, 36]), torch.tensor([154, 30])
        >>> result = multiclass(*counts)
        >>> [round(result[k], 4) for k in ("accuracy", "recall", "precision", "f1")]
        [0.92, 0.75, 0.8333, 0.7895]
    """
    each = per_class(support, predicted, true_positives)
    s = support.double()
    p = predicted.double()
    n = s.sum()
    right = true_positives.double().sum()
    counted = (s + p) > 0
    present = s > 0
    # NaN in an empty epoch, like every other quotient by `n` below
    observed = right / n
    mcc, kappa = _chance_corrected(support, predicted, true_positives)
    result = {
        "accuracy": observed,
        "balanced_accuracy": _mean(each.recall, present),
        "precision_macro": _mean(each.precision, counted),
        "recall_macro": _mean(each.recall, counted),
        "f1_macro": _mean(each.f1, counted),
        "specificity_macro": _mean(each.specificity, counted),
        "precision_weighted": (each.precision * s).sum() / n,
        "recall_weighted": observed,
        "f1_weighted": (each.f1 * s).sum() / n,
        "specificity_weighted": (each.specificity * s).sum() / n,
        "mcc": mcc,
        "kappa": kappa,
        "majority_baseline": s.max() / n,
        "recall_min": each.recall[present].min() if present.any() else NAN,
    }
    if len(support) == 2:
        for name, values in each._asdict().items():
            result[name] = values[1]
            if n <= 0:
                result[name] = NAN
    return {name: float(value) for name, value in result.items()}


def multilabel(
    support: Tensor, predicted: Tensor, true_positives: Tensor, total: Tensor
) -> dict[str, float]:
    """Scores over all labels, each of which is a yes-or-no question of its own.

    Args:
        support: Samples that have each label, ``(L,)``.
        predicted: Samples predicted to have each label, ``(L,)``.
        true_positives: Samples rightly predicted to have each label, ``(L,)``.
        total: Samples judged for each label, ``(L,)``: they differ where targets are ignored.

    Returns:
        ``hamming_accuracy`` (the share of answers that are right), ``precision``, ``recall`` and
        ``f1`` as ``_macro``, ``_micro`` and ``_weighted``, ``specificity_macro`` and ``recall_min``
        (the lowest among labels with support).
    """
    each = per_class(support, predicted, true_positives, total)
    s = support.double()
    p = predicted.double()
    tp = true_positives.double()
    answers = total.double().sum()
    counted = (s + p) > 0
    present = s > 0
    micro = per_class(s.sum(), p.sum(), tp.sum(), answers)
    result = {
        "hamming_accuracy": 1 - ((s - tp) + (p - tp)).sum() / answers,
        "specificity_macro": _mean(each.specificity, total > 0),
        "recall_min": each.recall[present].min() if present.any() else NAN,
    }
    for name in ("precision", "recall", "f1"):
        x = getattr(each, name)
        result[f"{name}_macro"] = _mean(x, counted)
        result[f"{name}_micro"] = getattr(micro, name) if answers > 0 else NAN
        result[f"{name}_weighted"] = (
            _ratio((x * s).sum(), s.sum()) if answers > 0 else NAN
        )
    return {name: float(value) for name, value in result.items()}


def named(name: str, values: Tensor, class_names: Sequence[str]) -> dict[str, float]:
    """One score of each class under ``<name>_class/<class name>``."""
    return {
        f"{name}_class/{c}": v
        for c, v in zip(class_names, values.tolist(), strict=True)
    }


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b > 0, a / b.clamp(min=1), 0.0)


def _mean(x: Tensor, where: Tensor) -> Tensor | float:
    if where.any():
        return x[where].mean()
    return NAN


def _chance_corrected(
    support: Tensor, predicted: Tensor, hits: Tensor
) -> tuple[float, float]:
    """Matthews' correlation (Gorodkin's R_K) and Cohen's kappa, from exact integers."""
    s = support.tolist()
    p = predicted.tolist()
    n = sum(s)
    right = sum(hits.tolist())
    if n == 0:
        return NAN, NAN
    by_chance = sum(a * b for a, b in zip(s, p, strict=True))
    gain = right * n - by_chance
    spread = (n * n - sum(a * a for a in s)) * (n * n - sum(b * b for b in p))
    room = n * n - by_chance
    return (gain / math.sqrt(spread) if spread else 0.0), (gain / room if room else 0.0)
