"""Which line of the user's changes a value, where no operator shows it: found line by line."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

from lightning_evalguard.instruments.source import (
    LIBRARIES,
    Site,
    beginning_of,
    owner_of,
)

_MOST = 20_000  # events of one trace: what takes more lines is not searched to its end


class LineTrace:
    """Finds the user's line that changes a watched value, while it is entered.

    A write through ``.data``, a numpy view or a storage runs no operator; a flag is no tensor: what
    changed them is found by looking before each line and at the end. It may be entered again and
    again; what changes in between is nobody's.

    Args:
        values: Gives what to look at, by name; compared with ``==``. Nothing ends the search.
        most: Values that are looked at, over all: what takes more is not searched to its end.
        live: Follows something that counts, and not a replay: lines of the user's own files only,
            and none where a debugger or a coverage tool traces already.

    Attributes:
        found: The last line that changed each value, by its name.
        error: What looking raised, if it did: nothing is raised into the code that is followed.
    """

    def __init__(
        self,
        values: Callable[[], Mapping[str, Any]],
        most: float = float("inf"),
        live: bool = False,
    ) -> None:
        self.found: dict[str, Site] = {}
        self.error: Exception | None = None
        self._values = values
        self._left, self._values_left = _MOST, most
        self._live = live
        self._last: tuple[CodeType, int] | None = None
        self._before: Mapping[str, Any] = {}
        self._others: Any = None
        self._active = False
        self._depth = 0

    def __enter__(self) -> LineTrace:
        self._depth += 1
        if self._depth > 1:  # a hook within a hook, or within the step
            return self
        self._others = sys.gettrace()
        self._active = self._goes_on() and not (self._live and self._others is not None)
        self._last = None
        if self._active:
            sys.settrace(self._outside)
        return self

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._active and not self._depth:
            self._active = False
            if sys.gettrace() == self._outside:  # else a debugger began meanwhile
                sys.settrace(self._others)
            if self._last is not None and self._goes_on():
                self._compare(None)

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Inside, `found` starts empty; at the end new results win over older ones."""
        before = dict(self.found)
        self.found.clear()
        try:
            yield
        finally:
            for name, site in before.items():
                self.found.setdefault(name, site)

    def _goes_on(self) -> bool:
        return self._left > 0 and self._values_left > 0

    def _compare(self, at: tuple[CodeType, int] | None) -> None:
        try:
            self._look(at)
        except Exception as error:  # noqa: BLE001 - ours, and it would surface in their line
            self.error, self._left = error, 0

    def _look(self, at: tuple[CodeType, int] | None) -> None:
        """Compare, for the last line, and take `at` for the one that runs next."""
        self._left -= 1
        now = self._values()
        self._values_left -= len(now)
        if not now:
            self._left = 0
        elif self._last is not None:
            changed = [
                n for n, value in now.items() if self._before.get(n, value) != value
            ]
            if changed:
                site = _site(*self._last)
                self.found.update(dict.fromkeys(changed, site))
        self._before, self._last = now, at

    def _outside(self, frame: FrameType, event: str, arg: Any) -> Any:
        owner = owner_of(frame.f_code.co_filename)
        left_out = owner != "user" if self._live else owner in LIBRARIES
        if left_out:
            return None
        return self._inside(frame, event, arg)

    def _inside(self, frame: FrameType, event: str, _: Any) -> Any:
        if not self._goes_on():
            return None
        self._compare((frame.f_code, frame.f_lineno))
        if event == "return":  # what is left of the caller's line comes next
            caller = frame.f_back
            while (
                caller is not None and owner_of(caller.f_code.co_filename) in LIBRARIES
            ):
                caller = caller.f_back
            if caller is not None:
                self._last = (caller.f_code, caller.f_lineno)
        return self._inside


def lines_that_change(
    values: Mapping[str, Callable[[], Any]], run: Callable[[], object]
) -> dict[str, Site]:
    """Run something and name the first line of the user's after which a value is another.

    Args:
        values: What to look at before each line; compared with ``==``.
        run: Is called once.

    Returns:
        The lines that were found, by the names in `values`.
    """
    trace = LineTrace(
        lambda: {
            name: value() for name, value in values.items() if name not in trace.found
        }
    )
    with trace:
        run()
    if trace.error is not None:
        raise trace.error
    return trace.found


def _site(code: CodeType, line: int) -> Site:
    text = beginning_of(linecache.getline(code.co_filename, line))
    return Site(
        f"{code.co_filename}:{line}", text, code.co_name, owner_of(code.co_filename)
    )
