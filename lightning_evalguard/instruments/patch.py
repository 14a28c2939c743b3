"""Wrap a bound method on one instance, and unwrap it again in any order."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


class Wrap:
    """Put `around` in front of a method of one object: ``around(original, *args, **kwargs)``.

    The class is untouched. Several wraps of one method may be removed in any order: one that lies
    under another only calls through from then on, and goes when the one above it goes.

    Args:
        owner: The object.
        name: The method's name.
        around: Called in the method's place, with the method as its first argument.
    """

    def __init__(self, owner: Any, name: str, around: Callable[..., Any]) -> None:
        self._owner, self._name = owner, name
        self._own = vars(owner).get(name)
        original = getattr(owner, name)
        self._active = True

        @functools.wraps(original)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if not self._active:
                return original(*args, **kwargs)
            return around(original, *args, **kwargs)

        wrapped.__evalguard_wrap__ = self  # type: ignore[attr-defined]
        setattr(owner, name, wrapped)

    def remove(self) -> None:
        """Put back what was there, or call through where another wrap lies above."""
        self._active = False
        while True:
            top = getattr(vars(self._owner).get(self._name), "__evalguard_wrap__", None)
            if top is None or top._active:
                return
            if top._own is None:
                delattr(self._owner, self._name)
            else:
                setattr(self._owner, self._name, top._own)
