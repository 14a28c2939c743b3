"""Follow the calls of a Python function, wherever it is held: on a module, in a dict, a partial."""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable
from typing import Any

_MARK = "around"


def _template() -> types.CodeType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # a string is called, until it is replaced
        source = f"def call(*args, **kwargs): return {_MARK!r}(*args, **kwargs)"
        module = compile(source, __file__, "exec")
    return next(c for c in module.co_consts if isinstance(c, types.CodeType))


_TEMPLATE = _template()


def can_follow(function: Any) -> bool:
    """Whether `function` is a plain one: no closure, no generator, no coroutine."""
    if not isinstance(function, types.FunctionType):
        return False
    code = function.__code__
    return not code.co_freevars and not code.co_flags & _SUSPENDS


_SUSPENDS = 0x20 | 0x80 | 0x200  # generators, coroutines, asynchronous generators


class Follow:
    """Put `around` in front of a function's body: ``around(original, args, kwargs)``.

    The function stays the object it is, with its name and defaults: whoever holds it calls it.

    Args:
        function: A plain Python function, see `can_follow`.
        around: Called in its place, with a function of the same body as its first argument.
    """

    def __init__(
        self, function: types.FunctionType, around: Callable[[Any, tuple[Any, ...], Any], Any]
    ) -> None:
        self._function, self._code = function, function.__code__
        original = types.FunctionType(
            function.__code__, function.__globals__, function.__name__, function.__defaults__
        )
        original.__kwdefaults__ = function.__kwdefaults__

        def followed(*args: Any, **kwargs: Any) -> Any:
            return around(original, args, kwargs)

        constants = tuple(followed if c == _MARK else c for c in _TEMPLATE.co_consts)
        self._around = _TEMPLATE.replace(co_consts=constants, co_name=function.__name__)

    def start(self) -> None:
        """Follow from now on."""
        if self._function.__code__ is self._code:
            self._function.__code__ = self._around

    def stop(self) -> None:
        """Leave the function as it was."""
        if self._function.__code__ is self._around:
            self._function.__code__ = self._code
