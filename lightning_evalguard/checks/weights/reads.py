"""Which memory does a step read, and does anything come of it?"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_evalguard.instruments.dispatch import (
    Op,
    Subscriber,
    storage_key,
    tensors_in,
)


@dataclass(slots=True)
class _Value:
    """What an operator gave.

    Attributes:
        made_of: The memory from outside of the step that it was computed from, a bit each.
        modules: The ``id`` of each module that ran around the operator.
        tensor: The result, weakly; None for memory from outside.
        used: Whether another operator read it.
    """

    made_of: int
    modules: frozenset[int] = frozenset()
    tensor: weakref.ref[Tensor] | None = None
    used: bool = False

    def is_left(self, owners: set[int]) -> bool:
        """Whether it was computed inside of one of these modules, and nothing has it any more."""
        gone = self.tensor is not None and self.tensor() is None
        return gone and not owners.isdisjoint(self.modules)


class MemoryReads(Subscriber):
    """Which memory the operators of a step read, and what they made of it."""

    def __init__(self) -> None:
        self.storages: set[int | None] = set()
        self._bits: dict[int, int] = {}  # of memory from outside
        self._now: dict[int, _Value] = {}  # what lies in which memory
        self._values: list[_Value] = []
        self._left_the_step = 0  # what was read as a number
        self._others: list[MemoryReads] = []

    def before(self, op: Op) -> None:
        self.storages.update(map(storage_key, _inputs(op)))

    def after(self, op: Op) -> None:
        made_of = 0
        for key in map(storage_key, _inputs(op)):
            if key is not None:
                value = self._value(key)
                value.used = True
                made_of |= value.made_of
        results = list(tensors_in(op.out))
        if not results:
            self._left_the_step |= made_of
            return
        modules = frozenset(map(id, op.modules()))
        for tensor in results:
            key = storage_key(tensor)
            if key is None:
                self._left_the_step |= made_of
                continue
            value = _Value(made_of, modules, weakref.ref(tensor))
            self._now[key] = value
            self._values.append(value)

    def _value(self, key: int) -> _Value:
        """What lies at `key`: of memory that no operator has written, it came from outside."""
        value = self._now.get(key)
        if value is None:
            bit = self._bits.setdefault(key, 1 << len(self._bits))
            value = self._now[key] = _Value(bit)
        return value

    def __contains__(self, tensor: Tensor) -> bool:
        return storage_key(tensor) in self.storages

    def add(self, other: MemoryReads) -> None:
        """Another step was watched, too."""
        self.storages |= other.storages
        self._others.append(other)

    def in_vain(self, tensor: Tensor, owners: Iterable[object]) -> bool:
        """Whether all that was made of `tensor` stayed where `owners` run, and nobody took it.

        So does an output of a layer, e.g. a pooler's, that the step leaves alone.

        Args:
            tensor: A parameter.
            owners: The modules that hold it, without the one that is evaluated.
        """
        inside = set(map(id, owners))
        each = [one for one in (self, *self._others) if tensor in one]
        return bool(each) and all(one._is_left(tensor, inside) for one in each)

    def _is_left(self, tensor: Tensor, owners: set[int]) -> bool:
        key: Any = storage_key(tensor)
        bit = self._bits.get(key, 0)
        if not bit or self._left_the_step & bit:
            return False
        ends = [v for v in self._values if v.made_of & bit and not v.used]
        return bool(ends) and all(end.is_left(owners) for end in ends)


def _inputs(op: Op) -> list[Tensor]:
    values = (*op.args, *op.kwargs.values())
    return [tensor for value in values for tensor in tensors_in(value)]
