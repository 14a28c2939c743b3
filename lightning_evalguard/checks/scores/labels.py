"""Does a step read the labels of its batch? One that makes its own targets has no such score."""

from __future__ import annotations

from typing import Any

from lightning_evalguard.data.batches import tensors
from lightning_evalguard.instruments.dispatch import (
    Op,
    Subscriber,
    storage_key,
    tensors_in,
)

_SAME = frozenset({"detach", "alias"})  # what a step is handed over with


class LabelsRead(Subscriber):
    """Knows whether a step gives a tensor of labels to an operator.

    Args:
        labels: Where the batch's labels lie.

    Attributes:
        unread: Whether there are labels, and none of them was read so far.
    """

    def __init__(self, labels: set[int]) -> None:
        self._labels = labels
        self.unread = bool(labels)

    def before(self, op: Op) -> None:
        if not self.unread or op.name in _SAME:
            return
        given = tensors_in([*op.args, *op.kwargs.values()])
        if any(storage_key(tensor) in self._labels for tensor in given):
            self.unread = False


def places_of_labels(batch: Any) -> set[int]:
    """Where the whole numbers of a batch lie, which may be labels."""
    whole = [t for t in tensors(batch) if not (t.is_floating_point() or t.is_complex())]
    return places_of(whole)


def places_of(batch: Any) -> set[int]:
    """Where the tensors of a batch lie."""
    return {
        key for tensor in tensors(batch) if (key := storage_key(tensor)) is not None
    }
