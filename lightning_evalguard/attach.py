"""Attaches the guard to every Trainer of a process where ``EVALGUARD=warn`` or ``error`` is set.

Lightning calls `callbacks` for each Trainer of each user who has this package installed: it reads
one environment variable, and nothing that goes wrong in it may stop a Trainer.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from lightning_evalguard.checks.registry import RULES

VARIABLE = "EVALGUARD"
_POLICIES = ("warn", "error")


def callbacks() -> list[Any]:
    """A guard, where the environment asks for one.

    ``EVALGUARD=error`` stops at what a bare `EvalGuard` stops at, ``EVALGUARD=warn`` at nothing.
    """
    policy = os.environ.get(VARIABLE)
    if not policy:
        return []
    try:
        if policy not in _POLICIES:
            raise ValueError(f"expected one of {', '.join(_POLICIES)}")
        from lightning_evalguard.trainer.attached import AttachedGuard

        policies: dict[str, Any] = dict.fromkeys(
            (name for name, rule in RULES.items() if rule.default == "error"), policy
        )
        return [AttachedGuard(**policies)]
    except Exception as error:  # noqa: BLE001 - Lightning would not make the Trainer
        # Printed: a warning is an error where the user's filters make it one.
        said = f"{VARIABLE}={policy}: no guard is attached: {type(error).__name__}: {error}"
        print(said, file=sys.stderr)  # noqa: T201
        return []
