"""Cross-check by CUDA's own switch: counts the syncs that no override reported."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

from lightning_evalguard.checks.sync.listeners import second_ears

_SAID = "called a synchronizing CUDA operation"


class DebugMode:
    """Counts what `torch.cuda.set_sync_debug_mode` warns of while open, and no override hears.

    The switch warns through Python, when the operator is over and without saying where: it is off
    in a wait that is heard, and its warnings are taken out of the stream of warnings; all others
    go on to whoever listens. A mode that the user has set is left alone.

    Attributes:
        unattributed: How many waits nobody else heard.
    """

    def __init__(self) -> None:
        self.unattributed = 0
        self._filter: Any = None
        self._show: Callable[..., Any] | None = None

    def open(self) -> None:
        """Listen from here on."""
        if self._show is not None or torch.cuda.get_sync_debug_mode():
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the mode is a prototype
            torch.cuda.set_sync_debug_mode("warn")
        warnings.filterwarnings("always", message=_SAID, category=UserWarning)
        self._filter = warnings.filters[0]
        self._show = warnings.showwarning
        warnings.showwarning = self._hear
        second_ears.append(self._answered)

    def close(self) -> None:
        """Put the mode, the filter and the way of showing warnings back."""
        if self._show is None:
            return
        second_ears.remove(self._answered)
        torch.cuda.set_sync_debug_mode("default")
        if self._filter in warnings.filters:
            warnings.filters.remove(self._filter)  # type: ignore[attr-defined]
        if warnings.showwarning == self._hear:
            warnings.showwarning = self._show
        self._show = None

    def _answered(self, begins: bool) -> None:
        torch._C._cuda_set_sync_debug_mode(0 if begins else 1)

    def _hear(self, message: Any, category: Any, *args: Any, **kwargs: Any) -> None:
        if str(message).startswith(_SAID):
            self.unattributed += 1
        elif self._show is not None:
            self._show(message, category, *args, **kwargs)
        else:  # a caller still holds our hook after `close`
            said = warnings.WarningMessage(message, category, *args, **kwargs)
            warnings._showwarnmsg_impl(said)  # type: ignore[attr-defined]
