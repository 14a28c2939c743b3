"""Whose weights are scored?"""

from __future__ import annotations

from lightning_evalguard.checks.check import Check


class WeightsCheck(Check):
    """The `weights` check."""

    name = "weights"

    def __init__(self) -> None:
        self.notes: list[str] = []
