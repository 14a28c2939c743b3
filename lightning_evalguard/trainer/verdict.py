"""The last line of a run that found something: how many findings, in how many evaluations."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from typing import Any

from lightning_evalguard.record.run import REPORTS
from lightning_evalguard.report import Report
from lightning_evalguard.screen import print_coloured


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
        looked = looked_at(self._report.checked - self._checked)
        return f"{amount(len(fresh), 'finding')} in {looked} ({listed})"

    def say(self, rank: int, world: int) -> None:
        """Print the line, where no command collects the findings of the whole process."""
        line = self.line()
        if line and os.environ.get(REPORTS) is None:
            where = ""
            if world > 1:
                where = f" rank {rank}:"
            print_coloured(f"lightning-evalguard:{where} {line}")

    def _counts(self) -> dict[tuple[Any, ...], int]:
        return {finding.identity: finding.count for finding in self._report.findings}


def looked_at(checked: Mapping[str, int]) -> str:
    """``11 evaluations``; where there was none, how many training steps were guarded.

    Example:
        >>> looked_at({"evaluations": 1, "training_steps": 40}), looked_at({"training_steps": 40})
        ('1 evaluation', '40 training steps')
    """
    evaluations = checked.get("evaluations", 0)
    if evaluations:
        return amount(evaluations, "evaluation")
    return amount(checked.get("training_steps", 0), "training step")


def amount(n: int, what: str) -> str:
    """`n` of something, in words."""
    return f"{n:,} {what}{'s' if n != 1 else ''}"
