"""What a step was given, as it was before the step: its containers, for it may take from them."""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from lightning_evalguard.instruments.generators import is_generator
from lightning_evalguard.instruments.rollback import Snapshot, things

_NOT_HELD = (Tensor, nn.Module, types.FunctionType)


class Given(Snapshot):
    """The containers and plain objects among a step's arguments; not what their tensors hold.

    A step that pops the labels from its batch, deletes a key or appends to a list can be run again
    on what it was given. Afterwards the batch is what the step made of it.

    Args:
        args: The arguments, before the step.
    """

    def __init__(self, args: tuple[Any, ...]) -> None:
        super().__init__([args])
        self._args = args

    @property
    def is_changed(self) -> bool:
        """Whether a container holds other things than before."""
        now = list(things([self._args]))
        if len(now) != len(self._seen):
            return True
        return any(one is not other for one, other in zip(now, self._seen, strict=True))

    @contextmanager
    def as_before(self) -> Iterator[None]:
        """The arguments are what they were before the step."""
        after = Given((self._args, *self._seen))
        self.restore()
        try:
            yield
        finally:
            after.restore()

    def _hold(self, thing: Any, kind: type) -> None:
        holds_numbers = issubclass(kind, _NOT_HELD) or kind.__module__ == "numpy"
        if not (holds_numbers or is_generator(kind)):
            super()._hold(thing, kind)
