"""Violations that are meant: a context in the user's own code that silences one check."""

from __future__ import annotations

import sys
import threading
from contextlib import ContextDecorator
from types import CodeType, FrameType, TracebackType

from lightning_evalguard.checks.registry import CHECKS
from lightning_evalguard.hints import did_you_mean

# What a module in train mode does in an evaluation: meant where its mode is.
CONSEQUENCES = frozenset({"state", "stochastic", "batch"})


class _Depths(threading.local):
    def __init__(self) -> None:
        self.of: dict[str, int] = {}


_depths = _Depths()


_reached: set[tuple[CodeType, int]] = set()


def _line_of(frame: FrameType) -> tuple[CodeType, int]:
    return frame.f_code, frame.f_lineno


class allow(ContextDecorator):  # noqa: N801 - reads as a statement in user code
    """Let one check pass over what happens inside: a ``with`` block or a decorated function.

    It silences what is done in this thread while the block runs, and nothing else. Where
    ``"modes"`` is allowed, what modules in train mode do is: dropout, running statistics.

    Args:
        check: The check to silence, e.g. ``"sync"`` or ``"modes"``.
        reason: Why this is meant. It is for the next reader of the code.
        first_only: Let it pass only the first time that this line is reached in the process: what
            is meant once, say a look at the first batch, is a finding from then on.

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

    def __init__(
        self, check: str, *, reason: str = "", first_only: bool = False
    ) -> None:
        if not isinstance(check, str) or check not in CHECKS:
            hint = did_you_mean(str(check), CHECKS)
            listed = ", ".join(sorted(CHECKS))
            raise ValueError(f"check={check!r}: expected one of {listed}{hint}")
        if not isinstance(reason, str):
            raise ValueError(f"reason={reason!r}: expected a sentence")
        if not isinstance(first_only, bool):
            raise ValueError(f"first_only={first_only!r}: expected True or False")
        self.check = check
        self.reason = reason
        self._line = _line_of(sys._getframe(1)) if first_only else None
        self._held: list[int] = []

    def __enter__(self) -> allow:
        again = self._line is not None and self._line in _reached
        if self._line is not None:
            _reached.add(self._line)
        self._held.append(0 if again else 1)
        _depths.of[self.check] = _depths.of.get(self.check, 0) + self._held[-1]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _depths.of[self.check] -= self._held.pop()


def allowed(check: str) -> bool:
    """Whether this thread is inside ``allow(check)``."""
    depths = _depths.of
    if not depths:
        return False
    return depths.get(check, 0) > 0 or (
        check in CONSEQUENCES and depths.get("modes", 0) > 0
    )
