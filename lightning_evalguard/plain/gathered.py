"""What accelerate gathers over ranks: predictions with their targets, each rank's own before it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from lightning_evalguard.confusion.comparisons import Heard, ordered
from lightning_evalguard.instruments.patch import Wrap
from lightning_evalguard.instruments.source import (
    PLUMBING,
    expression_of,
    nearest,
    site_of,
)
from lightning_evalguard.plain.tensors import memory_of, tensors_of_call

_OWNERS = PLUMBING | {"accelerate"}
_GIVEN = re.compile(r"^[^(]*\(\s*(?:\w+=)?(.*)\)$", re.DOTALL)
_TARGET = re.compile(r"target|label|reference|true|truth|gold|^y$")

"""Is given predictions, targets, the place in words, and the key of the place."""


class Gathers:
    """Hears of what `gather_for_metrics` and `gather` of one accelerator are given.

    A rank counts what it hands over, before the last batch is padded and all are put together.
    What comes back holds the samples of every rank: who counted that would count them once a rank.

    Args:
        accelerator: The accelerator.
        heard: Is told of predictions with their targets.
        targets: Gives where the tensors of the running batch lie, and of the model's inputs.
    """

    def __init__(
        self,
        accelerator: Any,
        heard: Heard,
        targets: Callable[[], tuple[set[int], set[int]]],
    ) -> None:
        self._accelerator = accelerator
        self._heard = heard
        self._targets = targets
        self._wraps: list[Wrap] = []
        self._first: tuple[Tensor, str] | None = None
        self._depth = 0
        self.returned: set[int] = set()

    def open(self) -> None:
        """Listen from here on."""
        self._wraps = [
            Wrap(self._accelerator, name, self._around)
            for name in ("gather_for_metrics", "gather")
        ]

    def close(self) -> None:
        """Leave no trace."""
        self.forget()
        while self._wraps:
            self._wraps.pop().remove()

    def forget(self) -> None:
        """A step is over."""
        self._first = None
        self.returned.clear()

    def _around(self, gather: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given = args[0] if args else next(iter(kwargs.values()), None)
        if self._depth == 0:
            self._hear(given)
        self._depth += 1
        try:
            result = gather(*args, **kwargs)
        finally:
            self._depth -= 1
        if self._depth == 0:
            self.returned |= memory_of(result) - memory_of(given)
        return result

    def _hear(self, given: Any) -> None:
        frame = nearest(sys._getframe(2), _OWNERS)
        if frame is None:
            return
        text = expression_of(frame)
        said = _GIVEN.sub(r"\1", text)
        pair = self._both(given, said)
        if pair is None:
            return
        one, other, words = pair
        batch, inputs = self._targets()
        found = _arranged(one, other, words, batch, inputs)
        if found is not None:
            path, _, line = site_of(frame).location.rpartition(":")
            self._heard(*found, text, f"{path}:{line}")

    def _both(self, given: Any, said: str) -> tuple[Tensor, Tensor, str] | None:
        """The two tensors that belong together, given at once or one after the other."""
        if isinstance(given, Mapping):
            return _of_mapping(given)
        tensors = list(tensors_of_call(given, depth=1))
        if len(tensors) == 2:
            first, _, second = said.strip("()[] ").partition(", ")
            return tensors[0], tensors[1], f"{first} == {second}"
        if len(tensors) != 1:
            return None
        (tensor,), first_one = tensors, self._first
        if first_one is None or first_one[0].shape[:1] != tensor.shape[:1]:
            self._first = (tensor, said)
            return None
        self._first = None
        return first_one[0], tensor, f"{first_one[1]} == {said}"


def _of_mapping(given: Mapping[Any, Any]) -> tuple[Tensor, Tensor, str] | None:
    tensors = {str(k): v for k, v in given.items() if isinstance(v, Tensor)}
    targets = [name for name in tensors if _TARGET.search(name.lower())]
    others = [name for name in tensors if name not in targets]
    if len(targets) != 1 or len(others) != 1:
        return None
    return tensors[others[0]], tensors[targets[0]], f"{others[0]} == {targets[0]}"


def _arranged(
    one: Tensor, other: Tensor, words: str, batch: set[int], inputs: set[int]
) -> tuple[Tensor, Tensor] | None:
    """Scores and labels, or labels and labels, as predictions and targets."""
    if one.shape == other.shape:
        if one.is_floating_point() or other.is_floating_point():
            return None
        return ordered(one, other, words, batch, inputs)
    scores, labels = (one, other) if one.ndim > other.ndim else (other, one)
    if labels.is_floating_point() or scores.ndim != labels.ndim + 1:
        return None
    if scores.ndim > 2 and scores.shape[:-1] == labels.shape:
        scores = scores.movedim(-1, 1)
    return scores.detach(), labels.detach()
