"""Predictions compared with targets: how most scripts count what is right.

``(preds == target).sum()`` is heard through the methods of `Tensor`, only while somebody listens
and never inside of a model. What scikit-learn is asked is heard through the one function that
checks the arguments of all its classification scores.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from lightning_evalguard.instruments.source import (
    PLUMBING,
    expression_of,
    nearest,
    owner_of,
    site_of,
)
from lightning_evalguard.plain.tensors import memory_of

_METHODS = ("__eq__", "__ne__", "eq", "ne")
_OPERATORS = re.compile(r"==|!=|\.eq\(|\.ne\(|\.__eq__\(|\.__ne__\(")
_PREDS = re.compile(r"pred|hat|out|argmax|logit|guess|round|sigmoid|[<>]|\bmax|prob|scores?\b")
_TARGET = re.compile(r"target|label|true|truth|\bgt\b|gold|\bclass|^\(*[yt]_?\w{0,5}\b")

Heard = Callable[[Tensor, Tensor, str, str], None]
"""Is given predictions, targets, the place in words, and the key of the place."""


class ComparisonTap:
    """Hears of comparisons of two tensors of one shape, from `open` to `close`.

    Args:
        heard: Is told of each.
        is_inside: Whether a model runs: what it compares are masks.
        targets: Gives where the tensors of the running batch lie, and of the model's inputs.
    """

    def __init__(
        self,
        heard: Heard,
        is_inside: Callable[[], bool],
        targets: Callable[[], tuple[set[int], set[int]]],
    ) -> None:
        self._heard, self._is_inside, self._targets = heard, is_inside, targets
        self._taps = {name: self._around(name) for name in _METHODS}
        self._is_open = False

    def open(self) -> None:
        """Listen from here on."""
        if self._is_open:
            return
        self._is_open = True
        for name, tap in self._taps.items():
            setattr(Tensor, name, tap)

    def close(self) -> None:
        """Leave no trace."""
        if not self._is_open:
            return
        self._is_open = False
        for name, tap in self._taps.items():
            if vars(Tensor).get(name) is tap:
                delattr(Tensor, name)

    def _around(self, name: str) -> Callable[..., Any]:
        original = getattr(Tensor, name)
        is_compiling = torch.compiler.is_compiling

        @functools.wraps(original)
        def compared(one: Any, other: Any = None, /, **kwargs: Any) -> Any:
            if kwargs:
                return original(one, **kwargs) if other is None else original(one, other, **kwargs)
            result = original(one, other)
            if is_compiling() or not isinstance(other, Tensor) or self._is_inside():
                return result
            if type(result) is Tensor and result.ndim:
                self._compare(one, other)
            return result

        return compared

    def _compare(self, one: Tensor, other: Tensor) -> None:
        frame = nearest(sys._getframe(2), PLUMBING)
        if frame is None:
            return
        text = expression_of(frame)
        pair = ordered(one, other, text, *self._targets())
        if pair is None:
            return
        preds, target = pair
        site = site_of(frame)
        path, _, line = site.location.rpartition(":")
        self._heard(preds, target, text, f"{path}:{line}")


def ordered(
    one: Tensor, other: Tensor, text: str, batch: set[int], inputs: set[int]
) -> tuple[Tensor, Tensor] | None:
    """`one` and `other` as predictions and targets of one label a sample; None for anything else.

    Which is which: the target lies in the batch, else the source text says so, else the first
    operand is the prediction.

    Args:
        one: The first operand.
        other: The second.
        text: The source text of the comparison.
        batch: Where the batch's tensors lie.
        inputs: Where those lie that the model was given.
    """
    if one.shape != other.shape or not one.numel() or one.ndim > 4:
        return None
    if _is_repeated(one) or _is_repeated(other):  # the k best, each compared with the target
        if one.ndim < 2:
            return None
        one, other = one[0], other[0]
    if not (_is_label(one) and _is_label(other)):
        return None
    first, second = memory_of(one), memory_of(other)
    if first & inputs or second & inputs:
        return None
    swapped = _is_swapped(first, second, text, batch)
    preds, target = (other, one) if swapped else (one, other)
    return _labels(preds), _labels(target)


def _is_swapped(first: set[int], second: set[int], text: str, batch: set[int]) -> bool:
    if bool(first & batch) != bool(second & batch):
        return bool(first & batch)
    match = _OPERATORS.search(text)
    if match is None:
        return False
    left, right = text[: match.start()].lower(), text[match.end() :].lower()
    left = re.split(r"[(,\[=+]\s*", left)[-1] if "argmax" not in left else left
    target_first = bool(_TARGET.search(left)) and not _PREDS.search(left)
    return target_first and bool(_PREDS.search(right))


def _is_repeated(tensor: Tensor) -> bool:
    return tensor.ndim > 1 and tensor.shape[0] > 1 and tensor.stride(0) == 0


def _is_label(tensor: Tensor) -> bool:
    return not tensor.is_complex() and tensor.layout == torch.strided


def _labels(tensor: Tensor) -> Tensor:
    """Labels as integers; floating-point ones (0.0 and 1.0) where they are whole."""
    tensor = tensor.detach()
    if tensor.ndim > 1 and tensor.shape[1:].numel() == 1:
        tensor = tensor.reshape(len(tensor))
    return tensor.long() if tensor.dtype == torch.bool or tensor.is_floating_point() else tensor


def _asked_by_user(frame: FrameType | None) -> str:
    """The score that was asked for, which may ask another one itself."""
    name = ""
    while frame is not None and owner_of(frame.f_code.co_filename) == "sklearn":
        if frame.f_code.co_name in vars(sys.modules["sklearn.metrics"]):
            name = frame.f_code.co_name
        frame = frame.f_back
    return name


def hear_sklearn(heard: Callable[[Any, Any, str], None]) -> Callable[[], None] | None:
    """Hear what scikit-learn's classification scores are asked.

    Args:
        heard: Is given ``y_true``, ``y_pred`` and the name of the score.

    Returns:
        What ends it; None where scikit-learn is not loaded, or has no such function.
    """
    home = sys.modules.get("sklearn.metrics._classification")
    original = getattr(home, "_check_targets", None)
    if home is None or original is None or hasattr(original, "_evalguard"):
        return None

    @functools.wraps(original)
    def checked(y_true: Any, y_pred: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(y_true, y_pred, *args, **kwargs)
        heard(y_true, y_pred, _asked_by_user(sys._getframe(1)))
        return result

    checked._evalguard = True  # type: ignore[attr-defined]
    vars(home)["_check_targets"] = checked

    def stop() -> None:
        if vars(home).get("_check_targets") is checked:
            vars(home)["_check_targets"] = original

    return stop
