"""Recognises a tensor again without holding it and without a weak reference to it.

`torch.utils.swap_tensors`, by which torch can convert modules, refuses a tensor that anything
refers to weakly.
"""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef


class Identity:
    """One tensor: by its place in a module, or by its memory where it left that place.

    Args:
        tensor: The parameter or buffer.
        module: The module that registered it.
        key: Its own name there.
    """

    __slots__ = ("_id", "_key", "_memory", "_module")

    def __init__(self, tensor: Tensor, module: nn.Module, key: str) -> None:
        self._id = id(tensor)
        self._module = weakref.ref(module)
        self._key = key
        self._memory = _memory(tensor)

    def tensor(self) -> Tensor | None:
        """The tensor where it still stands in its module; else None."""
        module = self._module()
        if module is None:
            return None
        for registered in ("_parameters", "_buffers"):
            # of a scripted module, no plain dict
            tensors = vars(module).get(registered, {})
            if self._key not in tensors:
                continue
            tensor: Tensor | None = tensors[self._key]
            if tensor is not None and id(tensor) == self._id:
                return tensor
        return None

    def __call__(self, tensor: Tensor) -> bool:
        """Whether `tensor` is the one."""
        if id(tensor) != self._id:
            return False
        return self.tensor() is tensor or (
            self._memory is not None and self._memory == _memory(tensor)
        )

    @property
    def gone(self) -> bool:
        """Whether neither its place nor its memory is left."""
        memory: Any = self._memory
        return self.tensor() is None and (memory is None or memory.expired())


def _memory(tensor: Tensor) -> StorageWeakRef | None:
    try:
        return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
    except (RuntimeError, NotImplementedError):  # sparse, lazy, some subclasses
        return None
