"""Which memory a tensor is, known without keeping it alive."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef


class StorageIdentity:
    """Which elements of which storage a tensor is, without keeping it alive."""

    def __init__(self, tensor: Tensor) -> None:
        self._storage = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
        self._where = (tensor.storage_offset(), tensor.shape, tensor.stride())

    def is_of(self, other: StorageIdentity) -> bool:
        """Whether both are the same, of a storage that still lives: memory is used again."""
        return self._where == other._where and self.shares_storage(other)

    def shares_storage(self, other: StorageIdentity) -> bool:
        """Whether both lie in one storage that still lives."""
        return (
            not self._storage.expired()  # type: ignore[no-untyped-call]
            and self._storage.cdata == other._storage.cdata
        )


def is_known(this: StorageIdentity, others: Sequence[StorageIdentity]) -> bool:
    """Whether a tensor is one of `others`."""
    return any(one.is_of(this) for one in others)


def any_is_known(
    these: Sequence[StorageIdentity], others: Sequence[StorageIdentity]
) -> bool:
    """Whether a tensor of `these` is one of `others`."""
    return any(is_known(this, others) for this in these)
