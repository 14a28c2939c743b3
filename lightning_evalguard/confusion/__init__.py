"""The confusion matrix, from the step that shows predictions to the logger that shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_evalguard.confusion.config import (
        ConfusionMetrics as ConfusionMetrics,
    )
    from lightning_evalguard.confusion.matrix import ConfusionMatrix as ConfusionMatrix

__all__ = ["ConfusionMatrix", "ConfusionMetrics"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # when asked for: `result` and `scores` are read without torch
        from lightning_evalguard.confusion import matrix

        return getattr(matrix, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
