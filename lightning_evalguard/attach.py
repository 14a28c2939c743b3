"""Attaches the guard to every Trainer of a process where ``EVALGUARD`` is set.

Lightning calls `callbacks` for each Trainer of each user who has this package installed: it reads
one environment variable, and nothing that goes wrong in it may stop a Trainer.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from lightning_evalguard.checks.registry import RULES

VARIABLE = "EVALGUARD"
_POLICIES = {
    "error": "error",
    "1": "error",
    "true": "error",
    "on": "error",
    "warn": "warn",
    "0": "",
    "false": "",
    "off": "",
    "": "",
}


def policy_of(given: str) -> str:
    """The policy that a value of the variable stands for; empty where it asks for no guard.

    Raises:
        ValueError: If it is none of the known ones.
    """
    policy = _POLICIES.get(given.strip().lower())
    if policy is None:
        raise ValueError(f"expected one of {', '.join(filter(None, _POLICIES))}")
    return policy


def callbacks() -> list[Any]:
    """A guard, where the environment asks for one.

    ``EVALGUARD=error`` (or ``1``, ``true``, ``on``) stops at what a bare `EvalGuard` stops at,
    ``EVALGUARD=warn`` at nothing; ``0``, ``false`` and ``off`` attach none. Case does not count.
    """
    given = os.environ.get(VARIABLE, "")
    try:
        policy = policy_of(given)
        if not policy:
            return []
        from lightning_evalguard.trainer.attached import AttachedGuard

        policies: dict[str, Any] = dict.fromkeys(
            (name for name, rule in RULES.items() if rule.default == "error"), policy
        )
        return [AttachedGuard(**policies)]
    except Exception as error:  # noqa: BLE001 - Lightning would not make the Trainer
        # Printed: a warning is an error where the user's filters make it one.
        said = (
            f"{VARIABLE}={given}: no guard is attached: {type(error).__name__}: {error}"
        )
        print(said, file=sys.stderr)  # noqa: T201
        return []
