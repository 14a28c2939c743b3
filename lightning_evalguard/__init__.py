"""Honest evaluation of PyTorch models while they train.

    Trainer(callbacks=[EvalGuard()])

Needs torch alone to import; Lightning and torchmetrics are loaded when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lightning_evalguard.allow import allow
from lightning_evalguard.report import EvalGuardError, EvalGuardWarning, Finding, Report

if TYPE_CHECKING:
    from lightning_evalguard.callback import EvalGuard as EvalGuard
    from lightning_evalguard.confusion.config import (
        ConfusionMetrics as ConfusionMetrics,
    )
    from lightning_evalguard.evaluation import evaluating as evaluating
    from lightning_evalguard.plain.entry import watch as watch

__version__ = "0.1.0"

_LAZY = {
    "EvalGuard": "callback",
    "ConfusionMetrics": "confusion",
    "evaluating": "evaluation",
    "watch": "plain.entry",
}

__all__ = [
    "ConfusionMetrics",
    "EvalGuard",
    "EvalGuardError",
    "EvalGuardWarning",
    "Finding",
    "Report",
    "allow",
    "evaluating",
    "watch",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
