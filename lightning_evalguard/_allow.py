"""Breaches that are meant: a context in the user's own code that silences one check."""

from __future__ import annotations

import threading
from contextlib import ContextDecorator
from types import TracebackType

# What a module in train mode does in an evaluation: meant where its mode is.
CONSEQUENCES = frozenset({"state", "stochastic", "batch"})
CHECKS = frozenset({"modes", "grad", "state", "stochastic", "batch", "rng", "data", "sync"})


class _Depths(threading.local):
    def __init__(self) -> None:
        self.of: dict[str, int] = {}


_depths = _Depths()


class allow(ContextDecorator):  # noqa: N801 - reads as a statement in user code
    """Let one check pass over what happens inside: a ``with`` block or a decorated function.

    It silences what is done in this thread while the block runs, and nothing else. Where
    ``"modes"`` is allowed, what modules in train mode do is: dropout, running statistics.

    Args:
        check: The check to silence, e.g. ``"sync"`` or ``"modes"``.
        reason: Why this is meant. It is for the next reader of the code.

    Raises:
        ValueError: If `check` is not the name of a check.

    Example:
        >>> import torch
        >>> with allow("sync", reason="the scheduler needs a Python number"):
        ...     lr = torch.tensor(0.1).item()
        >>> @allow("stochastic", reason="Monte Carlo dropout")
        ... def sample(model, x):
        ...     return model(x)
    """

    def __init__(self, check: str, *, reason: str = "") -> None:
        if check not in CHECKS:
            raise ValueError(f"check={check!r}: expected one of {', '.join(sorted(CHECKS))}")
        self.check = check
        self.reason = reason

    def __enter__(self) -> allow:
        _depths.of[self.check] = _depths.of.get(self.check, 0) + 1
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _depths.of[self.check] -= 1


def allowed(check: str) -> bool:
    """Whether this thread is inside ``allow(check)``."""
    depths = _depths.of
    if not depths:
        return False
    return depths.get(check, 0) > 0 or (check in CONSEQUENCES and depths.get("modes", 0) > 0)
