"""The last line of a run that found something: how many findings, in how many evaluations."""

from __future__ import annotations

import os
import sys
from collections import Counter
from typing import Any

from lightning_evalguard.record.run import REPORTS
from lightning_evalguard.report import Report


class Verdict:
    """Says at the end of a run what it found; of a clean run nothing.

    Args:
        report: The guard's, at the start of the run.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self._checked = Counter(report.checked)
        self._known = self._counts()

    def line(self) -> str:
        """``2 findings in 11 evaluations (1 scores, 1 sync)``; empty where there is none."""
        counts = self._counts()
        fresh = [
            same for same, count in counts.items() if count > self._known.get(same, 0)
        ]
        if not fresh:
            return ""
        checks = Counter(check for check, *_ in fresh)
        listed = ", ".join(f"{n} {check}" for check, n in sorted(checks.items()))
        return f"{_amount(len(fresh), 'finding')} in {self._looked_at()} ({listed})"

    def say(self, rank: int, world: int) -> None:
        """Print the line, where no command collects the findings of the whole process."""
        line = self.line()
        if line and os.environ.get(REPORTS) is None:
            where = ""
            if world > 1:
                where = f" rank {rank}:"
            print(f"lightning-evalguard:{where} {line}", file=sys.stderr)  # noqa: T201

    def _looked_at(self) -> str:
        evaluations = self._report.checked["evaluations"] - self._checked["evaluations"]
        if evaluations:
            return _amount(evaluations, "evaluation")
        steps = self._report.checked["training_steps"] - self._checked["training_steps"]
        return _amount(steps, "training step")

    def _counts(self) -> dict[tuple[Any, ...], int]:
        return {finding.identity: finding.count for finding in self._report.findings}


def _amount(n: int, what: str) -> str:
    return f"{n:,} {what}{'s' if n != 1 else ''}"
