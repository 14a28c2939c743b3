"""Follow the calls of a Python function, wherever it is held: on a module, in a dict, a partial."""

from __future__ import annotations

import functools
import types
import warnings
from collections.abc import Callable
from typing import Any

Around = Callable[[Any, tuple[Any, ...], Any], Any]
_MARK = "around"


def _template() -> types.CodeType:
    with warnings.catch_warnings():
        # a string is called, until it is replaced
        warnings.simplefilter("ignore", SyntaxWarning)
        source = f"def call(*args, **kwargs): return {_MARK!r}(*args, **kwargs)"
        module = compile(source, __file__, "exec")
    return next(c for c in module.co_consts if isinstance(c, types.CodeType))


_TEMPLATE = _template()


def can_follow(function: Any) -> bool:
    """Whether `function` is a plain one: no closure, no generator, no coroutine."""
    if not isinstance(function, types.FunctionType):
        return False
    code = code_of(function)
    return not code.co_freevars and not code.co_flags & _SUSPENDS


_SUSPENDS = 0x20 | 0x80 | 0x200  # generators, coroutines, asynchronous generators


class _Followed:
    """A function that is followed now: its own body, and who follows it, the last one outermost."""

    def __init__(self, function: types.FunctionType) -> None:
        self.code = function.__code__
        self.arounds: list[Around] = []
        original = types.FunctionType(
            function.__code__,
            function.__globals__,
            function.__name__,
            function.__defaults__,
        )
        original.__kwdefaults__ = function.__kwdefaults__
        # A code object is no part of garbage collection: this list is all that it leads to.
        arounds = self.arounds

        def followed(*args: Any, **kwargs: Any) -> Any:
            call: Any = original
            for around in arounds:
                call = functools.partial(_through, around, call)
            return call(*args, **kwargs)

        constants = list(_TEMPLATE.co_consts)
        constants[constants.index(_MARK)] = followed
        function.__code__ = _TEMPLATE.replace(
            co_consts=tuple(constants), co_name=function.__name__
        )


def _through(around: Around, call: Any, *args: Any, **kwargs: Any) -> Any:
    return around(call, args, kwargs)


_followed: dict[types.FunctionType, _Followed] = {}


def code_of(function: types.FunctionType) -> types.CodeType:
    """A function's own code, also while it is followed."""
    followed = _followed.get(function)
    if followed is None:
        return function.__code__
    return followed.code


class Follow:
    """Put `around` in front of a function's body: ``around(original, args, kwargs)``.

    The function stays the object it is, with its name and defaults: whoever holds it calls it.
    Several may follow one function, and stop in any order.

    Args:
        function: A plain Python function, see `can_follow`.
        around: Called in its place, with a function of the same body as its first argument.
    """

    def __init__(self, function: types.FunctionType, around: Around) -> None:
        self._function = function
        self._around = around

    def start(self) -> None:
        """Follow from now on."""
        function = self._function
        if function not in _followed:
            _followed[function] = _Followed(function)
        if self._around not in _followed[function].arounds:
            _followed[function].arounds.append(self._around)

    def stop(self) -> None:
        """Leave the function as it was, once nobody else follows it."""
        followed = _followed.get(self._function)
        if followed is None:
            return
        if self._around in followed.arounds:
            followed.arounds.remove(self._around)
        if not followed.arounds:
            self._function.__code__ = followed.code
            del _followed[self._function]
