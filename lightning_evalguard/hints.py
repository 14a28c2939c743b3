"""Hints for misspelt names, as Python gives them for its own."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Concatenate, ParamSpec, TypeVar

_Self = TypeVar("_Self")
_Given = ParamSpec("_Given")


def names_keywords(
    init: Callable[Concatenate[_Self, _Given], None],
) -> Callable[Concatenate[_Self, _Given], None]:
    """Let an `__init__` refuse a misspelt keyword with the one that is meant.

    Raises:
        TypeError: As Python does, which says so itself only from 3.13 on.
    """
    _, *known = inspect.signature(init).parameters
    name = init.__qualname__.partition(".")[0]

    @functools.wraps(init)
    def named(self: _Self, /, *args: _Given.args, **keywords: _Given.kwargs) -> None:
        for given in keywords:
            if given not in known:
                hint = did_you_mean(given, known)
                raise TypeError(
                    f"{name}() got an unexpected keyword argument {given!r}{hint}"
                )
        init(self, *args, **keywords)

    return named


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """A hint to append to an error about a misspelt name; empty where nothing is near."""
    near = difflib.get_close_matches(given, list(known), n=1)
    if not near:
        return ""
    return f". Did you mean: {near[0]}"
