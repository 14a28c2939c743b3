"""Wrap a bound method on one instance, and unwrap it again in any order."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from lightning_evalguard.instruments.tracebacks import cut


class Layer:
    """Put a function in the place of a method of one object, until it is removed.

    Several layers of one method may be removed in any order: one that lies under another stays
    there, and goes when the one above it goes. What stays must only call through.

    Args:
        owner: The object: an instance, a class, a module.
        name: The method's name.
        function: Called in the method's place.

    Attributes:
        active: False once it is removed.
    """

    def __init__(self, owner: Any, name: str, function: Any) -> None:
        self._owner = owner
        self._name = name
        self._function = function
        self._own = vars(owner).get(name)
        self.active = True
        function.__evalguard_wrap__ = self
        setattr(owner, name, function)

    def remove(self) -> None:
        """Put back what was there, or leave it to the layer above."""
        self.active = False
        while True:
            now = vars(self._owner).get(self._name)
            top = getattr(now, "__evalguard_wrap__", None)
            # a wrapper of somebody else's may have copied the attribute
            if top is None or top.active or top._function is not now:
                return
            if top._own is None:
                delattr(self._owner, self._name)
            else:
                setattr(self._owner, self._name, top._own)


class Wrap(Layer):
    """Put `around` in front of a method of one object: ``around(original, *args, **kwargs)``.

    The class is untouched. Once it is removed it calls through.

    Args:
        owner: The object.
        name: The method's name.
        around: Called in the method's place, with the method as its first argument.
    """

    def __init__(self, owner: Any, name: str, around: Callable[..., Any]) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if not self.active:
                return original(*args, **kwargs)
            return around(original, *args, **kwargs)

        super().__init__(owner, name, wrapped)


class Doorway(Layer):
    """A `Wrap` of what the user's code calls: an error leaves it without our frames."""

    def __init__(self, owner: Any, name: str, around: Callable[..., Any]) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def entered(*args: Any, **kwargs: Any) -> Any:
            try:
                if not self.active:
                    return original(*args, **kwargs)
                return around(original, *args, **kwargs)
            except BaseException as error:
                cut(error)
                raise

        super().__init__(owner, name, entered)


class Inlay(Layer):
    """`Wrap` for a method that every step calls: one call less.

    Args:
        owner: The object.
        name: The method's name.
        make: Gives the function to be called in the method's place, of the method and of this
            layer. While that is not `active`, the function must only call the method.
    """

    def __init__(
        self,
        owner: Any,
        name: str,
        make: Callable[[Callable[..., Any], Layer], Callable[..., Any]],
    ) -> None:
        original = getattr(owner, name)
        function = functools.wraps(original)(make(original, self))
        super().__init__(owner, name, function)
