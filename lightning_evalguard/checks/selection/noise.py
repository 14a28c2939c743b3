"""Was a checkpoint chosen by chance? Counted for the report; nothing is warned of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from lightning_evalguard.checks.selection.aim import matrix_score
from lightning_evalguard.checks.selection.choosers import Desk


class _Scored(NamedTuple):
    step: int
    value: float
    low: float
    high: float


class Noise:
    """The scores that checkpoints were chosen by, each with its 95 % interval."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._scored: dict[tuple[str, str], list[_Scored]] = {}

    def scored(self) -> None:
        """An evaluation logged its scores: keep those that are a score of the matrix."""
        results = self._desk.results()
        logged = self._desk.logged() if results else {}
        for chooser in self._desk.choosers():
            key = chooser.key
            if chooser.kind != "checkpoint" or chooser.keeps == 0:
                continue
            if key is None or key not in logged:
                continue
            value = self._desk.value(key)
            known = None if value is None else matrix_score(value, results)
            if value is None or known is None:
                continue
            stage, name = known
            low, high = results[stage].interval(name)
            kept = self._scored.setdefault((key, chooser.mode), [])
            step = self._desk.step()
            if not kept or kept[-1].step != step:
                kept.append(_Scored(step, value, low, high))

    def sentences(self) -> Iterator[str]:
        """How often the best was within the interval of another evaluation."""
        for (key, mode), scored in self._scored.items():
            best = (max if mode == "max" else min)(scored, key=lambda one: one.value)
            last = scored[-1]
            within = sum(one.low <= best.value <= one.high for one in scored if one is not best)
            if best is last or not within:
                continue
            inside = "lies within" if last.low <= best.value <= last.high else "lies outside"
            yield (
                f"`{key}`: its best, {best.value:.4f} at step {best.step}, {inside} the 95 % "
                f"interval of the last, {last.value:.4f} ({last.low:.4f} to {last.high:.4f}), and "
                f"within that of {within} of the {len(scored) - 1} other evaluations"
            )
