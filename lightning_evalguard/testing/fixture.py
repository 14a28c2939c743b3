"""The guard that the pytest fixture gives to a test."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from lightning_evalguard.callback import EvalGuard
from lightning_evalguard.checks.registry import RULES
from lightning_evalguard.evaluation import evaluating
from lightning_evalguard.report import Report

_EVALUATING = {
    *(n for n, rule in RULES.items() if rule.in_plain_loops),
    "allow",
    "audit",
}


class FixtureGuard(EvalGuard):
    """An `EvalGuard` that writes no file and can say what it found and did not raise.

    Args:
        keywords: Of `EvalGuard`.
    """

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**({"record": None} | keywords))
        self._keywords = keywords
        self._kept: list[tuple[Report, Mapping[str, str]]] = [
            (self.report, self._policies)
        ]

    @contextmanager
    def evaluating(self, model: nn.Module, **keywords: Any) -> Iterator[Report]:
        """`lightning_evalguard.evaluating` with the fixture's policies; its findings count too.

        Args:
            model: The model.
            keywords: Of `lightning_evalguard.evaluating`.
        """
        ours = {k: v for k, v in self._keywords.items() if k in _EVALUATING} | keywords
        with evaluating(model, **ours) as report:
            self._kept.append((report, self._policies | ours))
            yield report

    def unraised(self) -> str:
        """What was found without an exception, as a message; empty where nothing was."""
        left = Report()
        for report, policies in self._kept:
            left.add(
                f
                for f in report.findings
                if not f.certain or policies.get(f.check) != "error"
            )
        if not left.findings:
            return ""
        return str(left)
