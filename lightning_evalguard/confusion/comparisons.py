"""Predictions compared with targets: how many steps and scripts count what is right.

``(preds == target).sum()`` is heard through the methods of `Tensor`, only while somebody listens.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable
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

_OPERATORS = re.compile(r"==|!=|\.eq\(|\.ne\(|\.__eq__\(|\.__ne__\(")
_PREDS = re.compile(
    r"pred|hat|out|argmax|logit|guess|round|sigmoid|[<>]|\bmax|prob|scores?\b"
)
_TARGET = re.compile(r"target|label|true|truth|\bgt\b|gold|\bclass|^\(*[yt]_?\w{0,5}\b")

_PLACES = (
    *((Tensor, name) for name in ("__eq__", "__ne__", "eq", "ne")),
    (torch, "eq"),
    (torch, "ne"),
)

Heard = Callable[[Tensor, Tensor, str, str], None]
"""Is given predictions, targets, the expression's text, and the key of the place."""


class ComparisonTap:
    """Hears of comparisons of two tensors of one shape, from `open` to `close`.

    Args:
        heard: Is told of each.
        is_inside: Whether what runs now is of no interest: within a model, it compares masks.
        targets: Gives where the tensors of the running batch lie, and of the model's inputs.
        skip: Whose files are left out when the line is looked for that compares.
        deaf: Whose comparisons are not heard.

    Attributes:
        reads: Whether numbers are read, to tell labels that are floating-point from other ones.
        hears: Whether it is told of comparisons now.
    """

    def __init__(
        self,
        heard: Heard,
        is_inside: Callable[[], bool],
        targets: Callable[[], tuple[set[int], set[int]]],
        skip: frozenset[str] = PLUMBING,
        deaf: frozenset[str] = frozenset(),
    ) -> None:
        self._heard = heard
        self._is_inside = is_inside
        self._targets = targets
        self._skip, self._deaf = skip, deaf
        self.reads = self.hears = False

    def open(self) -> None:
        """Listen from here on."""
        self.hears = True
        _comparisons.add(self)

    def pause(self) -> None:
        """Hear nothing until `open`: to give the names back takes longer than a step."""
        self.hears = False

    def close(self) -> None:
        """Leave no trace."""
        self.hears = False
        _comparisons.remove(self)

    def compare(self, one: Tensor, other: Tensor, depth: int) -> None:
        """Two tensors were compared, by whom stands so many frames up."""
        if not self.hears or self._is_inside():
            return
        frame = nearest(sys._getframe(depth + 1), self._skip)
        if frame is None or owner_of(frame.f_code.co_filename) in self._deaf:
            return
        text = expression_of(frame)
        pair = self._labels_of(one, other, text)
        if pair is None:
            return
        preds, target = pair
        path, _, line = site_of(frame).location.rpartition(":")
        self._heard(preds, target, text, f"{path}:{line}")

    def _labels_of(
        self, one: Tensor, other: Tensor, text: str
    ) -> tuple[Tensor, Tensor] | None:
        try:
            if self.reads and not _may_be_labels(one, other):
                return None
            return ordered(one, other, text, *self._targets())
        except Exception:  # noqa: BLE001 - without a storage, under vmap, or of a class of its own
            return None


class _Comparisons:
    """The comparisons of torch, tapped once in a process for everyone who listens."""

    def __init__(self) -> None:
        self._taps: tuple[ComparisonTap, ...] = ()
        self._places: list[tuple[Any, str, Any, bool]] = []

    def add(self, tap: ComparisonTap) -> None:
        """Tell one more."""
        if any(one is tap for one in self._taps):
            return
        if not self._taps:
            self._start()
        self._taps = (*self._taps, tap)

    def remove(self, tap: ComparisonTap) -> None:
        """Tell one less."""
        before, self._taps = (
            self._taps,
            tuple(one for one in self._taps if one is not tap),
        )
        if before and not self._taps:
            self._stop()

    def _start(self) -> None:
        if not self._places:
            for owner, name in _PLACES:
                tapped = self._around(getattr(owner, name))
                self._places.append((owner, name, tapped, name in vars(owner)))
        for owner, name, tapped, _ in self._places:
            setattr(owner, name, tapped)

    def _stop(self) -> None:
        for owner, name, tapped, is_own in self._places:
            if vars(owner).get(name) is not tapped:
                continue  # replaced meanwhile by someone who calls through
            if is_own:
                setattr(owner, name, tapped.__wrapped__)
            else:
                delattr(owner, name)

    def _around(self, original: Any) -> Any:
        is_compiling = torch.compiler.is_compiling

        @functools.wraps(original)
        def compared(one: Any, other: Any = None, /, **kwargs: Any) -> Any:
            if kwargs:
                if other is None:
                    return original(one, **kwargs)
                return original(one, other, **kwargs)
            result = original(one, other)
            if is_compiling() or not isinstance(other, Tensor) or other is one:
                return result
            if type(result) is Tensor and result.ndim:
                for tap in self._taps:
                    tap.compare(one, other, 1)
            return result

        return compared


_comparisons = _Comparisons()


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
    if not one.numel() or one.ndim > 4:
        return None
    if one.shape != other.shape:
        if not _are_each_others(one, other):
            return None
        one = one.reshape(-1)
        other = other.reshape(-1)
    # the k best, each compared with the target
    if _is_repeated(one) or _is_repeated(other):
        if one.ndim < 2:
            return None
        one, other = one[0], other[0]
    if not (_is_label(one) and _is_label(other)):
        return None
    first = _memory_of(one)
    second = _memory_of(other)
    if first & inputs or second & inputs or (first & batch and second & batch):
        return None
    swapped = _is_swapped(first, second, text, batch)
    preds, target = (other, one) if swapped else (one, other)
    return _labels(preds), _labels(target)


def _are_each_others(one: Tensor, other: Tensor) -> bool:
    """Whether tensors of two shapes are compared element by element: one has dimensions of 1 more.

    A column and a row are not: each element of one is compared with each of the other.
    """
    if one.numel() != other.numel():
        return False
    shorter, longer = sorted((one.shape, other.shape), key=len)
    return longer[len(longer) - len(shorter) :] == shorter


def _is_swapped(first: set[int], second: set[int], text: str, batch: set[int]) -> bool:
    if bool(first & batch) != bool(second & batch):
        return bool(first & batch)
    match = _OPERATORS.search(text)
    if match is None:
        return False
    left = text[: match.start()].lower()
    right = text[match.end() :].lower()
    left = re.split(r"[(,\[=+]\s*", left)[-1] if "argmax" not in left else left
    target_first = bool(_TARGET.search(left)) and not _PREDS.search(left)
    return target_first and bool(_PREDS.search(right))


def _is_repeated(tensor: Tensor) -> bool:
    return tensor.ndim > 1 and tensor.shape[0] > 1 and tensor.stride(0) == 0


def _is_label(tensor: Tensor) -> bool:
    return not tensor.is_complex() and tensor.layout == torch.strided


def _may_be_labels(one: Tensor, other: Tensor) -> bool:
    """Whether both are labels: two of floating-point numbers are where they say yes or no."""
    if not (_is_label(one) and _is_label(other)):
        return False
    most = 1 if one.is_floating_point() and other.is_floating_point() else float("inf")
    return _is_whole(one, most) and _is_whole(other, most)


def _is_whole(tensor: Tensor, most: float) -> bool:
    if not tensor.is_floating_point():
        return True
    return bool(((tensor >= 0) & (tensor <= most) & (tensor % 1 == 0)).all())


def _labels(tensor: Tensor) -> Tensor:
    """Labels as integers; floating-point ones (0.0 and 1.0) where they are whole."""
    # the same one where it can be: by that it is known for the batch's own
    tensor = tensor.detach() if tensor.requires_grad else tensor
    if tensor.ndim > 1 and tensor.shape[1:].numel() == 1:
        tensor = tensor.reshape(len(tensor))
    if tensor.dtype == torch.bool or tensor.is_floating_point():
        return tensor.long()
    return tensor


def _memory_of(tensor: Tensor) -> set[int]:
    strided = tensor.layout == torch.strided
    if strided:
        return {tensor.untyped_storage().data_ptr()}
    return set()
