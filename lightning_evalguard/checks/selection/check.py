"""Does the score justify what is chosen by it?"""

from __future__ import annotations

from lightning_evalguard.checks.check import Check


class SelectionCheck(Check):
    """The `selection` check."""

    name = "selection"

    def __init__(self) -> None:
        self.notes: list[str] = []
