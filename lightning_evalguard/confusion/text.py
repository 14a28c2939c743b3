"""How a result reads in a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol


class Shown(Protocol):
    """What is needed of a `ConfusionResult`; see there."""

    scores: dict[str, float]

    @property
    def task(self) -> str:
        """``binary``, ``multiclass`` or ``multilabel``."""

    @property
    def total(self) -> int:
        """Samples, or answers of a multilabel task."""

    @property
    def num_classes(self) -> int:
        """Number of classes, or of labels."""

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """The 95 % interval of every score."""

    @property
    def insight(self) -> str:
        """What the accuracy hides."""

    def problems(self) -> list[str]:
        """What could not be counted."""

    def table(self) -> list[dict[str, Any]]:
        """One row a class."""


_HEADLINE = (
    "accuracy",
    "hamming_accuracy",
    "precision",
    "recall",
    "f1",
    "f1_macro",
    "mcc",
)
_ROWS = 12


def shown_text(result: Shown) -> str:
    s = result.scores
    unit = "samples"
    if result.task == "multilabel":
        unit = "answers"
    kind = "classes"
    if result.task == "multilabel":
        kind = "labels"
    shown = [name for name in _HEADLINE if name in s]
    shown += [name for name in s if name.startswith("top")]
    said = [f"{name} {s[name]:.4f}" for name in shown if not math.isnan(s[name])]
    size = f"{result.total:,} {unit}, {result.num_classes:,} {kind}"
    lines = [f"{', '.join(said)} ({size})" if said else f"nothing was counted ({size})"]
    if said:
        lines.append(f"  95 % intervals: {_shown_intervals(result)}")
    if result.insight:
        lines.append(f"  {result.insight}")
    lines += [f"  left out: {problem}" for problem in result.problems()]
    if result.total:
        lines += _table_lines(result)
    return "\n".join(lines)


def _shown_intervals(result: Shown) -> str:
    parts = []
    for score in _HEADLINE:
        low, high = result.intervals.get(score, (math.nan, math.nan))
        if not math.isnan(low):
            parts.append(f"{score} {low:.3f} to {high:.3f}")
    return ", ".join(parts)


def _table_lines(result: Shown) -> list[str]:
    rows = [row for row in result.table() if row["support"] or row["predicted"]]
    hidden = len(rows) - _ROWS
    if hidden > 1:
        rows = sorted(rows, key=_errors, reverse=True)[:_ROWS]
    head = ["class", "support", "precision", "recall", "f1", "most confused with"]
    lines = _aligned_lines([head, *map(_cells, rows)])
    if hidden > 1:
        lines.append(f"  ... and {hidden:,} more with fewer errors in .table()")
    return lines


def _cells(row: dict[str, Any]) -> list[str]:
    confused = ""
    if row["confused"]:
        confused = f"{_short(row['confused_with'])} ({row['confused']:,}x)"
    return [
        _short(row["class"]),
        f"{row['support']:,}",
        f"{row['precision']:.3f}",
        f"{row['recall']:.3f}",
        f"{row['f1']:.3f}",
        confused,
    ]


def _aligned_lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """Names to the left, numbers to the right; the last column only where a class has some."""
    *columns, confused = zip(*rows, strict=True)
    widths = [max(map(len, column)) for column in columns]
    has_confused = any(confused[1:])
    lines = []
    for name, *numbers, last in rows:
        cells = [name.ljust(widths[0])]
        cells += [x.rjust(w) for x, w in zip(numbers, widths[1:], strict=True)]
        if has_confused:
            cells.append(last)
        lines.append("  " + "  ".join(cells).rstrip())
    return lines


def _errors(row: dict[str, Any]) -> float:
    """Samples of the class that were missed, and samples taken for it."""
    hits = row["recall"] * row["support"]
    return float(row["support"] + row["predicted"] - 2 * hits)


def _short(name: str) -> str:
    if len(name) <= 24:
        return name
    return name[:23] + "…"
