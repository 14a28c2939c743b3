"""Is a logged score what it claims?"""

from __future__ import annotations

from lightning_evalguard.checks.check import Check


class ScoresCheck(Check):
    """The `scores` check."""

    name = "scores"

    def __init__(self) -> None:
        self.notes: list[str] = []
