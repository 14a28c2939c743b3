"""Numbers for loaders and sets, and the names under which evaluations stand in the report."""

from __future__ import annotations

import weakref
from types import FrameType
from typing import Any

from lightning_evalguard.instruments.source import owner_of
from lightning_evalguard.plain.frames import functions_around
from lightning_evalguard.plain.window import Loop, Window


class Names:
    """Of each evaluation the name of its function, with a number for each set after the first."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._made = 0
        self._names: dict[tuple[Any, int], str] = {}

    def take(self, window: Window) -> None:
        """The window proves to be an evaluation: its name is its own from now on."""
        self._names[window.where] = window.name

    def of(self, user: FrameType, loop: Loop | None) -> tuple[str, tuple[Any, int]]:
        """A name that may be taken, and what it is the name of: the code and the set."""
        named = [f for f in functions_around(user, owner_of) if not f.startswith("<")]
        said = "evaluate"
        if named and named[0] != "main":
            said = named[0]
        loader = None
        if loop is not None:
            loader = loop.loader()
        data = getattr(loader, "dataset", None)
        where = (user.f_code, self.number(data) if data is not None else 0)
        if where in self._names:
            return self._names[where], where
        taken = sum(name.split(" ")[0] == said for name in self._names.values())
        return (f"{said} ({taken + 1})" if taken else said), where

    def number(self, thing: Any) -> int:
        """A number for each object that lives, never used again."""
        number = self._numbers.get(id(thing))
        if number is None:
            self._made += 1
            number = self._numbers[id(thing)] = self._made
            try:
                weakref.finalize(
                    thing, self._numbers.pop, id(thing), None
                ).atexit = False
            except TypeError:  # no weak reference to a list
                del self._numbers[id(thing)]
        return number
