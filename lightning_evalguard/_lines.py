"""Which line of the user's changes a value, where no operator shows it: found line by line."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable, Mapping
from types import CodeType, FrameType
from typing import Any

from lightning_evalguard._source import LIBRARIES, Site, owner_of

_MOST = 20_000  # events of one run: what takes more lines is not searched to its end


def lines_that_change(
    values: Mapping[str, Callable[[], Any]], run: Callable[[], object]
) -> dict[str, Site]:
    """Run something under a line tracer and name the first line after which a value is another.

    A write through ``.data``, a numpy view or a storage runs no operator; a flag is no tensor.

    Args:
        values: What to look at before each line; compared with ``==``.
        run: Is called once.

    Returns:
        The lines that were found, by the names in `values`.
    """
    before = {name: value() for name, value in values.items()}
    found: dict[str, Site] = {}
    last: tuple[CodeType, int] | None = None
    left = _MOST

    def look(code: CodeType, line: int) -> None:
        nonlocal last, left
        left -= 1
        for name in before.keys() - found.keys():
            if values[name]() != before[name]:
                found[name] = _site(*(last or (code, line)))
        last = (code, line)

    def inside(frame: FrameType, event: str, _: Any) -> Any:
        if left <= 0 or len(found) == len(before):
            return None
        look(frame.f_code, frame.f_lineno)
        caller = frame.f_back
        if event == "return":  # what is left of the caller's line comes next
            while caller is not None and owner_of(caller.f_code.co_filename) in LIBRARIES:
                caller = caller.f_back
            if caller is not None:
                look(caller.f_code, caller.f_lineno)
        return inside

    def outside(frame: FrameType, event: str, arg: Any) -> Any:
        ours = owner_of(frame.f_code.co_filename) in LIBRARIES
        return None if ours else inside(frame, event, arg)

    tracing = sys.gettrace()
    sys.settrace(outside)
    try:
        run()
    finally:
        sys.settrace(tracing)
    return found


def _site(code: CodeType, line: int) -> Site:
    text = linecache.getline(code.co_filename, line).partition("  #")[0].strip()
    return Site(f"{code.co_filename}:{line}", text, code.co_name, owner_of(code.co_filename))
