"""A logged value beside the matrix: which scores its key may mean, and which one it is."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lightning_evalguard.confusion import scores as _scores


class Counts(Protocol):
    """What is read of a `ConfusionResult`."""

    scores: dict[str, float]
    support: Tensor
    predicted: Tensor
    true_positives: Tensor
    matrix: Tensor | None
    judged: Tensor | None

    @property
    def task(self) -> str:
        """``binary``, ``multiclass`` or ``multilabel``."""


# --- what a key claims --------------------------------------------------------------------------

_WORD = re.compile(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*|\d+|[^\sA-Za-z\d_./\-]+")
_STAGES = {
    "val": "val", "valid": "val", "validation": "val", "validate": "val", "dev": "val",
    "eval": "", "evaluation": "", "test": "test", "testing": "test",
}  # fmt: skip
_MEANS_NOTHING = {"score", "scores", "epoch", "metric", "metrics", "overall"} | {
    "multiclass", "binary", "multilabel", "classification", "hamming", "cohen", "corr",
    "coef", "coefficient",
}  # fmt: skip
_FAMILIES = {
    "acc": "accuracy", "accuracy": "accuracy", "acc1": "accuracy", "top1": "accuracy",
    "precision": "precision", "prec": "precision", "ppv": "precision",
    "recall": "recall", "sensitivity": "recall", "tpr": "recall",
    "specificity": "specificity", "tnr": "specificity",
    "f1": "f1", "f1score": "f1", "fscore": "f1",
    "bacc": "balanced_accuracy", "balanced": "balanced_accuracy", "uar": "balanced_accuracy",
    "mcc": "mcc", "matthews": "mcc", "kappa": "kappa",
}  # fmt: skip
_AVERAGES = frozenset({"macro", "micro", "weighted"})


class Claim(NamedTuple):
    """What a key says of its value.

    Attributes:
        family: ``accuracy``, ``precision``, ``recall``, ``f1``, ``specificity``,
            ``balanced_accuracy``, ``mcc`` or ``kappa``.
        average: ``macro``, ``micro``, ``weighted``, or empty where the key names none.
        stage: ``val``, ``test``, or empty where the key names none.
    """

    family: str
    average: str
    stage: str


@functools.lru_cache(maxsize=1024)
def claim_of(key: str) -> Claim | None:
    """The score that a key names, in any spelling; None where any word of it says more.

    ``val_acc_best``, ``train/acc`` and ``val_acc_head2`` are other scores than the evaluation's.

    Example:
        >>> claim_of("valid/MulticlassF1Score_macro")
        Claim(family='f1', average='macro', stage='val')
        >>> claim_of("val_acc_best") is None
        True
    """
    family = average = stage = ""
    for word in (w.lower() for w in _WORD.findall(key)):
        if word in _STAGES:
            stage = _STAGES[word] or stage
        elif word in _AVERAGES and not average:
            average = word
        elif word in _FAMILIES:
            meant = _FAMILIES[word]
            if (
                family
                and {family, meant} != {"accuracy", "balanced_accuracy"}
                and family != meant
            ):
                return None
            family = (
                "balanced_accuracy" if "balanced_accuracy" in (family, meant) else meant
            )
        elif word not in _MEANS_NOTHING:
            return None
    if not family:
        return None
    return Claim(family, average, stage)


# --- which scores it may be ---------------------------------------------------------------------


def candidates(result: Counts, claim: Claim) -> dict[str, float]:
    """Every score of the counted samples that a key may rightly mean, by its name."""
    if claim.family in ("mcc", "kappa"):
        made = {claim.family: result.scores.get(claim.family, math.nan)}
        return made | (
            _weighted_kappas(result.matrix) if claim.family == "kappa" else {}
        )
    if claim.family in ("accuracy", "balanced_accuracy"):
        named = _accuracies(result)
    else:
        named = _averages(result, claim.family)
    if claim.average:
        named = {k: v for k, v in named.items() if claim.average in k.split("_")}
    return {k: v for k, v in named.items() if not math.isnan(v)}


def is_plainly(value: float, result: Counts, claim: Claim) -> bool:
    """Whether a value is the plainest score that a key may mean: `candidates` has more."""
    if claim.average or result.task == "multilabel":
        return False
    score = result.scores.get(claim.family, math.nan)
    return bool(fits(value, {claim.family: score}))


def _accuracies(result: Counts) -> dict[str, float]:
    if result.task == "multilabel":
        judged = result.judged if result.judged is not None else result.support.sum()
        s, p, tp = (x.double() for x in _margins(result))
        right = judged - (s - tp) - (p - tp)
        each = right / judged
        micro = float(right.sum() / judged.sum())
        return {
            "hamming_accuracy": micro,
            "accuracy_micro": micro,
            "accuracy_macro": float(each.mean()),
        }
    accuracy = result.scores.get("accuracy", math.nan)
    recalls = {
        k.replace("recall", "accuracy"): v
        for k, v in _averages(result, "recall").items()
    }
    return recalls | {
        "accuracy": accuracy,
        "accuracy_micro": accuracy,
        "accuracy_weighted": accuracy,
        "balanced_accuracy": result.scores.get("balanced_accuracy", math.nan),
    }


def _averages(result: Counts, family: str) -> dict[str, float]:
    """One of precision, recall, F1 and specificity, in each average that libraries have."""
    s, p, tp = _margins(result)
    each = _scores.per_class(s, p, tp, result.judged)
    values = getattr(each, family)
    support = s.double()
    made = {
        f"{family}_macro": _mean(values, (s + p) > 0),
        f"{family}_macro_of_present_classes": _mean(values, s > 0),
        f"{family}_macro_of_all_classes": float(values.mean()),
        f"{family}_weighted": float((values * support).sum() / support.sum()),
    }
    if len(values) > 2:
        made[f"{family}_macro_without_class_0"] = _mean(values[1:], (s + p)[1:] > 0)
    if family == "f1":
        precision = _mean(each.precision, (s + p) > 0)
        recall = _mean(each.recall, (s + p) > 0)
        total = precision + recall
        made["f1_macro_of_averages"] = 2 * precision * recall / total if total else 0.0
    if result.task == "multilabel":
        answers = None
        if result.judged is not None:
            answers = result.judged.sum()
        micro = _scores.per_class(s.sum(), p.sum(), tp.sum(), answers)
        made[f"{family}_micro"] = float(getattr(micro, family))
    elif family != "specificity":
        made[f"{family}_micro"] = result.scores.get("accuracy", math.nan)
    else:
        n = int(s.sum())
        c = len(values)
        wrong = n - int(tp.sum())
        made[f"{family}_micro"] = 1 - wrong / (n * (c - 1)) if n and c > 1 else math.nan
    if result.task == "binary" or len(values) == 2:
        made[f"{family}"], made[f"{family}_of_class_0"] = (
            float(values[1]),
            float(values[0]),
        )
    return made


def _margins(result: Counts) -> tuple[Tensor, Tensor, Tensor]:
    return result.support, result.predicted, result.true_positives


def _mean(values: Tensor, where: Tensor) -> float:
    if bool(where.any()):
        return float(values[where].mean())
    return math.nan


def _weighted_kappas(matrix: Tensor | None) -> dict[str, float]:
    if matrix is None or matrix.ndim != 2 or len(matrix) > 256 or not int(matrix.sum()):
        return {}
    observed = matrix.double() / matrix.sum()
    expected = observed.sum(1, keepdim=True) * observed.sum(0, keepdim=True)
    apart = (
        (torch.arange(len(matrix))[:, None] - torch.arange(len(matrix))).abs().double()
    )
    made = {}
    for name, weights in (("linear", apart), ("quadratic", apart**2)):
        by_chance = float((weights * expected).sum())
        if by_chance:
            made[f"kappa_{name}"] = 1 - float((weights * observed).sum()) / by_chance
    return made


def fits(value: float, named: Mapping[str, float]) -> str:
    """The name of the score that a value is, plain or in percent; empty where it is none."""
    for name, score in named.items():
        if close(value, score) or (value > 1 and close(value, 100 * score)):
            return name
    return ""


def shown_scores(named: Mapping[str, float], claim: Claim) -> str:
    """The scores that a key may mean, the plainest first, in a few words."""
    plain = [k for k in named if "_of_" not in k and "without" not in k]
    first = [k for k in (claim.family, f"{claim.family}_{claim.average}") if k in plain]
    chosen = list(dict.fromkeys([*first, *plain]))
    distinct: dict[str, str] = {}
    for name in chosen:
        distinct.setdefault(f"{named[name]:.4f}", name)
    return ", ".join(f"{name} {value}" for value, name in list(distinct.items())[:3])


# --- under a name of our own --------------------------------------------------------------------


class Difference(NamedTuple):
    """How a value that a module logs under a score's name differs from the matrix's.

    ``fact`` is empty where it does not; ``rounds`` is whether rounding alone is the reason, or one
    that a finding of its own names.
    """

    fact: str = ""
    remedy: str = ""
    rounds: bool = False


class Misread(NamedTuple):
    """What is counted where answers are taken for something else than they are.

    ``matrix`` is ``(C, C)``, or ``(L, 2, 2)`` of a multilabel task; ``rounds`` is whether they are
    only rounded; ``remedy`` is what to do about it, where that is not to give the probabilities;
    ``told`` is whether a finding of its own says it.
    """

    matrix: Tensor
    how: str
    rounds: bool = False
    remedy: str = ""
    told: bool = False


OR = "or delete the line: the guard computes this score, too."
CHECK_IT = f"Compute it from all answers at once, {OR}"


def difference(
    result: Counts,
    misread: Sequence[Misread],
    score: str,
    theirs: float,
    why: str,
    remedy: str,
) -> Difference:
    """How the value logged under `score` differs from the matrix's.

    Args:
        result: What was counted.
        misread: What would be counted of logits that are taken for something else.
        score: A name in ``result.scores``.
        theirs: The module's value.
        why: What is known of how the module got it.
        remedy: What to do about that.
    """
    ours = result.scores.get(score, math.nan)
    if math.isnan(ours) or math.isnan(theirs) or close(ours, theirs):
        return Difference()
    fact = f"is {theirs:.4f}, expected {ours:.4f} ({score})"
    for reading in misread:
        if close(theirs, _of_reading(reading.matrix).get(score, math.nan)):
            fix = f"Give it `logits{'.float()' * reading.rounds}.sigmoid()`, {OR}"
            is_told = reading.rounds or reading.told
            return Difference(f"{fact}; {reading.how}", reading.remedy or fix, is_told)
    if why:
        return Difference(f"{fact}; {why}", remedy or CHECK_IT)
    why, remedy = _reason(result, score, theirs, ours)
    return Difference(f"{fact}; {why}" if why else fact, remedy or CHECK_IT)


def turned_round(matrix: Tensor) -> Misread:
    """What a metric counts that is given ``(target, preds)``, of which a finding tells."""
    return Misread(matrix.mT, "it is given (target, preds)", told=True)


def misread_as(
    misread: Sequence[Misread], named: Mapping[str, float], value: float
) -> Misread | None:
    """The reading of logits of which a value is a score; None where it is of none."""
    for reading in misread:
        scores = _every_score(reading.matrix)
        if fits(value, {name: scores[name] for name in named if name in scores}):
            return reading
    return None


@dataclass
class _Counted:
    """What one reading of the answers counts."""

    matrix: Tensor | None
    scores: dict[str, float]
    support: Tensor
    predicted: Tensor
    true_positives: Tensor
    judged: Tensor | None = None
    task: str = "binary"


def _every_score(matrix: Tensor) -> dict[str, float]:
    """The scores of a reading under each name that a key may mean."""
    scores = _of_reading(matrix)
    if matrix.ndim > 2:
        return scores
    one = _Counted(matrix, scores, matrix.sum(1), matrix.sum(0), matrix.diagonal())
    if len(matrix) > 2:
        one.task = "multiclass"
    scores = _accuracies(one) | scores
    for family in ("precision", "recall", "f1", "specificity"):
        scores = _averages(one, family) | scores
    return scores


def _of_reading(matrix: Tensor) -> dict[str, float]:
    """Scores of a matrix ``(C, C)``, or of one for each label ``(L, 2, 2)``."""
    if matrix.ndim == 2:
        return _scores.multiclass(matrix.sum(1), matrix.sum(0), matrix.diagonal())
    support = matrix[:, 1].sum(1)
    predicted = matrix[:, :, 1].sum(1)
    return _scores.multilabel(support, predicted, matrix[:, 1, 1], matrix.sum((1, 2)))


def _reason(result: Counts, score: str, theirs: float, ours: float) -> tuple[str, str]:
    """Which other score the value is, if any, and what makes it the one of that name."""
    if close(ours, theirs / 100):
        return "it is in percent", f"Divide it by 100, {OR}"
    family, _, average = score.partition("_")
    if family in ("precision", "recall", "f1"):
        rename = f"Pass average={average or 'macro'!r} to the metric, or give the key its name."
        if close(theirs, result.scores.get("accuracy", math.nan)):
            return f"{theirs:.4f} is the accuracy, which micro averaging gives", rename
        everyone = _averages(result, family).get(
            f"{family}_macro_of_all_classes", math.nan
        )
        if average == "macro" and close(theirs, everyone):
            return "classes that do not occur count as 0 in it", (
                f"Leave out classes that neither occur nor are predicted, {OR}"
            )
    same = [k for k, v in result.scores.items() if "/" not in k and close(v, theirs)]
    if same:
        return (f"{theirs:.4f} is {same[0]}", "Give the key its name.")
    return ("", "")


def close(a: float, b: float) -> bool:
    """Whether two scores are the same, in float32 or rounded to four digits."""
    return math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-5)
