"""Does a column of a table tell the label of each sample?

Of the samples that both sides were looked at, training's and the evaluation's, a column has one
value in each class, another one in each, and the same ones on both sides: the label itself, as it
is or scaled. Regression, token ids and targets that are many have no classes here; a code for one
class among several, or a feature that is right for most samples, does not tell it. Where several
tensors of a batch may be the label (a group or a treatment that is a feature too), nothing is said.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_evalguard.checks.data.appearance import Appearance
from lightning_evalguard.checks.data.loader_facts import EvaluatedSet
from lightning_evalguard.data.loaders import Fact

_TRAINED, _EVALUATED = 32, 24  # samples of each side
_CLASSES = 16
_EACH = 4  # samples of a class, on each side


def label_among_features(one: EvaluatedSet, training: Appearance) -> list[Fact]:
    """A column of an evaluated set and of training's that is the label."""
    if one.appearance.place != training.place:
        return []
    labels = one.appearance.labels()
    of_training = training.labels()
    rows = one.appearance.means()
    trained = training.means()
    if len(rows) < _EVALUATED or len(trained) < _TRAINED:
        return []
    if labels.shape[1] != of_training.shape[1] or rows.shape[1] != trained.shape[1]:
        return []
    few = [k for k in range(labels.shape[1]) if _values(labels[:, k]) <= _CLASSES]
    if len(few) != 1:
        return []  # which of them is the label?
    mine = _by_class(rows, labels[:, few[0]])
    theirs = _by_class(trained, of_training[:, few[0]])
    if mine is None or theirs is None or not torch.equal(mine[0], theirs[0]):
        return []
    same = (mine[1] == theirs[1]).all(0)  # a column that varies is NaN
    columns = (same & _all_differ(mine[1])).nonzero().flatten().tolist()
    if not columns:
        return []
    return [_fact(one, columns[0], *mine, len(rows) + len(trained))]


def _values(labels: Tensor) -> int:
    return len(set(labels.tolist()))


def _by_class(rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor] | None:
    """The classes, and ``(K, C)`` the value of each column in each; NaN where it varies."""
    if len(labels) != len(rows):
        return None
    classes, counts = torch.unique(labels, return_counts=True)
    if not 2 <= len(classes) <= _CLASSES or int(counts.min()) < _EACH:
        return None
    values = []
    for label in classes:
        own = rows[labels == label]
        constant = (own == own[0]).all(0)
        values.append(torch.where(constant, own[0], torch.nan))
    return classes, torch.stack(values)


def _all_differ(values: Tensor) -> Tensor:
    """``(C,)``: whether each class has a value of its own."""
    ordered = values.sort(0).values
    return (ordered[1:] != ordered[:-1]).all(0)


def _fact(
    one: EvaluatedSet, column: int, classes: Tensor, values: Tensor, samples: int
) -> Fact:
    pairs = zip(classes.tolist(), values[:, column].tolist(), strict=True)
    said = ", ".join(f"{value:.4g} for label {label:.4g}" for label, value in pairs)
    return one.fact(
        f"column {column} of the inputs is the label: {said}, in each of {samples} samples of "
        "both sets that were looked at",
        "Remove the column from the inputs of both sets, before they are scaled.",
        certain=False,
    )
