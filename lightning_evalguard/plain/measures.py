"""Losses that say that outputs are scored, beside those that a recorder counts.

Python looks up ``F.mse_loss`` in ``F.mse_loss(model(x), y)`` before it calls the model, and so
before an evaluation is noticed. What such a function calls in C++ it looks up afterwards: that is
what is replaced, only while somebody listens. The few that call nothing of their own in C++ are
replaced for the whole watch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch.nn import functional as F

# The recorder's `LossTap` hears of the others.
_ENTRIES = (
    (torch._C._nn, "multilabel_margin_loss"),
    (torch, "hinge_embedding_loss"),
)
_COMPOSED = ("gaussian_nll_loss", "multilabel_soft_margin_loss")


class MeasureTap:
    """Hears that a loss is computed.

    Args:
        measured: Is told of each, while the tap is open, and given its value.
    """

    def __init__(self, measured: Callable[..., None]) -> None:
        self._measured = measured
        self._is_open = False
        self._replaced: list[tuple[Any, str, Any, Any]] = []
        self._composed: list[tuple[Any, str, Any, Any]] = []

    def start(self) -> None:
        """Replace what only the whole watch can hear."""
        for name in _COMPOSED:
            _replace(F, name, _as_in_torch(vars(F)[name], self._tell), self._composed)

    def stop(self) -> None:
        """Leave no trace."""
        self.close()
        _put_back(self._composed)

    def open(self) -> None:
        """Listen from here on."""
        if self._is_open:
            return
        self._is_open = True
        for home, name in _ENTRIES:
            if hasattr(home, name):
                _replace(home, name, self._around(getattr(home, name)), self._replaced)

    def close(self) -> None:
        """Listen no longer."""
        self._is_open = False
        _put_back(self._replaced)

    def _tell(self, value: Any) -> None:
        if self._is_open:
            self._measured(value)

    def _around(self, original: Callable[..., Any]) -> Callable[..., Any]:
        is_compiling = torch.compiler.is_compiling

        @functools.wraps(original)
        def measured(*args: Any, **kwargs: Any) -> Any:
            value = original(*args, **kwargs)
            if not is_compiling():
                self._tell(value)
            return value

        return measured


def _as_in_torch(original: Any, tell: Callable[[Any], None]) -> Any:
    """A function that stands in `torch.nn.functional` as the one that it calls does.

    Its globals are that module's: `torch.jit.script` reads the source of what it wraps, and looks
    up its names there.
    """
    is_compiling = torch.compiler.is_compiling

    def measured(*args: Any, **kwargs: Any) -> Any:
        value = original(*args, **kwargs)
        if not is_compiling():
            tell(value)
        return value

    made = FunctionType(
        measured.__code__, vars(F), original.__name__, None, measured.__closure__
    )
    return functools.update_wrapper(made, original)


def _replace(
    home: Any, name: str, tapped: Any, replaced: list[tuple[Any, str, Any, Any]]
) -> None:
    replaced.append((home, name, getattr(home, name), tapped))
    setattr(home, name, tapped)


def _put_back(replaced: list[tuple[Any, str, Any, Any]]) -> None:
    while replaced:
        home, name, original, tapped = replaced.pop()
        if getattr(home, name) is tapped:
            setattr(home, name, original)
