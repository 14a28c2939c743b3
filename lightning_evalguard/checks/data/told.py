"""Do columns of a table tell the label or the target of each sample?

Of the samples that both sides were looked at, training's and the evaluation's, a column has one
value in each class, another one in each, and the same ones on both sides: the label itself, as it
is or scaled; or each class has a column that marks it alone; or a column is the target of a
regression, to the bit. Targets that are many have no classes here; a code for one class among
several, or a feature that is right for most samples, does not tell it. Where several tensors of a
batch may be the label (a group or a treatment that is a feature too), nothing is said. Nor is it of
whole numbers where another column has the values of that one, as positions of a sequence have: to
remember a token is a task.
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
_REMEDY = "Remove the column from the inputs of both sets, before they are scaled."


def label_among_features(one: EvaluatedSet, training: Appearance) -> list[Fact]:
    """A column of an evaluated set and of training's that is the label."""
    if one.appearance.place != training.place or len(one.appearance.shape) != 1:
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
    samples = len(rows) + len(trained)
    if not few:
        return _target(one, (rows, labels), (trained, of_training), samples)
    if len(few) != 1:
        return []  # which of them is the label?
    mine = _by_class(rows, labels[:, few[0]])
    theirs = _by_class(trained, of_training[:, few[0]])
    if mine is None or theirs is None or not torch.equal(mine[0], theirs[0]):
        return []
    same = (mine[1] == theirs[1]).all(0)  # a column that varies is NaN
    columns = (same & _all_differ(mine[1])).nonzero().flatten().tolist()
    is_whole = one.appearance.dtype is not None and not (
        one.appearance.dtype.is_floating_point
    )
    if columns and is_whole and not _is_alone(trained, columns[0]):
        return []
    if columns:
        return [_fact(one, columns[0], *mine, samples)]
    marked = _marks(mine[1], theirs[1])
    if marked and len(mine[0]) > 2:
        return [_of_marks(one, marked, samples)]
    return []


def _is_alone(table: Tensor, column: int) -> bool:
    """Whether no other column that varies has the values of this one, and there are some."""
    own = set(table[:, column].tolist())
    others = [set(one.tolist()) for one in table.t()]
    varying = [values for values in others if len(values) > 1]
    return len(varying) > 2 and varying.count(own) == 1


def _marks(mine: Tensor, theirs: Tensor) -> list[int]:
    """The columns that mark one class each, on both sides; empty where a class has none."""
    found = []
    for label in range(len(mine)):
        marks = _marking(mine, label) & _marking(theirs, label)
        columns = marks.nonzero().flatten().tolist()
        if not columns:
            return []
        found.append(columns[0])
    return found


def _marking(values: Tensor, label: int) -> Tensor:
    """``(C,)``: whether a column has one value in a class, and another one in all others."""
    others = torch.cat([values[:label], values[label + 1 :]])
    return (
        (others == others[0]).all(0)
        & (values[label] != others[0])
        & (values[label].isfinite())
    )


Table = tuple[Tensor, Tensor]
"""Rows, and what stands beside them."""


def _target(one: EvaluatedSet, mine: Table, theirs: Table, samples: int) -> list[Fact]:
    """A column that is the one target of a regression."""
    if mine[1].shape[1] != 1 or mine[0].shape[1] < 2:
        return []
    equal = [rows == targets.float() for rows, targets in (mine, theirs)]
    columns = torch.cat(equal).all(0).nonzero().flatten().tolist()
    if not columns:
        return []
    return [
        one.fact(
            f"column {columns[0]} of the inputs is the target, to the bit, in each of {samples} "
            "samples of both sets that were looked at",
            _REMEDY,
            certain=False,
        )
    ]


def _of_marks(one: EvaluatedSet, columns: list[int], samples: int) -> Fact:
    listed = ", ".join(map(str, columns))
    return one.fact(
        f"columns {listed} of the inputs are the label: each marks one class alone, in each of "
        f"{samples} samples of both sets that were looked at",
        _REMEDY,
        certain=False,
    )


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
        _REMEDY,
        certain=False,
    )
