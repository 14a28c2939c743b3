"""Was a checkpoint chosen by chance? Counted for the report; nothing is warned of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from lightning_evalguard.checks.selection.aim import matrix_score
from lightning_evalguard.checks.selection.choosers import Desk
from lightning_evalguard.confusion.result import ConfusionResult


@dataclass
class _Scored:
    """What one key was in each evaluation, by step, and the last one's matrix."""

    mode: str
    values: dict[int, float] = field(default_factory=dict)
    result: ConfusionResult | None = None
    name: str = ""


class Noise:
    """The scores that checkpoints were chosen by, as far as they are scores of the matrix."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._scored: dict[tuple[str, str], _Scored] = {}

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
            known = None
            if value is not None:
                known = matrix_score(value, results)
            if value is None or known is None:
                continue
            scored = self._scored.setdefault((key, chooser.mode), _Scored(chooser.mode))
            scored.values[self._desk.step()] = value
            stage, scored.name = known
            scored.result = results[stage]

    def sentences(self) -> Iterator[str]:
        """How often the best was within the interval of another evaluation.

        All are of one set, so that the interval of the last, moved to each, stands for its own.
        """
        for (key, _), scored in self._scored.items():
            values = scored.values
            result = scored.result
            if result is None or len(values) < 2:
                continue
            pick = min
            if scored.mode == "max":
                pick = max
            best_step = pick(values, key=lambda step: values[step])
            best = values[best_step]
            last = values[max(values)]
            low, high = result.interval(scored.name)
            within = sum(
                low - last <= best - value <= high - last
                for step, value in values.items()
                if step != best_step
            )
            if best_step == max(values) or not within:
                continue
            inside = "lies outside"
            if low <= best <= high:
                inside = "lies within"
            yield (
                f"`{key}`: its best, {best:.4f} at step {best_step}, {inside} the 95 % interval of "
                f"the last, {last:.4f} ({low:.4f} to {high:.4f}); {within} of the "
                f"{len(values) - 1} other evaluations differ from it by no more than chance: which "
                "of them is the best is luck"
            )
