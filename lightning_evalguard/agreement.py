"""What the ranks of a run write to each other, and the message that all of them raise."""

from __future__ import annotations

import base64
import pickle
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from lightning_evalguard.report import EvalGuardError, Finding, Report

CLEAN, LATE = "clean", "late"


@dataclass
class Gone:
    """What a rank leaves behind that an exception ended.

    Attributes:
        since: The first point that it does not come to.
        found: What it had found and not raised, or what all had agreed on.
        text: The message that it raised, where all had agreed on one.
    """

    since: int
    found: list[Finding]
    text: str = ""


@dataclass
class Agreement:
    """What all ranks know after a point.

    Attributes:
        late: Whether one of them gave up waiting: nothing is decided.
        all_there: Whether all took part.
        found: Every rank's findings.
        text: The message that all raise.
        contents: What each rank had to say beside it.
    """

    late: bool = False
    all_there: bool = True
    found: list[Finding] = field(default_factory=list)
    text: str = ""
    contents: dict[int, Any] = field(default_factory=dict)


def packed(value: Any) -> str:
    """A value as a store takes it."""
    return base64.b64encode(pickle.dumps(value)).decode()


def unpacked(text: bytes) -> Any:
    """The value that another rank of this run packed."""
    return pickle.loads(base64.b64decode(text))


def read_agreement(text: bytes) -> Agreement:
    """What the last rank at a point wrote there."""
    if text == CLEAN.encode():
        return Agreement()
    verdict: Agreement = (
        Agreement(late=True) if text == LATE.encode() else unpacked(text)
    )
    return verdict


def text_of_all(findings: Iterable[Finding], world: int) -> str:
    """One message for all ranks; what several found is one line."""
    merged: dict[tuple[Any, ...], Finding] = {}
    ranks: dict[tuple[Any, ...], list[int]] = {}
    for finding in sorted(findings, key=lambda f: f.rank):
        same = (
            finding.check,
            finding.stage,
            finding.fact,
            finding.subject,
            finding.location,
        )
        merged.setdefault(same, finding)
        ranks.setdefault(same, []).append(finding.rank)
    said = []
    for same, finding in merged.items():
        fact = f"{finding.fact}, {_on(ranks[same], world)}"
        said.append(replace(finding, fact=fact))
    return str(EvalGuardError.of(said, Report()))


def _on(ranks: Iterable[int], world: int) -> str:
    names = [str(rank) for rank in sorted(set(ranks))]
    if len(names) == world:
        return f"on all {world} ranks"
    return f"on rank{'s' if len(names) > 1 else ''} {', '.join(names)}"
