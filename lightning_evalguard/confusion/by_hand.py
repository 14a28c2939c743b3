"""Losses that a step writes out: the probability of each sample's class, gathered by its label."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_evalguard.confusion.losses import See
from lightning_evalguard.confusion.sources import Pair
from lightning_evalguard.instruments.dispatch import compiles
from lightning_evalguard.instruments.patch import Wrap
from lightning_evalguard.instruments.source import user_site
from lightning_evalguard.paths import shown_path

_SCATTERS = ((torch, "scatter"), (Tensor, "scatter"), (Tensor, "scatter_"))


class GatherTap:
    """Sees ``log_probs.gather(1, target[:, None])``, and where else labels of the batch are used.

    Args:
        see: Is told of each pair.
        stands_in_batch: Whether a tensor lies in the running batch.

    Attributes:
        reads: Whether values are read, to tell probabilities from what else is gathered.
        used: Whether labels of the batch told which class was meant, in a way that is no pair.
    """

    def __init__(self, see: See, stands_in_batch: Callable[[Tensor], bool]) -> None:
        self._see = see
        self._stands_in_batch = stands_in_batch
        self._wraps: list[Wrap] = []
        self.reads = self.used = False
        # shapes of one-hot labels of the batch
        self._of_labels: set[torch.Size] = set()
        self._of_scores: set[torch.Size] = set()  # shapes of what a softmax gave

    def open(self, module: nn.Module) -> None:
        """Listen from now on."""
        if not self._wraps and not compiles(module):
            self._wraps = [
                Wrap(owner, "gather", self._gathered) for owner in (torch, Tensor)
            ]
            if self.reads:
                self._wraps.append(Wrap(F, "one_hot", self._numbered))
                self._wraps += [
                    Wrap(owner, name, self._placed) for owner, name in _SCATTERS
                ]
                names = ("softmax", "log_softmax")
                self._wraps += [
                    Wrap(owner, name, self._softened)
                    for owner, name in itertools.product((torch, Tensor), names)
                ]

    def close(self) -> None:
        """Give the names back."""
        if not self._wraps:
            return
        for wrap in self._wraps:
            wrap.remove()
        self._wraps.clear()
        self.used |= bool(self._of_labels & self._of_scores)
        self._of_labels.clear()
        self._of_scores.clear()

    def _gathered(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        value = original(*args, **kwargs)
        if not torch.compiler.is_compiling():
            # a subclass, a tensor without a storage
            with contextlib.suppress(Exception):
                self._look(*args, **kwargs)
        return value

    def _numbered(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        value = original(*args, **kwargs)
        if args and not torch.compiler.is_compiling():
            with contextlib.suppress(Exception):
                if self._stands_in_batch(args[0]):
                    self._of_labels.add(value.shape)
        return value

    def _placed(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        value = original(*args, **kwargs)
        if len(args) > 2 and not torch.compiler.is_compiling():
            with contextlib.suppress(Exception):
                _, dim, index = args[:3]
                if index.shape[dim] == 1 and self._stands_in_batch(index):
                    self._of_labels.add(value.shape)
        return value

    def _softened(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        value = original(*args, **kwargs)
        if not torch.compiler.is_compiling():
            self._of_scores.add(value.shape)
        return value

    def _look(self, input: Tensor, dim: Any, index: Tensor, **_: Any) -> None:
        if not isinstance(dim, int) or not input.is_floating_point() or input.ndim < 2:
            return
        axis = dim % input.ndim
        shape = [*input.shape[:axis], 1, *input.shape[axis + 1 :]]
        one_each = axis in (1, input.ndim - 1) and list(index.shape) == shape
        if not one_each or not self._stands_in_batch(index):
            return
        if self.reads and not _are_probabilities(input, axis):
            self.used = True
            return
        site = user_site(3)
        where = ""
        if site is not None:
            where = f" at {shown_path(site.location)}"
        pair = Pair(
            input,
            index.squeeze(axis),
            f"`gather`{where}",
            task="multiclass",
            preds_are="logits",
            classification=True,
            axis=1 if axis == 1 else -1,
            location=site.location if site is not None else None,
        )
        self._see("function", "gather", pair, None)


def _are_probabilities(scores: Tensor, axis: int) -> bool:
    """Whether scores of the classes, or what they are logarithms of, sum to one."""
    scores = scores.detach().float()
    total = scores.sum(axis) if bool((scores >= 0).all()) else scores.exp().sum(axis)
    return bool(((total - 1).abs() < 1e-2).all())
