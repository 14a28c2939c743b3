"""The curves of a fit: each score over the epochs, one line a stage."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

_STAGE = re.compile(
    r"(?P<stage>train_eval|train|valid|validation|val|test)[/_](?P<score>.+)"
)
_WIDTH, _HEIGHT = 300.0, 110.0
_LEFT, _TOP = 8.0, 10.0
_DOTS = 60  # points of a line that are dots, each with its value
_COLOURS = 3


class Point(NamedTuple):
    """A value as it was logged."""

    step: float
    epoch: int
    value: float


_Lines = dict[str, list[Point]]


def curves(
    runs: Sequence[Mapping[str, Any]], first: Sequence[str]
) -> list[dict[str, Any]]:
    """What is drawn of each score that has more than one value, those of `first` before others."""
    series = _series(runs).items()
    drawn = {score: lines for score, lines in series if _is_drawn(score, lines)}

    def place(score: str) -> int:
        if score in first:
            return first.index(score)
        return len(first)

    return [_curve(score, drawn[score]) for score in sorted(drawn, key=place)]


def _is_drawn(score: str, lines: _Lines) -> bool:
    return "f1_class" not in score and max(map(len, lines.values())) > 1


def _series(runs: Sequence[Mapping[str, Any]]) -> dict[str, _Lines]:
    series: dict[str, _Lines] = {}
    fits = [run["history"] for run in runs if run["run"] == "fit"]
    for moment in chain.from_iterable(fits):
        for name, value in moment["scores"].items():
            parts = _STAGE.fullmatch(name)
            stage, score = (parts["stage"], parts["score"]) if parts else ("", name)
            line = series.setdefault(score, {}).setdefault(stage, [])
            line.append(Point(moment["step"], moment["epoch"], value))
    return series


@dataclass
class _Scale:
    """Where a value stands in the drawing.

    Args:
        points: All that are drawn.
    """

    points: list[Point]

    def __post_init__(self) -> None:
        steps = [p.step for p in self.points]
        values = [p.value for p in self.points]
        self.first, self.last = min(steps), max(steps)
        self.low, self.high = min(values), max(values)

    def at(self, point: Point) -> tuple[str, str]:
        """Its x and y."""
        across = (point.step - self.first) / ((self.last - self.first) or 1)
        up = (point.value - self.low) / ((self.high - self.low) or 1)
        x = _LEFT + (_WIDTH - 2 * _LEFT) * across
        y = _TOP + (_HEIGHT - 2 * _TOP) * (1 - up)
        return f"{x:.1f}", f"{y:.1f}"


def _curve(score: str, lines: _Lines) -> dict[str, Any]:
    points = list(chain.from_iterable(lines.values()))
    scale = _Scale(points)
    drawn = []
    for number, (stage, line) in enumerate(lines.items()):
        colour = min(number, _COLOURS - 1)
        drawn.append(_line(stage, score, line, colour, scale))
    first = points[0].epoch
    last = points[-1].epoch
    right = _WIDTH - _LEFT
    between = f"between {scale.low:.4f} and {scale.high:.4f}"
    return {
        "name": score.replace("_", " "),
        "width": f"{_WIDTH:.0f}",
        "height": f"{_HEIGHT:.0f}",
        "axis": f"M{_LEFT} {_TOP}H{right}M{_LEFT} {_HEIGHT - _TOP}H{right}",
        "label": f"{score} from epoch {first} to {last}, {between}",
        "lines": drawn,
        "range": f"{scale.low:.3f} to {scale.high:.3f}",
        "epochs": f"epoch {first} to {last}",
    }


def _line(
    stage: str, score: str, line: list[Point], colour: int, scale: _Scale
) -> dict[str, Any]:
    places = [scale.at(point) for point in line]
    dotted = line if len(line) <= _DOTS else line[-1:]
    return {
        "label": stage or score,
        "colour": colour,
        "last": f"{line[-1].value:.3f}",
        "points": " ".join(f"{x},{y}" for x, y in places),
        "dots": [_dot(stage, point, scale) for point in dotted],
    }


def _dot(stage: str, point: Point, scale: _Scale) -> dict[str, str]:
    x, y = scale.at(point)
    return {"x": x, "y": y, "hint": f"{stage} epoch {point.epoch}: {point.value:.4f}"}


__all__ = ["curves"]
