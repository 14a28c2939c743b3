"""What a message says before its switch, which one test pins."""

from __future__ import annotations

import re

_SWITCH = re.compile(r" If it is meant: [A-Za-z]+\(.*?\)\.(?= \[\w+\])", re.DOTALL)


def said(message: object) -> str:
    """The text of a finding, an error or a warning without the switches in it."""
    return _SWITCH.sub("", str(message))
