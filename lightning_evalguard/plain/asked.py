"""A torchmetrics object of a script that is never reset: its value holds earlier evaluations.

Known by what is asked of it: its value after one evaluation; then training goes on, the same model
is evaluated again, and its value is asked once more, of the updates of both. What is asked once for
all folds or loaders, or in the middle of training, is meant.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from lightning_evalguard.instruments.patch import Inlay, Layer
from lightning_evalguard.instruments.source import user_site
from lightning_evalguard.report import Finding

_MOST = 64  # metric objects that are followed


@dataclass
class _Asked:
    """What was asked of one metric object.

    Attributes:
        name: As the script calls it.
        metric: It.
        held: Updates that its value had when it was last asked; None before that and after a reset.
        steps: Optimizer steps by then.
        model: The ``id`` of the model that was evaluated.
        since: Updates and steps as the running evaluation began, where it was not reset.
        reported: Whether that was said.
    """

    name: str
    metric: Any
    held: int | None = None
    steps: int = 0
    model: int = 0
    since: tuple[int, int] | None = None
    reported: bool = False


class AskedMetrics:
    """Follows the metric objects that evaluations hold.

    Args:
        tell: Is given what is found.
        steps: Gives how many optimizer steps ran so far.
    """

    def __init__(
        self, tell: Callable[[Iterable[Finding]], None], steps: Callable[[], int]
    ) -> None:
        self._tell, self._steps = tell, steps
        self._known: dict[int, _Asked] = {}
        self._layers: list[Layer] = []
        self._model = 0

    def opens(self, model: nn.Module, held: Iterable[tuple[str, nn.Module]]) -> None:
        """What may be an evaluation of a model begins.

        Args:
            model: The model.
            held: The metric objects within its reach, by name.
        """
        self._model = id(model)
        for name, metric in held:
            if "_update_count" not in vars(metric):
                continue
            one = self._known.get(id(metric)) or self._follow(name, metric)
            if one is None:
                continue
            count = int(vars(metric)["_update_count"])
            one.since = None
            again = one.held == count and one.model == self._model
            if again and count and self._steps() > one.steps:
                one.since = count, self._steps()

    def leave(self) -> None:
        """Leave no trace."""
        for layer in self._layers:
            layer.remove()
        self._layers.clear()
        self._known.clear()

    def _follow(self, name: str, metric: Any) -> _Asked | None:
        if len(self._known) >= _MOST:
            return None
        one = self._known[id(metric)] = _Asked(name, metric)
        self._layers.append(Inlay(metric, "compute", partial(self._computes, one)))
        self._layers.append(Inlay(metric, "reset", partial(self._resets, one)))
        return one

    def _computes(
        self, one: _Asked, original: Callable[..., Any], layer: Layer
    ) -> Callable[..., Any]:
        def compute(*args: Any, **kwargs: Any) -> Any:
            value = original(*args, **kwargs)
            # `forward` computes the value of its batch, on a state that it puts back
            caller = sys._getframe(1).f_code.co_name
            if layer.active and not caller.startswith("_forward"):
                self._asked(one)
            return value

        return compute

    @staticmethod
    def _resets(
        one: _Asked, original: Callable[..., Any], layer: Layer
    ) -> Callable[..., Any]:
        def reset(*args: Any, **kwargs: Any) -> Any:
            if not sys._getframe(1).f_code.co_name.startswith("_forward"):
                one.held = one.since = None
            return original(*args, **kwargs)

        return reset

    def _asked(self, one: _Asked) -> None:
        count = int(vars(one.metric).get("_update_count", 0))
        since, steps = one.since, self._steps()
        if since is not None and count > since[0] and steps == since[1]:
            one.since = None
            if not one.reported:
                one.reported = True
                self._tell([_never_reset(one, since[0])])
        one.held, one.steps, one.model = count, steps, self._model


def _never_reset(one: _Asked, held: int) -> Finding:
    site = user_site(3, outside="torchmetrics")
    return Finding(
        check="scores",
        stage="evaluate",
        fact=f"is not reset: it still held {held} updates from the evaluation before when this "
        "evaluation began",
        remedy=f"Call `{one.name}.reset()` before the loop.",
        subject=one.name,
        subject_type=type(one.metric).__name__,
        location=site.location if site is not None else None,
        certain=False,
    )


__all__ = ["AskedMetrics"]
