"""What nobody catches is printed without our frames, as the bare script would have it."""

from __future__ import annotations

import sys
from types import TracebackType

from lightning_evalguard.instruments.tracebacks import trim


class Uncaught:
    """Stands before `sys.excepthook` from `start` to `stop`."""

    def __init__(self) -> None:
        self._shown = sys.excepthook

    def start(self) -> None:
        """From here on."""
        self._shown = sys.excepthook
        sys.excepthook = self._show

    def stop(self) -> None:
        """Put back what was there; where somebody stands before it now, it only calls through."""
        if sys.excepthook == self._show:
            sys.excepthook = self._shown

    def _show(
        self,
        kind: type[BaseException],
        error: BaseException,
        trace: TracebackType | None,
    ) -> None:
        trim(error, trace)
        self._shown(kind, error, trace)


__all__ = ["Uncaught"]
