"""What optimizers and schedulers are set to, and how many steps they took."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_evalguard.checks.state.change import Change

_GROUPS = "len(param_groups)"


def _shown(value: Any) -> str:
    """A setting as a reader writes it: 0.01, not 0.010000000000000002."""
    if isinstance(value, float) and math.isclose(value, float(f"{value:g}")):
        return f"{value:g}"
    return str(value)


class Optimization:
    """Hyper-parameters and step counts of optimizers and schedulers at one moment."""

    def __init__(self, optimizers: Iterable[Any], schedulers: Iterable[Any]) -> None:
        optimizers = list(optimizers)
        self._kinds: dict[str, str] = {}
        self._settings: dict[tuple[str, str], Any] = {}
        # by which scheduler that waits for a score
        self._steered: dict[str, list[str]] = {}
        for i, optimizer in enumerate(optimizers):
            name = f"optimizers[{i}]"
            self._kinds[name] = type(optimizer).__name__
            self._settings[name, _GROUPS] = len(optimizer.param_groups)
            for j, group in enumerate(optimizer.param_groups):
                for key, value in group.items():
                    if isinstance(value, (bool, int, float, tuple)):
                        self._settings[name, f"param_groups[{j}][{key!r}]"] = value
        for i, scheduler in enumerate(schedulers):
            name = f"lr_schedulers[{i}]"
            self._kinds[name] = type(scheduler).__name__
            self._settings[name, "last_epoch"] = getattr(scheduler, "last_epoch", None)
            if isinstance(scheduler, ReduceLROnPlateau):
                steers = enumerate(optimizers)
                own = [
                    f"optimizers[{j}]" for j, o in steers if o is scheduler.optimizer
                ]
                self._steered[name] = own

    def values(self) -> dict[str, dict[str, Any]]:
        """The settings of each optimizer and scheduler, by its name."""
        values: dict[str, dict[str, Any]] = {name: {} for name in self._kinds}
        for (name, key), value in self._settings.items():
            values[name][key] = value
        return values

    def _stepped_by_a_score(self, now: Optimization) -> set[str]:
        """Schedulers that wait for an evaluation's score and got it, and their optimizers."""
        stepped: set[str] = set()
        for name, own in now._steered.items():
            key = name, "last_epoch"
            if self._settings.get(key) != now._settings.get(key):
                stepped |= {name, *own}
        return stepped

    def changes(self, now: Optimization, when: str, certain: bool) -> Iterable[Change]:
        by_hand: set[str] = set()
        if not certain:
            by_hand = self._stepped_by_a_score(now)
        for (name, key), value in now._settings.items():
            if name in by_hand:  # it waits for the score of an evaluation
                continue
            before = self._settings.get((name, key), value)
            if value != before:
                fact = (
                    f"its `{key}` went from {_shown(before)} to {_shown(value)} {when}"
                )
                remedy = f"Change `{key}` in training only."
                if key == _GROUPS:
                    fact = f"its parameter groups went from {before} to {value} {when}"
                    remedy = "Add parameter groups in training only."
                elif key == "last_epoch":
                    fact = f"took a step {when}"
                    remedy = "Step it in training only."
                kind = now._kinds[name]
                expected = "it as before"
                yield Change(name, kind, fact, expected, remedy, certain=certain)
