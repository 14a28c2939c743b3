"""Findings, the report that collects them, and how they are raised."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from lightning_evalguard.cells import cell_of
from lightning_evalguard.instruments.source import user_site
from lightning_evalguard.paths import file_pattern, short_path, shown_path
from lightning_evalguard.reasons import says, why_of
from lightning_evalguard.screen import coloured, coloured_warnings, is_uncaught
from lightning_evalguard.stages import spelling

Policy = Literal["error", "warn", "ignore"]
FixPolicy = Literal["error", "warn", "fix", "ignore"]

_COUNTED = ("evaluations", "batches", "training_steps", "modules")
_LOOKED_AT = "batches_looked_at"  # shown where it is not all of them
_SHOWN = 10  # lines of one message, before "... and N more"
FORMAT = 1  # of evalguard.json
AROUND = 3  # lines of source on each side of a finding's


@dataclass(frozen=True)
class Finding:
    """One violation of the evaluation contract, as data.

    Attributes:
        check: The check that found it: the keyword of `EvalGuard` that sets its policy.
        stage: ``fit``, ``sanity_check``, ``validate``, ``test``, ``predict``, or ``evaluate`` for
            a plain loop.
        fact: What is so, in PyTorch's words: "is in train mode, expected eval mode".
        remedy: One imperative with the code to write.
        subject: Qualified name of the module or tensor, as in ``named_modules()``; ``""`` for the
            model itself, ``None`` where no module is known.
        subject_type: Class of the subject, e.g. ``BatchNorm2d``.
        location: ``file:line`` of the user's code that did it, where known.
        expression: The source text at that line.
        function: Name of the function that holds that line.
        leads: What the message opens with: the place where an operation stands (``location``),
            or the module whose state is wrong (``subject``, with the location as the cause).
        epoch: Trainer's epoch, counted from 0.
        step: Trainer's global step: optimizer steps taken so far.
        rank: Global rank of the process that saw it.
        count: How often it was seen.
        certain: False for a suspicion, which warns where the policy says ``"error"``.
        pattern: What the entry of ``allow`` that silences it says, where the subject or the file
            would be too narrow or too wide.
        host: To whom that entry is passed: ``EvalGuard``, ``evaluating``, ...
        excerpt: The lines around `location`, as they were when it was found; see `around`.
        why: Why it matters, in a few words; what `reasons` has for the fact where none is given.
    """

    check: str
    stage: str
    fact: str
    remedy: str
    subject: str | None = None
    subject_type: str | None = None
    location: str | None = None
    expression: str | None = None
    function: str | None = None
    leads: Literal["location", "subject"] = "location"
    epoch: int | None = None
    step: int | None = None
    rank: int = 0
    count: int = 1
    certain: bool = True
    pattern: str | None = None
    host: str = "EvalGuard"
    excerpt: str | None = None
    why: str = ""

    def __post_init__(self) -> None:
        if not self.why:  # records of 0.1 have none
            object.__setattr__(self, "why", why_of(self.check, self.fact))

    @property
    def switch(self) -> str:
        """The narrowest that silences it, ready to paste: to whom it is passed, and what.

        Example:
            >>> Finding("state", "validate", "changed", "Do not.", "net.1.weight").switch
            'EvalGuard(allow={"state": ["net.1.weight"]})'
        """
        pattern = self.pattern or self._pattern()
        if not pattern:
            return f'{self.host}({self.check}="ignore")'
        return (
            f"{self.host}(allow={{{json.dumps(self.check)}: [{json.dumps(pattern)}]}})"
        )

    def _pattern(self) -> str:
        """What `allow` matches: by name before file, and a library's file by its whole path."""
        if self.subject:
            return self.subject
        in_a_cell = self.location is not None and cell_of(
            self.location.rpartition(":")[0]
        )
        if in_a_cell and self.function and not self.function.startswith("<"):
            return self.function  # a cell has another name each time it is run
        if self.location is None:
            return ""
        return file_pattern(self.location)

    def __str__(self) -> str:
        times = ""
        if self.count > 1:
            times = f" ({self.count}x)"
        said = f"{self._where()}: {self.fact}{self._cause()}{times}. {self.advice}"
        return f"{said} If it is meant: {self.switch}. [{self.check}]"

    @property
    def advice(self) -> str:
        """Why it matters, unless the fact says so itself, and what to write."""
        if not self.why or says(self.fact, self.why):
            return self.remedy
        return f"{self.why} {self.remedy}"

    def _where(self) -> str:
        who = _module_words(self.subject, self.subject_type)
        if self.leads == "subject" or self.location is None:
            return who or self.location or spelling(self.stage).words
        if who:
            return f"{shown_path(self.location)} in {who}"
        return shown_path(self.location)

    def _cause(self) -> str:
        if self.leads != "subject" or self.location is None or self.subject is None:
            return ""
        said = ""
        if self.expression:
            said = f" `{self.expression}`"
        return f"; set at {shown_path(self.location)}{said}"

    @property
    def around(self) -> dict[int, str]:
        """The lines of `excerpt` by their number, that of `location` in the middle."""
        line = (self.location or "").rpartition(":")[2]
        if self.excerpt is None or not line.isdecimal():
            return {}
        first = max(1, int(line) - AROUND)
        return dict(enumerate(self.excerpt.split("\n")[: 2 * AROUND + 1], first))

    @property
    def claim(self) -> str:
        """What is said, without what changes where the same is found again.

        The numbers of a logged score are others in each epoch: its key says that it is the same.
        """
        if self.check == "scores" and self.subject is not None:
            return ""
        return self.fact

    @property
    def identity(self) -> tuple[Any, ...]:
        """Equal for two findings that are the same one, found twice."""
        return (
            self.check,
            self.stage,
            self.claim,
            self.subject,
            self.location,
            self.expression,
            self.rank,
        )


def _module_words(subject: str | None, subject_type: str | None) -> str:
    if subject is None:
        return ""
    if not subject:
        return f"`{subject_type or 'model'}` (the whole model)"
    if subject_type:
        return f"`{subject}` ({subject_type})"
    return f"`{subject}`"


@dataclass(frozen=True)
class Sync:
    """One place at which the host waits for the device.

    Attributes:
        location: ``file:line`` of the user's code, or of the library where no user code asked;
            empty for what the backward pass does on threads of its own.
        expression: The source text there.
        owner: ``user``, ``lightning``, ``torchmetrics``, ``autograd``, or another package.
        stage: ``fit``, ``validate`` (the sanity check too), ``test`` or ``predict``.
        op: What makes the host wait: ``item``, ``nonzero``, ``copy to the host``, ...
        per_step: How often, per watched step of the stage.
        milliseconds: How long the host waited, per watched step; None on the CPU, where it would.
        via: ``file:line`` in the library, where the user's line calls one.
        allowed: Whether it happened inside ``allow("sync")``.
        remedy: What to write instead, where a setting of the library's object avoids it.
    """

    location: str
    expression: str
    owner: str
    stage: str
    op: str
    per_step: float
    milliseconds: float | None
    via: str = ""
    allowed: bool = False
    remedy: str = ""

    def __str__(self) -> str:
        cost = ""
        if self.milliseconds is not None:
            cost = f", {self.milliseconds:.2f} ms"
        owner = f"{self.owner}, {self.via}" if self.via else self.owner
        fix = ""
        if self.remedy:
            fix = f". {self.remedy}"
        place = ""
        if self.location:
            place = f"{short_path(shown_path(self.location))}: "
        return (
            f"{place}`{self.expression}` ({self.op}), "
            f"{self.per_step:.1f} per {spelling(self.stage).step_words}{cost} [{owner}]{fix}"
        )


class Report:
    """What one guard verified and found, over all the runs it took part in.

    Attributes:
        findings: Every violation, oldest first; equal ones are one record with a `count`.
        checked: What was verified, with counts: ``evaluations``, ``batches``,
            ``batches_looked_at``, ``training_steps``, ``modules``, and the like.
        confusion: Confusion matrix and scores by stage: ``"val"``, ``"test"``,
            ``"val/dataloader_idx_1"``, ...
        syncs: One record a host-device sync site, dearest first.
        notes: One sentence for each thing that could not be checked, or that was inferred.

    Example:
        >>> report = Report()
        >>> report.add([Finding("modes", "validate", "is in train mode, expected eval mode",
        ...                     "Call `.eval()` on it.", "head", "Dropout", leads="subject")])
        >>> print(report)  # doctest: +ELLIPSIS
        1 finding during validation
          `head` (Dropout): is in train mode, expected eval mode. It computes something else ...
    """

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.checked: Counter[str] = Counter()
        self.confusion: dict[str, Any] = {}
        self.syncs: list[Any] = []
        self.notes: list[str] = []

    def add(self, findings: Iterable[Finding]) -> None:
        """Record findings; one equal to an earlier one raises that one's count."""
        at = {f.identity: i for i, f in enumerate(self.findings)}
        for finding in findings:
            i = at.get(finding.identity)
            if i is None:
                at[finding.identity] = len(self.findings)
                self.findings.append(finding)
            else:
                known = self.findings[i]
                latest = finding
                if known.fact == finding.fact:
                    latest = known
                self.findings[i] = replace(latest, count=known.count + finding.count)

    def note(self, sentence: str) -> None:
        """Record one sentence, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def __str__(self) -> str:
        parts = [_message(self.findings)] if self.findings else []
        if self.checked:
            order = [
                *_COUNTED,
                *(what for what in self.checked if what not in _COUNTED),
            ]
            if self.checked[_LOOKED_AT] == self.checked["batches"]:
                order = [what for what in order if what != _LOOKED_AT]
            counted = [
                (what, self.checked[what]) for what in order if self.checked[what]
            ]
            counts = ", ".join(f"{n:,} {_plural(what, n)}" for what, n in counted)
            parts.append(f"checked: {counts}" if counts else "checked: nothing")
        elif not self.findings:
            parts.append("nothing was checked yet")
        parts += [f"{stage}: {result}" for stage, result in self.confusion.items()]
        if self.syncs:
            parts.append("syncs:\n" + "\n".join(f"  {site}" for site in self.syncs))
        parts += [f"note: {sentence}" for sentence in self.notes]
        return "\n".join(parts)

    def _repr_html_(self) -> str:
        """The same as the page of a record has it, for notebooks."""
        from lightning_evalguard.views.page import report_frame

        return report_frame(self)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data that ``json.dumps`` takes."""
        return {
            "findings": [asdict(f) for f in self.findings],
            "checked": dict(self.checked),
            "confusion": {k: _plain(v) for k, v in self.confusion.items()},
            "syncs": [_plain(s) for s in self.syncs],
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Report:
        """The report that `to_dict` made `plain` of."""
        # The one way upwards: it knows how its own record reads.
        from lightning_evalguard.confusion.result import ConfusionResult

        report = cls()
        report.findings = [_record(Finding, f) for f in plain["findings"]]
        report.checked.update(plain["checked"])
        report.confusion = {
            k: ConfusionResult.from_dict(v) for k, v in plain["confusion"].items()
        }
        report.syncs = [_record(Sync, s) for s in plain["syncs"]]
        report.notes = list(plain["notes"])
        return report

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Report:
        """The report in an ``evalguard.json``, equal to the one that was written.

        Args:
            path: The file.

        Raises:
            ValueError: If the file is no such record, or of a later version than this one reads.
        """
        from lightning_evalguard.record import shape

        try:
            plain = json.loads(
                Path(path).read_text(encoding="utf-8"), parse_constant=_refused
            )
            version = FORMAT
            if isinstance(plain, dict):
                version = plain.get("format", FORMAT)
            if isinstance(version, int) and version > FORMAT:
                raise ValueError(f"it has format {version}, expected {FORMAT} or less")
            shape.check(plain)
            return cls.from_dict(plain["report"])
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path} is no record of lightning-evalguard: {shape.why(error)}"
            ) from error

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Report):
            return self.to_dict() == other.to_dict()
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]  # it grows


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant} is no number of JSON")


def _record(kind: Any, plain: Mapping[str, Any]) -> Any:
    """An instance of a dataclass, of those of its fields that were written."""
    return kind(**{f.name: plain[f.name] for f in fields(kind) if f.name in plain})


def _plain(record: Any) -> Any:
    if hasattr(record, "to_dict"):
        return record.to_dict()
    return asdict(record)


def _plural(what: str, n: int) -> str:
    words = what.replace("_", " ")
    if n != 1:
        return words
    if words.endswith("ches"):
        return words.removesuffix("es")
    return words.removesuffix("s")


def _message(findings: Sequence[Finding]) -> str:
    n = len(findings)
    moments = {(f.stage, f.epoch, f.step) for f in findings}
    during = ""
    if len({m[0] for m in moments}) == 1:
        stage, epoch, step = next(iter(moments))
        during = f" during {spelling(stage).words}"
        if len(moments) == 1 and epoch is not None:
            during += f" (epoch {epoch}, step {step})"
    lines = [f"{n} finding{'s' if n != 1 else ''}{during}"]
    lines += [f"  {f}" for f in findings[:_SHOWN]]
    if n > _SHOWN:
        lines.append(f"  ... and {n - _SHOWN} more in report.findings")
    return "\n".join(lines)


def hidden(excinfo: Any) -> bool:
    """Whether pytest leaves a frame of ours out: where the guard raised it on purpose."""
    return isinstance(excinfo.value, (EvalGuardError, EvalGuardWarning))


class EvalGuardWarning(UserWarning):
    """A finding that does not stop the run."""


class EvalGuardError(RuntimeError):
    """Findings that stop the run.

    Attributes:
        report: The guard's `Report`; these findings are in ``report.findings``.
    """

    def __init__(self, message: str, report: Report | None = None) -> None:
        super().__init__(message)
        self.report = report if report is not None else Report()

    def __str__(self) -> str:
        text = super().__str__()
        if not is_uncaught(1):
            return text
        return coloured(text, sys.stderr, [f.remedy for f in self.report.findings])

    @classmethod
    def of(cls, findings: Sequence[Finding], report: Report) -> EvalGuardError:
        """The one exception for all findings of one moment, best-attributed first."""
        ranked = sorted(findings, key=lambda f: (not f.certain, f.location is None))
        return cls(_message(ranked), report)


def warn(finding: Finding, about: str | None = None) -> None:
    """Issue `finding` as an `EvalGuardWarning` that points at the user's line.

    Args:
        finding: What is said.
        about: ``file:line`` of what it is about, where it has no line of its own.
    """
    warn_text(str(finding), finding.location or about, [finding.remedy])


def warn_text(
    message: str, location: str | None = None, remedies: Sequence[str] = ()
) -> None:
    """Issue `message` as an `EvalGuardWarning` at ``file:line``, else at the user's line that runs.

    Where none of the user's runs, as at the end of a process, it stands at the script.
    """
    if location is None:
        running = user_site()
        script = (
            getattr(sys.modules.get("__main__"), "__file__", None)
            or "lightning_evalguard"
        )
        location = f"{script}:1" if running is None else running.location
    path, _, line = location.rpartition(":")
    with coloured_warnings(remedies):
        warnings.warn_explicit(message, EvalGuardWarning, path, int(line))


def broke(report: Report, what: str, off: str, error: Exception) -> None:
    """Say once that something of ours failed: training goes on without it.

    Args:
        report: Where it is noted.
        what: What failed.
        off: What is off now, and for how long; empty where nothing is.
        error: Why.
    """
    sentence = f"{what} failed inside lightning-evalguard"
    if off:
        sentence += f" and is off for {off}"
    if not any(note.startswith(sentence) for note in report.notes):
        sentence += f": {type(error).__name__}: {error}"
        report.note(sentence)
        warn_text(f"{sentence}. Training goes on; please report it.")


__all__ = [
    "EvalGuardError",
    "EvalGuardWarning",
    "Finding",
    "FixPolicy",
    "Policy",
    "Report",
    "Sync",
]
