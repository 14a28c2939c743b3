"""A torchmetrics object of a script that is never reset: its value holds earlier evaluations.

Known by what is asked of it: its value after one evaluation; then training goes on, the same model
is evaluated again, and its value is asked once more, of the updates of both. What is asked once for
all folds or loaders, or in the middle of training, is meant.

A metric is left as it is, but for its ``compute`` while its second value is waited for, which
torchmetrics leaves out of copies and pickles. Neither metrics nor models are kept alive.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from lightning_evalguard.instruments.patch import Inlay, Layer, Wrap
from lightning_evalguard.instruments.source import user_site
from lightning_evalguard.report import Finding

_MOST = 64  # metric objects that are followed


@dataclass
class _Asked:
    """What is known of one metric object.

    Attributes:
        name: As the script calls it.
        metric: A weak reference to it.
        updates: How many it held as the last evaluation in its reach began.
        steps: Optimizer steps by then.
        model: A weak reference to the model that was evaluated.
        waits: While its value is waited for: what listens to its ``compute``.
        reported: Whether it was said.
    """

    name: str
    metric: Callable[[], Any]
    updates: int = 0
    steps: int = 0
    model: Callable[[], Any] = lambda: None
    waits: Layer | None = None
    reported: bool = False

    def rest(self) -> None:
        """Wait no more."""
        if self.waits is not None:
            self.waits.remove()
            self.waits = None


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
        self._resets: Wrap | None = None

    def opens(self, model: nn.Module, held: Iterable[tuple[str, nn.Module]]) -> None:
        """What may be an evaluation of a model begins.

        Args:
            model: The model.
            held: The metric objects within its reach, by name.
        """
        steps = self._steps()
        for name, metric in held:
            one = self._of(name, metric)
            if one is None or (one.model() is model and one.steps == steps):
                continue  # the same evaluation goes on
            one.rest()
            updates = int(vars(metric)["_update_count"])
            # a value is kept until the metric is updated or reset
            asked = vars(metric).get("_computed") is not None
            grew = updates > one.updates and steps > one.steps
            if asked and grew and one.model() is model and not one.reported:
                self._wait(one, metric)
            one.updates, one.steps, one.model = updates, steps, weakref.ref(model)

    def leave(self) -> None:
        """Leave no trace."""
        for one in self._known.values():
            one.rest()
        self._known.clear()
        if self._resets is not None:
            self._resets.remove()
            self._resets = None

    def _of(self, name: str, metric: Any) -> _Asked | None:
        known = self._known.get(id(metric))
        if known is not None and known.metric() is metric:
            return known
        if "_update_count" not in vars(metric):
            return None
        self._known = {k: o for k, o in self._known.items() if o.metric() is not None}
        if len(self._known) >= _MOST:
            return None
        one = self._known[id(metric)] = _Asked(name, weakref.ref(metric))
        return one

    def _wait(self, one: _Asked, metric: Any) -> None:
        kind = next((c for c in type(metric).__mro__ if "reset" in vars(c)), None)
        base = next((c for c in type(metric).__mro__ if c.__name__ == "Metric"), None)
        if (
            base is None
            or kind is None
            or not kind.__module__.startswith("torchmetrics.")
        ):
            return  # whose own reset would not be heard
        if self._resets is None:
            # of the class: what stands in an object's own attributes goes along to its copies
            self._resets = Wrap(base, "reset", self._reset)
        one.waits = Inlay(metric, "compute", partial(self._computes, one))

    def _reset(self, reset: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        one = self._known.get(id(args[0])) if args else None
        # `forward` empties a metric for the value of one batch, and puts its state back
        of_forward = sys._getframe(2).f_code.co_name.startswith("_forward")
        if one is not None and one.metric() is args[0] and not of_forward:
            one.rest()
        return reset(*args, **kwargs)

    def _computes(
        self, one: _Asked, original: Callable[..., Any], layer: Layer
    ) -> Callable[..., Any]:
        def compute(*args: Any, **kwargs: Any) -> Any:
            value = original(*args, **kwargs)
            caller = sys._getframe(1).f_code.co_name
            if layer.active and not caller.startswith("_forward"):
                self._asked(one)
            return value

        return compute

    def _asked(self, one: _Asked) -> None:
        one.rest()
        updates = int(vars(one.metric()).get("_update_count", 0))
        if updates > one.updates and self._steps() == one.steps:
            one.reported = True
            self._tell([_never_reset(one)])


def _never_reset(one: _Asked) -> Finding:
    site = user_site(3, outside="torchmetrics")
    return Finding(
        check="scores",
        stage="evaluate",
        fact=f"is not reset: it still held {one.updates} updates from the evaluation before when "
        "this evaluation began",
        remedy=f"Call `{one.name}.reset()` before the loop.",
        subject=one.name,
        subject_type=type(one.metric()).__name__,
        location=site.location if site is not None else None,
        certain=False,
    )


__all__ = ["AskedMetrics"]
