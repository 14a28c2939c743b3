"""How sure is a score? 95 % intervals from the counts alone, without the predictions.

- *Proportions* (accuracy, top-k accuracy, the precision, recall and specificity of a class, what is
  micro-averaged) have Wilson's score interval, as ``scipy.stats.binomtest(...).proportion_ci`` has.
- *The F1 of a class* is ``2q / (1 + q)``, q being the share of hits among hits, misses and false
  alarms: a proportion, and so its interval.
- *Every other score* is drawn again: the cells of the matrix are a multinomial sample, of which
  1,000 are drawn with a generator of this module's own; the interval is what lies between the
  2.5th and the 97.5th percentile. Above 128 cells that are not empty, where a score sums up many
  classes and is nearly normal, a few draws give its centre, and its derivatives by the cells its
  width (the infinitesimal jackknife; Efron 1981): milliseconds at 1,000 classes.
- *Without a single error*, or without a single hit, draws show no spread: then the bound is that
  of the accuracy.

Samples are taken to be independent of each other. The answers of a multilabel task are too, since
counts do not tell which were given for one sample.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lightning_evalguard.confusion import scores as _scores

Interval = tuple[float, float]

_Z = 1.959963984540054  # of 95 %
_DRAWS, _FEW_DRAWS, _FEW_CELLS = 1_000, 32, 128
_SEED = 20240607
_CLASS = "_class/"


class ResultLike(Protocol):
    """What is needed of a `ConfusionResult`; see there."""

    @property
    def task(self) -> str:
        """``binary``, ``multiclass`` or ``multilabel``."""

    matrix: Tensor | None
    support: Tensor
    predicted: Tensor
    true_positives: Tensor
    class_names: tuple[str, ...]
    scores: dict[str, float]
    pairs: tuple[Tensor, Tensor] | None
    judged: Tensor | None

    @property
    def total(self) -> int:
        """Samples, or answers of a multilabel task."""

    @property
    def num_classes(self) -> int:
        """Number of classes, or of labels."""


def wilson(hits: Tensor, of: Tensor) -> tuple[Tensor, Tensor]:
    """Wilson's 95 % interval of proportions; all of [0, 1] where there is nothing to count.

    Example:
        >>> low, high = wilson(torch.tensor([9]), torch.tensor([10]))
        >>> round(low.item(), 4), round(high.item(), 4)
        (0.5958, 0.9821)
    """
    n = of.double()
    some = n > 0
    p = torch.where(some, hits.double() / n.clamp(min=1), 0.5)
    n = n.clamp(min=1)
    middle = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * (p * (1 - p) / n + _Z**2 / (4 * n**2)).sqrt()
    # what holds exactly is lost to rounding at either end
    low = torch.where(some & (p > 0), middle - half, 0.0)
    high = torch.where(some & (p < 1), middle + half, 1.0)
    return low, high


class ClassIntervals(NamedTuple):
    """Intervals of each class's scores, each a low and a high of shape ``(C,)``."""

    precision: tuple[Tensor, Tensor]
    recall: tuple[Tensor, Tensor]
    f1: tuple[Tensor, Tensor]
    specificity: tuple[Tensor, Tensor]


def per_class_intervals(result: ResultLike) -> ClassIntervals:
    """The 95 % interval of every class's precision, recall, F1 and specificity."""
    s = result.support
    p = result.predicted
    tp = result.true_positives
    n = s.sum() if result.judged is None else result.judged
    low, high = wilson(tp, s + p - tp)
    return ClassIntervals(
        precision=wilson(tp, p),
        recall=wilson(tp, s),
        f1=(2 * low / (1 + low), 2 * high / (1 + high)),
        specificity=wilson(n - s - (p - tp), n - s),
    )


def of_result(result: ResultLike) -> dict[str, Interval]:
    """The 95 % interval of every score of a result, by the score's name."""
    with torch.inference_mode(False), torch.no_grad():
        drawn = _drawn(result)
    intervals = {name: drawn.get(name, (math.nan, math.nan)) for name in result.scores}
    for name, (hits, of) in _proportions(result).items():
        if name in intervals:
            intervals[name] = _one(*wilson(_number(hits), _number(of)))
    each = per_class_intervals(result)
    at = {name: i for i, name in enumerate(result.class_names)}
    for name in result.scores:
        score, is_of_class, of_class = name.partition(_CLASS)
        if is_of_class and of_class in at:
            low, high = getattr(each, score)
            intervals[name] = float(low[at[of_class]]), float(high[at[of_class]])
    if not result.total:
        return dict.fromkeys(intervals, (math.nan, math.nan))
    return intervals


def of_class(result: ResultLike, name: str) -> Interval | None:
    """The interval of one class's score, ``recall_class/<name>``; None if it is none."""
    score, is_of_class, class_name = name.partition(_CLASS)
    if not is_of_class or score not in ClassIntervals._fields:
        return None
    if class_name not in result.class_names:
        return None
    at = result.class_names.index(class_name)
    low, high = getattr(per_class_intervals(result), score)
    return float(low[at]), float(high[at])


def _number(count: int) -> Tensor:
    return torch.tensor(count, device="cpu")


def _one(low: Tensor, high: Tensor) -> Interval:
    return float(low), float(high)


def _proportions(result: ResultLike) -> dict[str, tuple[int, int]]:
    """The scores that are a number of hits among a number of trials."""
    s = result.support
    p = result.predicted
    n = result.total
    right = int(result.true_positives.sum())
    if result.task == "multilabel":
        wrong = int(s.sum() + p.sum()) - 2 * right
        return {
            "hamming_accuracy": (n - wrong, n),
            "precision_micro": (right, int(p.sum())),
            "recall_micro": (right, int(s.sum())),
        }
    counts = {"accuracy": (right, n), "recall_weighted": (right, n)}
    if n:
        counts["majority_baseline"] = int(s.max()), n
    for name, score in result.scores.items():
        if name.startswith("top") and not math.isnan(score):
            counts[name] = round(score * n), n
    if result.num_classes == 2:
        hits = int(result.true_positives[1])
        counts["precision"] = hits, int(p[1])
        counts["recall"] = hits, int(s[1])
        counts["specificity"] = int(result.true_positives[0]), int(s[0])
    return counts


class Cells(NamedTuple):
    """The cells of a matrix that are not empty, as float64.

    ``row`` and ``column`` are the class, or C where a cell belongs to none; ``group`` says which
    cells are one sample: all of a matrix, or the four of a label.
    """

    filled: Tensor
    row: Tensor
    column: Tensor
    hit: Tensor
    group: Tensor
    classes: int

    def margins(self, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Support, predicted and true positives ``(..., C)`` of drawn `counts` ``(..., cells)``."""
        shape = (*counts.shape[:-1], self.classes + 1)
        zeros = torch.zeros(shape, dtype=torch.float64, device="cpu")
        support = zeros.index_add(-1, self.row, counts)
        predicted = zeros.index_add(-1, self.column, counts)
        hits = zeros.index_add(-1, self.row, counts * self.hit)
        return support[..., :-1], predicted[..., :-1], hits[..., :-1]


def _cells(result: ResultLike) -> Cells:
    c = result.num_classes
    tp = result.true_positives
    none = torch.full((c,), c, device="cpu")
    each = torch.arange(c, device="cpu")
    if result.task == "multilabel":
        missed = result.support - tp
        false = result.predicted - tp
        assert result.judged is not None
        rest = result.judged - tp - missed - false
        count = torch.cat((tp, missed, false, rest))
        row = torch.cat((each, each, none, none))
        column = torch.cat((each, none, each, none))
        group = each.repeat(4)
    else:
        row, column, count = _of_matrix(result, each, none)
        group = torch.zeros_like(row)
    # in one order, whether they come of a matrix or of pairs: the same draws, the same intervals
    order = (row * (c + 1) + column).argsort(stable=True)
    count = count[order]
    row = row[order]
    column = column[order]
    group = group[order]
    some = count > 0
    row = row[some]
    column = column[some]
    group = group[some]
    hit = ((row == column) & (row < c)).double()
    return Cells(count[some].double(), row, column, hit, group, c)


def _of_matrix(result: ResultLike, each: Tensor, none: Tensor) -> tuple[Tensor, ...]:
    c = result.num_classes
    tp = result.true_positives
    if result.matrix is not None:
        row, column = result.matrix.nonzero(as_tuple=True)
        return row, column, result.matrix[row, column]
    if result.pairs is not None:
        keys, counts = result.pairs
        row = torch.cat((each, keys // c))
        column = torch.cat((each, keys % c))
        return row, column, torch.cat((tp, counts))
    # it is not known which class was taken for which: misses and false alarms apart
    row = torch.cat((each, each, none))
    column = torch.cat((each, none, each))
    return row, column, torch.cat((tp, result.support - tp, result.predicted - tp))


def _drawn(result: ResultLike) -> dict[str, Interval]:
    """The scores that are no proportion."""
    cells = _cells(result)
    if not result.total or not len(cells.filled):
        return {}
    judged = None
    if result.judged is not None:
        judged = result.judged.double()
    one = _without_spread(result)
    if one is not None:
        drawn = batched(*cells.margins(cells.filled), judged)
        return dict.fromkeys(drawn, one)
    generator = torch.Generator("cpu").manual_seed(_SEED)
    if len(cells.filled) <= _FEW_CELLS:
        drawn = batched(*cells.margins(_multinomial(cells, generator)), judged)
        return {name: _percentiles(values) for name, values in drawn.items()}
    rates = cells.filled.expand(_FEW_DRAWS, -1).contiguous()
    drawn = batched(*cells.margins(torch.poisson(rates, generator=generator)), judged)
    widths = _widths(cells, judged)
    # a lowest value is far from normal
    widths["recall_min"] = float(drawn["recall_min"].std())
    return {name: _about(name, values, widths[name]) for name, values in drawn.items()}


def _without_spread(result: ResultLike) -> Interval | None:
    """The accuracy's interval, where every sample is right or none is."""
    right = result.true_positives.sum()
    wrong = result.support.sum() + result.predicted.sum() - 2 * right
    if right and wrong:
        return None
    if result.task == "multilabel":
        right, of = right, right + wrong
    else:
        of = result.support.sum()
    return _one(*wilson(right, of))


def _multinomial(cells: Cells, generator: torch.Generator) -> Tensor:
    """Counts ``(draws, cells)``: of each group as many as there are, one cell after another."""
    left: dict[int, Tensor] = {}
    rest: dict[int, float] = {}
    groups = cells.group.tolist()
    counts = cells.filled.tolist()
    for group, count in zip(groups, counts, strict=True):
        rest[group] = rest.get(group, 0.0) + count
    draws = (_DRAWS,)
    columns = []
    for group, count in zip(groups, counts, strict=True):
        if group not in left:
            left[group] = torch.full(
                draws, rest[group], dtype=torch.float64, device="cpu"
            )
        share = torch.full(
            draws, min(1.0, count / rest[group]), dtype=torch.float64, device="cpu"
        )
        column = torch.binomial(left[group], share, generator=generator)
        left[group] = left[group] - column
        rest[group] -= count
        columns.append(column)
    return torch.stack(columns, dim=-1)


def _percentiles(values: Tensor) -> Interval:
    usual = values[~values.isnan()]
    if not len(usual):
        return math.nan, math.nan
    at = torch.tensor((0.025, 0.975), dtype=torch.float64, device="cpu")
    low, high = usual.quantile(at).tolist()
    return low, high


def _about(name: str, values: Tensor, width: float) -> Interval:
    centre = float(values[~values.isnan()].mean())
    least = 0.0
    if name in ("mcc", "kappa"):
        least = -1.0
    return max(least, centre - _Z * width), min(1.0, centre + _Z * width)


def _widths(cells: Cells, judged: Tensor | None) -> dict[str, float]:
    """The standard deviation of each score, by its derivatives by the cells."""
    with torch.enable_grad():
        counts = cells.filled.clone().requires_grad_()
        scored = batched(*cells.margins(counts), judged)
        gradients = {
            name: torch.autograd.grad(score, counts, retain_graph=True)[0]
            for name, score in scored.items()
            if score.requires_grad
        }
    groups = torch.zeros(int(cells.group.max()) + 1, dtype=torch.float64, device="cpu")
    sizes = groups.index_add(0, cells.group, cells.filled)
    widths = dict.fromkeys(scored, 0.0)
    for name, gradient in gradients.items():
        drift = groups.index_add(0, cells.group, cells.filled * gradient)
        variance = (cells.filled * gradient**2).sum() - (
            drift**2 / sizes.clamp(min=1)
        ).sum()
        widths[name] = math.sqrt(max(0.0, float(variance)))
    return widths


def batched(
    support: Tensor,
    predicted: Tensor,
    true_positives: Tensor,
    judged: Tensor | None = None,
) -> Mapping[str, Tensor]:
    """Of many matrices at once what `scores.multiclass` or `scores.multilabel` gives for one.

    Args:
        support: Float64 of shape ``(..., C)``.
        predicted: The same of the predictions.
        true_positives: The same of the hits.
        judged: Samples judged for each label ``(L,)`` of a multilabel task; None for classes.

    Returns:
        Each score that is no proportion, of shape ``(...)``.
    """
    s = support
    p = predicted
    tp = true_positives
    n = s.sum(-1, keepdim=True) if judged is None else judged
    each = {
        "precision": _ratio(tp, p),
        "recall": _ratio(tp, s),
        "f1": _ratio(2 * tp, s + p),
        "specificity": _ratio(n - s - (p - tp), n - s),
    }
    counted = (s + p) > 0
    present = s > 0
    scored = {f"{name}_macro": _mean(values, counted) for name, values in each.items()}
    for name in ("precision", "f1", "specificity"):
        scored[f"{name}_weighted"] = _ratio((each[name] * s).sum(-1), s.sum(-1))
    scored["recall_min"] = torch.where(present, each["recall"], 2.0).amin(-1)
    if judged is not None:
        everyone = judged > 0
        scored["specificity_macro"] = _mean(
            each["specificity"], everyone.expand(s.shape)
        )
        scored["recall_weighted"] = _ratio((each["recall"] * s).sum(-1), s.sum(-1))
        scored["f1_micro"] = _ratio(2 * tp.sum(-1), (s + p).sum(-1))
        del scored["specificity_weighted"]
        return scored
    scored["balanced_accuracy"] = _mean(each["recall"], present)
    by_chance = (s * p).sum(-1)
    total = n.squeeze(-1)
    gain = tp.sum(-1) * total - by_chance
    spread = (total**2 - (s * s).sum(-1)) * (total**2 - (p * p).sum(-1))
    scored["mcc"] = _quotient(gain, spread.clamp(min=0), root=True)
    scored["kappa"] = _quotient(gain, total**2 - by_chance)
    if s.shape[-1] == 2:
        scored["f1"] = each["f1"][..., 1]
    return scored


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b > 0, a / b.clamp(min=1), 0.0)


def _mean(values: Tensor, where: Tensor) -> Tensor:
    among = where.sum(-1)
    mean = torch.where(where, values, 0.0).sum(-1) / among.clamp(min=1)
    return torch.where(among > 0, mean, _scores.NAN)


def _quotient(gain: Tensor, by: Tensor, root: bool = False) -> Tensor:
    some = by > 0
    divisor = torch.where(some, by, 1.0)
    return torch.where(some, gain / (divisor.sqrt() if root else divisor), 0.0)
