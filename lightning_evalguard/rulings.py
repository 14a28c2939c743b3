"""What becomes of findings: a note, a warning said once, or the end of the run on all ranks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from lightning_evalguard.checks.check import Check
from lightning_evalguard.model.places import place_about, with_excerpt
from lightning_evalguard.model.tree import inside
from lightning_evalguard.ranks import Alone
from lightning_evalguard.report import (
    EvalGuardWarning,
    Finding,
    Report,
    hidden,
    warn,
)

__tracebackhide__ = hidden


class Rulings:
    """Applies the policies to what checks found.

    Args:
        report: Where findings and notes go.
        ranks: The processes that agree on what stops the run.
        host: To whom a user passes the switches that findings name.
    """

    def __init__(self, report: Report, ranks: Alone, host: str) -> None:
        self._report = report
        self._ranks = ranks
        self._host = host
        self._root: nn.Module | None = None
        self._wrapped = ""  # what stands before the names of the user's modules
        self._warned: set[tuple[Any, ...]] = set()
        self._located: dict[tuple[Any, ...], Finding] = {}

    def open(self, root: nn.Module) -> None:
        """A run begins on `root`."""
        self._root = root
        self._wrapped, _ = inside(root)
        self._located.clear()

    def close(self) -> None:
        """The run is over."""
        self._root = None

    def placed(self, finding: Finding) -> Finding:
        """With its host, the user's name of its module, and its line where that is known.

        An earlier evaluation was followed line by line and has found it.
        """
        if finding.host != self._host:
            finding = replace(finding, host=self._host)
        if self._wrapped and finding.subject:
            own = f"{finding.subject}.".removeprefix(self._wrapped).removesuffix(".")
            finding = replace(finding, subject=own)
        same = (finding.check, finding.stage, finding.subject, finding.fact)
        if finding.location is not None:
            self._located[same] = finding
            return finding
        known = self._located.get(same)
        if known is None:
            return finding
        return replace(
            finding,
            location=known.location,
            expression=known.expression,
            function=known.function,
        )

    def give(
        self,
        findings: Sequence[tuple[Finding, str]],
        explaining: Iterable[Check],
        quiet: bool,
    ) -> None:
        """Report findings; warn of them, or stop the run, as their policies say.

        Args:
            findings: Each with its policy.
            explaining: Checks that may know a cause, of which a finding is a consequence.
            quiet: Whether nothing may be raised, for something else is on its way.
        """
        causes = self._causes(findings, list(explaining))
        findings = [(with_excerpt(finding), policy) for finding, policy in causes]
        self._report.add(finding for finding, _ in findings)
        fatal = []
        if not quiet:
            errors = [finding for finding, policy in findings if policy == "error"]
            fatal = [finding for finding in errors if finding.certain]
        raised = self._warn([pair for pair in findings if pair[0] not in fatal])
        if fatal:
            self._ranks.hold(fatal)
        if raised is not None:
            raise raised

    def _causes(
        self, findings: Sequence[tuple[Finding, str]], explaining: Sequence[Check]
    ) -> list[tuple[Finding, str]]:
        """One cause, one finding: what follows from another finding is a note."""
        causes = []
        for finding, policy in findings:
            known = (check.explains(finding) for check in explaining)
            cause = next((c for c in known if c is not None), None)
            if cause is None:
                causes.append((finding, policy))
                continue
            what = finding.fact
            if finding.subject:
                what = f"{finding.subject}: {finding.fact}"
            self._report.note(
                f"{finding.check}: {what} (it follows from [{cause.check}])"
            )
        return causes

    def _warn(self, findings: Iterable[tuple[Finding, str]]) -> EvalGuardWarning | None:
        """Warn of each finding once; what a filter makes an error of is returned.

        A finding that stops the run comes first: it is raised where a warning would be, too.
        """
        raised = None
        for finding, policy in findings:
            key = (finding.check, finding.subject, finding.location, finding.claim)
            if key in self._warned:
                continue
            self._warned.add(key)
            said = finding
            if policy == "fix":
                remedy = f"Repaired for this run. {finding.remedy}"
                said = replace(finding, remedy=remedy)
            try:
                warn(said, place_about(self._root, finding))
            except EvalGuardWarning as error:
                raised = raised or error
        return raised
