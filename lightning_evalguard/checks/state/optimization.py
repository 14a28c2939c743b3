"""What optimizers and schedulers are set to, and how many steps they took."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lightning_evalguard.checks.state.change import Change


class Optimization:
    """Hyper-parameters and step counts of optimizers and schedulers at one moment."""

    def __init__(self, optimizers: Iterable[Any], schedulers: Iterable[Any]) -> None:
        self._kinds: dict[str, str] = {}
        self._settings: dict[tuple[str, str], Any] = {}
        for i, optimizer in enumerate(optimizers):
            name = f"optimizers[{i}]"
            self._kinds[name] = type(optimizer).__name__
            self._settings[name, "len(param_groups)"] = len(optimizer.param_groups)
            for j, group in enumerate(optimizer.param_groups):
                for key, value in group.items():
                    if isinstance(value, (bool, int, float, tuple)):
                        self._settings[name, f"param_groups[{j}][{key!r}]"] = value
        for i, scheduler in enumerate(schedulers):
            name = f"lr_schedulers[{i}]"
            self._kinds[name] = type(scheduler).__name__
            self._settings[name, "last_epoch"] = getattr(scheduler, "last_epoch", None)

    def values(self) -> dict[str, dict[str, Any]]:
        """The settings of each optimizer and scheduler, by its name."""
        values: dict[str, dict[str, Any]] = {name: {} for name in self._kinds}
        for (name, key), value in self._settings.items():
            values[name][key] = value
        return values

    def changes(self, now: Optimization, when: str, certain: bool) -> Iterable[Change]:
        for (name, key), value in now._settings.items():
            before = self._settings.get((name, key), value)
            if value != before:
                fact = f"went from {key}={before} to {key}={value} {when}"
                remedy = f"Change {key} in training only."
                if key == "last_epoch":
                    fact, remedy = f"took a step {when}", "Step it in training only."
                kind, expected = now._kinds[name], "it as before"
                yield Change(name, kind, fact, expected, remedy, certain=certain)
