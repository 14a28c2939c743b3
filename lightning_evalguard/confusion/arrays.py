"""Predictions and targets that a step turns into arrays, to compare them in numpy.

``(pred.argmax(1).cpu().numpy() == y.cpu().numpy()).mean()`` is heard by no tap of torch. What is
heard is that both become arrays; whether their comparison is the score is known by its value alone.
"""

from __future__ import annotations

import contextlib
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_evalguard.confusion import labels
from lightning_evalguard.confusion.differences import candidates, claim_of
from lightning_evalguard.confusion.loader import LoaderCount
from lightning_evalguard.confusion.result import ConfusionResult
from lightning_evalguard.confusion.sources import Pair
from lightning_evalguard.instruments.patch import Wrap
from lightning_evalguard.instruments.source import (
    LIBRARIES,
    expression_of,
    nearest,
    owner_of,
    site_of,
)
from lightning_evalguard.paths import shown_path

_NAMES = ("numpy", "__array__", "tolist")
_MOST = 16  # conversions of one step; a step that has more reads samples one by one
_MOST_OF_EPOCH = 1024  # and those after the last step
_TARGET = re.compile(r"target|label|true|truth|\bgt\b|gold|\bclass|^\(*[yt]_?\w{0,5}\b")
_PREDS = re.compile(
    r"pred|hat|out|argmax|logit|guess|round|sigmoid|[<>]|\bmax|prob|scores?\b"
)


@dataclass
class Array:
    """A tensor that became an array.

    Attributes:
        tensor: The tensor.
        text: How it is written.
        location: ``file:line``.
        place: Which instruction made it an array.
    """

    tensor: Tensor
    text: str
    location: str
    place: object = None


class ArrayTap:
    """Hears of tensors that become arrays or lists, from `open` to `close`.

    Args:
        is_inside: Whether what runs now is of no interest.

    Attributes:
        given: What became an array in the running step.
    """

    def __init__(self, is_inside: Callable[[], bool]) -> None:
        self._is_inside = is_inside
        self._wraps: list[Wrap] = []
        self._most = _MOST
        self._known: set[object] = set()  # where those lie that are held in `given`
        self.given: list[Array] = []

    @property
    def is_open(self) -> bool:
        """Whether it listens."""
        return bool(self._wraps)

    def open(self, of_epoch: bool = False) -> None:
        """Listen from here on: to a step, or to what is made of all of them."""
        self._most = _MOST_OF_EPOCH if of_epoch else _MOST
        if not self._wraps:
            self._wraps = [Wrap(Tensor, name, self._around) for name in _NAMES]

    def close(self) -> None:
        """Leave no trace."""
        self.given.clear()
        self._known.clear()
        while self._wraps:
            self._wraps.pop().remove()

    def _around(self, original: Any, tensor: Any, *args: Any, **kwargs: Any) -> Any:
        value = original(tensor, *args, **kwargs)
        if not torch.compiler.is_compiling():
            with contextlib.suppress(Exception):  # a tensor of a class of its own
                self._hear(tensor)
        return value

    def _hear(self, tensor: Tensor) -> None:
        if self._is_inside() or len(self.given) >= self._most or not tensor.ndim:
            return
        frame = nearest(sys._getframe(3), frozenset())
        if frame is None or owner_of(frame.f_code.co_filename) in LIBRARIES:
            return
        here = tensor.data_ptr(), tensor.shape, tensor.stride()
        if here in self._known:
            return
        self._known.add(here)
        path, _, line = site_of(frame).location.rpartition(":")
        text = expression_of(frame)
        place = (frame.f_code, frame.f_lasti)
        self.given.append(Array(tensor.detach(), text, f"{path}:{line}", place))

    def pairs(self, entry: LoaderCount) -> list[tuple[str, Pair]]:
        """What may be predictions with targets of the running batch, each with its place."""
        targets = [array for array in self.given if _lies_in(entry, array.tensor)]
        if not targets:
            labels_held = [a for a in self.given if holds_label(entry, a.tensor)]
            targets = labels_held[-1:]
        others = without(self.given, targets)
        if not targets:
            targets, others = told_apart(others)
        found: dict[str, Pair] = {}
        for target in targets:
            for array in others:
                if fit(array.tensor, target.tensor):
                    place = f"{array.location} {target.location}"
                    found.setdefault(place, array_pair(array, target))
        return list(found.items())


def _lies_in(entry: LoaderCount, tensor: Tensor) -> bool:
    is_whole = not (tensor.is_floating_point() or tensor.is_complex())
    return is_whole and entry.role_of(tensor) is not None


def holds_label(entry: LoaderCount, tensor: Tensor) -> bool:
    """Whether a tensor is one of labels of the running batch, or a copy of one."""
    if tensor.is_floating_point() or tensor.is_complex():
        return False
    if _lies_in(entry, tensor):
        return True
    return labels.equals_one_of(
        tensor, [t for t in entry.tensors if not t.is_floating_point()]
    )


def agrees(result: ConfusionResult, logged: Mapping[str, float]) -> bool:
    """Whether a logged value is a score of what was counted, by name or as an accuracy."""
    for key, value in logged.items():
        claim = claim_of(key)
        if claim is not None and _is_one_of(value, candidates(result, claim).values()):
            return True
        accuracy = result.scores.get("accuracy", math.nan)
        if _ACCURACY.search(key) and _is_one_of(value, [accuracy, 1 - accuracy]):
            return True
    return False


def _is_one_of(value: float, scores: Iterable[float]) -> bool:
    return any(_is_near(value, s) or _is_near(value, 100 * s) for s in scores)


def _is_near(value: float, score: float) -> bool:
    return math.isclose(value, score, rel_tol=1e-5, abs_tol=1e-6)


_ACCURACY = re.compile(r"acc|correct|right|err", re.IGNORECASE)


def told_apart(arrays: list[Array]) -> tuple[list[Array], list[Array]]:
    """Targets and predictions among arrays of which none lies in the batch, by how they read."""
    whole = [array for array in arrays if not array.tensor.is_floating_point()]
    targets = [a for a in whole if not _PREDS.search(a.text)]
    named = [a for a in targets if _TARGET.search(a.text.lower())]
    if named or len(targets) > 1:
        targets = named
    return targets, without(arrays, targets)


def without(arrays: Iterable[Array], targets: Iterable[Array]) -> list[Array]:
    """The arrays that are none of `targets`."""
    places = {id(array) for array in targets}
    return [array for array in arrays if id(array) not in places]


def fit(preds: Tensor, target: Tensor) -> bool:
    """Whether scores or labels have the shape that goes with labels."""
    if preds.is_complex() or target.is_floating_point():
        return False
    if preds.is_floating_point():
        of_classes = preds.ndim == target.ndim + 1 and len(preds) == len(target)
        return of_classes and preds.shape[:1] + preds.shape[2:] == target.shape
    return preds.shape == target.shape


def array_pair(array: Array, label: Array) -> Pair:
    """What two arrays show."""
    said = f"the arrays `{_short(array.text)}` and `{_short(label.text)}` at "
    return Pair(
        array.tensor,
        label.tensor,
        said + shown_path(label.location),
        classification=True,
        location=label.location,
        is_array=True,
        is_ordered=False,
    )


def _short(text: str) -> str:
    if len(text) <= 40:
        return text
    return f"{text[:37]}..."
