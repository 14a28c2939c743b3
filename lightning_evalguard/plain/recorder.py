"""The recorder of a plain evaluation: as in Lightning, and it tells that something is scored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lightning_evalguard.confusion.recorder import Recorder
from lightning_evalguard.confusion.sources import Pair


class PlainRecorder(Recorder):
    """Counts without a graph, for a script may evaluate with gradients on.

    Args:
        scored: Is told of each loss, metric and comparison.
    """

    def __init__(self, scored: Callable[[], None]) -> None:
        self._scored = scored
        super().__init__()

    def _see(self, kind: str, name: str, pair: Pair, value: Any = None) -> None:
        if kind != "other":
            self._scored()
        with torch.no_grad():
            super()._see(kind, name, pair, value)
