"""The metrics that rank, in one evaluation: are they given scores, or decisions?"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from lightning_evalguard.confusion.decisions import (
    REMEDY,
    decisions_in,
    is_curve,
    said_of,
)
from lightning_evalguard.data.loaders import Fact
from lightning_evalguard.instruments.patch import Wrap


class Curves:
    """Looks at what torchmetrics' ROC curves and their kin hold at the end of an evaluation.

    They are looked at once the last step is over, and again where they are asked for their value
    later: some are updated when the epoch ends. Nothing is kept but a count.
    """

    def __init__(self) -> None:
        self._metrics: list[tuple[str, Any]] = []
        self._wraps: list[Wrap] = []
        self._decisions: dict[str, tuple[Any, int]] = {}
        self._ends = False

    def begin(self, root: nn.Module | None) -> None:
        """The first step of an evaluation of `root` is about to run."""
        self.end()
        modules = root.named_modules() if root is not None else ()
        self._metrics = [(n, m) for n, m in modules if is_curve(m)]
        for name, metric in self._metrics:
            around = partial(self._asked, name, metric)
            self._wraps.append(Wrap(metric, "compute", around))

    def steps_over(self) -> None:
        """The last step is over."""
        self._ends = True
        for name, metric in self._metrics:
            self._look(name, metric)

    def _asked(
        self, name: str, metric: Any, compute: Callable[..., Any], *args: Any, **kw: Any
    ) -> Any:
        if self._ends:
            self._look(name, metric)
        return compute(*args, **kw)

    def _look(self, name: str, metric: Any) -> None:
        if samples := decisions_in(metric):
            self._decisions[name] = metric, samples

    def facts(self) -> list[Fact]:
        """Those that were given decisions alone; the members of one collection are one fact."""
        groups: dict[tuple[str, int], list[str]] = {}
        for name, (_, samples) in self._decisions.items():
            parent = name.rpartition(".")[0]
            groups.setdefault((parent or name, samples), []).append(name)
        found = []
        for (parent, samples), names in groups.items():
            subject = names[0]
            kind = type(self._decisions[names[0]][0]).__name__
            if len(names) > 1:
                subject = parent
                kind = "MetricCollection"
            found.append(Fact(said_of(samples), REMEDY, subject, kind, certain=False))
        return found

    def end(self) -> None:
        """Leave the metrics as they were."""
        for wrap in self._wraps:
            wrap.remove()
        self._wraps, self._metrics = [], []
        self._decisions, self._ends = {}, False
