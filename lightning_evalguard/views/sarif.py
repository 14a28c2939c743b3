"""Findings as SARIF 2.1.0, which code-review tools show at the line."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Set
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import lightning_evalguard
from lightning_evalguard.checks.registry import RULES, page_of, rule_of, stops_run
from lightning_evalguard.report import Finding

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_LEVELS = {True: "error", False: "warning"}


def is_error(finding: Finding) -> bool:
    """Whether a bare guard would stop at it: the number is wrong, and that is certain."""
    return finding.certain and stops_run(finding.check)


def fingerprint(finding: Finding, root: Path) -> str:
    """What stays the same when lines are added above: no line number goes into it."""
    path, _ = place(finding, root)
    fact = ""
    if not finding.location:
        fact = re.sub(r"\d+", "#", finding.fact)
    parts = (
        finding.check,
        path,
        finding.function,
        finding.expression,
        finding.subject,
        fact,
    )
    return hashlib.sha256("\0".join(part or "" for part in parts).encode()).hexdigest()[
        :32
    ]


def merged(findings: Iterable[Finding], root: Path) -> dict[str, Finding]:
    """Findings by fingerprint; what several stages or ranks saw at one place is one."""
    found: dict[str, Finding] = {}
    for finding in findings:
        same = fingerprint(finding, root)
        before = found.get(same)
        # the certain one speaks for the doubtful
        kept = finding if before is None or finding.certain > before.certain else before
        found[same] = replace(
            kept, count=finding.count + (before.count if before else 0)
        )
    return found


def sarif(
    findings: Mapping[str, Finding],
    root: Path,
    script: Path | None = None,
    known: Set[str] | None = None,
    status: int = 0,
) -> dict[str, Any]:
    """A SARIF log of one run.

    Args:
        findings: What was found, by fingerprint.
        root: Of the checkout: locations are relative to it.
        script: Where findings are shown that stand at no line.
        known: Fingerprints of a baseline.
        status: Exit status of the script.
    """
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "lightning-evalguard",
                        "version": lightning_evalguard.__version__,
                        "rules": [_rule(check) for check in RULES],
                    }
                },
                "columnKind": "unicodeCodePoints",
                "originalUriBaseIds": {
                    "ROOT": {"description": {"text": "The root of the checkout."}}
                },
                "invocations": [
                    {"executionSuccessful": status == 0, "exitCode": status}
                ],
                "results": [
                    _result(finding, same, root, script, known)
                    for same, finding in findings.items()
                ],
            }
        ],
    }


def _rule(check: str) -> dict[str, Any]:
    rule = RULES[check]
    short = rule.violation
    text = rule.help
    return {
        "id": check,
        "name": rule.title,
        "shortDescription": {"text": short},
        "fullDescription": {"text": f"{short} {text}".replace("`", "")},
        "help": {"text": text.replace("`", ""), "markdown": text},
        "helpUri": page_of(check),
        "defaultConfiguration": {"level": _LEVELS[rule.stops_run]},
        "properties": {"tags": ["evaluation", check], "precision": "high"},
    }


def _result(
    finding: Finding, same: str, root: Path, script: Path | None, known: Set[str] | None
) -> dict[str, Any]:
    times = ""
    if finding.count > 1:
        times = f" ({finding.count}x)"
    who = ""
    if finding.subject:
        who = f"`{finding.subject}`: "
    result: dict[str, Any] = {
        "ruleId": finding.check,
        "level": _LEVELS[is_error(finding)],
        "message": {"text": f"{who}{finding.fact}{times}. {finding.advice}"},
        "partialFingerprints": {"evalguard/v1": same},
        "occurrenceCount": finding.count,
        "properties": {"stage": finding.stage, "certain": finding.certain},
    }
    if (rule := rule_of(finding.check)) is not None:
        result["ruleIndex"] = list(RULES).index(rule.name)
    path, line = place(finding, root, script)
    location: dict[str, Any] = {}
    if path:
        region: dict[str, Any] = {"startLine": line}
        if finding.location and finding.expression:
            region["snippet"] = {"text": finding.expression}
        physical = {"artifactLocation": _artifact(path), "region": region}
        if around := finding.around:
            snippet = {"text": "\n".join(around.values())}
            lines = {"startLine": min(around), "endLine": max(around)}
            physical["contextRegion"] = {**lines, "snippet": snippet}
        location["physicalLocation"] = physical
    if finding.subject:
        location["logicalLocations"] = [
            {"fullyQualifiedName": finding.subject, "kind": "object"}
        ]
    if location:
        result["locations"] = [location]
    if known is not None:
        result["baselineState"] = "unchanged" if same in known else "new"
    return result


def place(finding: Finding, root: Path, script: Path | None = None) -> tuple[str, int]:
    """File, from `root` on, and line; the script's first for a finding that stands at no line."""
    if finding.location is None:
        return ("" if script is None else _relative(script, root)), 1
    path, _, line = finding.location.rpartition(":")
    return _relative(Path(path), root), max(1, int(line))


def _relative(path: Path, root: Path) -> str:
    absolute = path if path.is_absolute() else Path.cwd() / path
    try:
        return absolute.resolve().relative_to(root.resolve()).as_posix()
    except ValueError:
        return absolute.as_posix()


def _artifact(path: str) -> dict[str, str]:
    if path.startswith("/") or Path(path).is_absolute():
        return {"uri": Path(path).as_uri()}
    return {"uri": quote(path), "uriBaseId": "ROOT"}
