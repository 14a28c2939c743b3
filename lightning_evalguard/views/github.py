"""Findings as workflow commands of GitHub Actions, which a pull request shows at the line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lightning_evalguard.report import Finding
from lightning_evalguard.views.sarif import is_error, place

_IN_VALUES = {"%": "%25", "\r": "%0D", "\n": "%0A"}
_IN_PROPERTIES = _IN_VALUES | {":": "%3A", ",": "%2C"}


def workflow_commands(
    findings: Mapping[str, Finding],
    root: Path,
    script: Path | None = None,
    strict: bool = False,
) -> str:
    """One line a finding: ``::error file=train.py,line=3,title=evalguard[modes]::...``.

    Args:
        findings: What was found, by fingerprint.
        root: Of the checkout: files are named from there.
        script: Where findings are shown that stand at no line.
        strict: Whether suspicions and warnings are errors too.
    """
    lines = [
        _annotation(finding, root, script, strict) for finding in findings.values()
    ]
    return "".join(f"{line}\n" for line in lines)


def _annotation(finding: Finding, root: Path, script: Path | None, strict: bool) -> str:
    level = "warning"
    if strict or is_error(finding):
        level = "error"
    path, line = place(finding, root, script)
    where = {"file": path, "line": str(line)} if path else {}
    where["title"] = f"evalguard[{finding.check}]"
    properties = ",".join(
        f"{k}={_escaped(v, _IN_PROPERTIES)}" for k, v in where.items()
    )
    return f"::{level} {properties}::{_escaped(str(finding), _IN_VALUES)}"


def _escaped(text: str, table: Mapping[str, str]) -> str:
    return "".join(table.get(letter, letter) for letter in text)


__all__ = ["workflow_commands"]
