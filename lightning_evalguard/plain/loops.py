"""The passes over loaders of a plain script that are under way."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

from lightning_evalguard.plain.names import Names
from lightning_evalguard.plain.tensors import size_of
from lightning_evalguard.plain.window import Loop


class Loops:
    """The running loops, the innermost last.

    Args:
        names: Gives a number to each loader.
        loader_of: Gives the loader of an iterator.
    """

    def __init__(self, names: Names, loader_of: Callable[[Any], Any]) -> None:
        self._names = names
        self._loader_of = loader_of
        self._running: dict[int, Loop] = {}
        self.left: list[int] = []

    def __iter__(self) -> Iterator[Loop]:
        return iter(self._running.values())

    def numbers(self) -> list[int]:
        """The ``id`` of each iterator."""
        return list(self._running)

    def innermost(self) -> Loop | None:
        """The one from which a batch was fetched last."""
        if not self._running:
            return None
        return next(reversed(self._running.values()))

    def take(self, number: int) -> Loop | None:
        """The loop of an iterator, which is over or goes on as the innermost."""
        return self._running.pop(number, None)

    def fetched(self, iterator: Any, batch: Any, loop: Loop | None) -> None:
        """A loop, or one that begins, was given a batch."""
        if loop is None:
            loader = self._loader_of(iterator)
            refer: Any = weakref.ref(loader) if loader is not None else _nothing
            loop = Loop(self._names.number(loader) if loader is not None else 0, refer)
        self._running[id(iterator)] = loop
        loop.batch, loop.size, loop.count = batch, size_of(batch), loop.count + 1
        loop.trained = False

    def exhausted(self, number: int) -> None:
        """The loop of an iterator was given all batches that there are."""
        if number in self._running:
            self._running[number].is_exhausted = True

    def trained(self) -> None:
        """Gradients are computed, or weights change, in all that run."""
        for loop in self._running.values():
            loop.trained = loop.ever_trained = True


def _nothing() -> None:
    return None
