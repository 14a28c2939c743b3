"""What a message says before its switch, which one test pins."""

from __future__ import annotations

import re

from lightning_evalguard.reasons import LONGEST, says
from lightning_evalguard.report import Finding

_SWITCH = re.compile(r" If it is meant: [A-Za-z]+\(.*?\)\.(?= \[\w+\])", re.DOTALL)


def said(message: object) -> str:
    """The text of a finding, an error or a warning without the switches in it."""
    return _SWITCH.sub("", str(message))


def badly_reasoned(finding: Finding) -> str:
    """What is wrong with how a finding says why it matters; empty where nothing is."""
    text, why = str(finding), finding.why
    if not re.fullmatch(r"[A-Z].*\w\.", why):
        return f"no sentence: {why!r}"
    if len(why.split()) > LONGEST:
        return f"too long: {why}"
    if text.lower().count(why.rstrip(".").lower()) != 1:
        return f"not said once: {text}"
    own = set(re.findall(r"[a-z]{4,}", why.lower()))
    again = own & set(
        re.findall(r"[a-z]{4,}", f"{finding.fact} {finding.remedy}".lower())
    )
    if not says(finding.fact, why) and len(again) > 0.7 * len(own):
        return f"said twice, {sorted(again)}: {text}"
    return ""
