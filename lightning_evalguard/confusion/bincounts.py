"""Confusion matrices that a step counts itself: ``torch.bincount(n * target + preds, n**2)``."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_evalguard.confusion.loader import LoaderCount
from lightning_evalguard.confusion.losses import See
from lightning_evalguard.confusion.sources import Pair
from lightning_evalguard.instruments.dispatch import compiles
from lightning_evalguard.instruments.patch import Wrap
from lightning_evalguard.instruments.source import nearest, owner_of, site_of
from lightning_evalguard.paths import shown_path

COUNTED = "bincount"


class BincountTap:
    """Hears of counted pairs of labels, from `open` to `close`.

    A histogram of anything else is counted alike: the rows, or the columns, must be the labels
    of the first batch.

    Args:
        see: Is told of each pair.
    """

    def __init__(self, see: See) -> None:
        self._see = see
        self._wraps: list[Wrap] = []
        self._entry: LoaderCount | None = None
        # by loader: whether the columns are the targets
        self._by_columns: dict[str, bool] = {}

    def open(self, module: nn.Module, entry: LoaderCount) -> None:
        """Listen to a step of this loader."""
        self._entry = entry
        if not self._wraps and not compiles(module):
            self._wraps = [
                Wrap(owner, COUNTED, self._counted) for owner in (torch, Tensor)
            ]

    def close(self) -> None:
        """Give the names back."""
        self._entry = None
        while self._wraps:
            self._wraps.pop().remove()

    def _counted(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        value = original(*args, **kwargs)
        if not torch.compiler.is_compiling():
            # a tensor of a class of its own, arguments that are called otherwise
            with contextlib.suppress(Exception):
                self._look(*args, **kwargs)
        return value

    def _look(self, input: Tensor, weights: Any = None, minlength: int = 0) -> None:
        entry = self._entry
        n = math.isqrt(minlength)
        frame = nearest(sys._getframe(2), frozenset({"self"}))
        is_users = frame is not None and owner_of(frame.f_code.co_filename) == "user"
        if entry is None or not is_users or weights is not None or input.ndim != 1:
            return
        if n < 2 or n * n != minlength or not len(input):
            return
        rows = torch.div(input, n, rounding_mode="floor")
        columns = input % n
        if entry.chosen is None:
            by_columns = _which_are_labels(rows, columns, entry.tensors, n)
            if by_columns is None:
                return
            self._by_columns[entry.key] = by_columns
        target, preds = rows, columns
        if self._by_columns[entry.key]:
            target, preds = columns, rows
        assert frame is not None
        site = site_of(frame)
        pair = Pair(
            preds,
            target,
            f"`{COUNTED}` at {shown_path(site.location)}",
            task="multiclass",
            num_classes=n,
            classification=True,
            judges=True,
            is_ordered=False,
            location=site.location,
        )
        self._see("function", COUNTED, pair, None)


def _which_are_labels(
    rows: Tensor, columns: Tensor, leaves: Sequence[Tensor], n: int
) -> bool | None:
    """Whether the columns are labels of the batch, or the rows; None where neither are."""
    for leaf in leaves:
        if leaf.is_floating_point() or leaf.is_complex():
            continue
        flat = leaf.reshape(-1).long()
        kept = flat[(flat >= 0) & (flat < n)]
        for is_column, side in ((False, rows), (True, columns)):
            if len(kept) and torch.equal(side, kept.to(side.device)):
                return is_column
    return None
