"""The lines that move a shared generator without an operator."""

from __future__ import annotations

import linecache
import random
import sys
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

import torch
from torch import nn

from lightning_evalguard.allow import allowed
from lightning_evalguard.instruments.dispatch import modules_around
from lightning_evalguard.instruments.generators import (
    numpy_state,
    same_state,
    torch_generators,
)
from lightning_evalguard.instruments.source import (
    LIBRARIES,
    Site,
    beginning_of,
    owner_of,
)


class Lines:
    """Which lines of the user's and of libraries' code move a shared generator.

    Reads the generators at every line, so it stands around one replay only. Where a debugger or
    a coverage tool traces this thread it does nothing.
    """

    def __init__(self, which: Iterable[str]) -> None:
        self.found: list[tuple[str, Site, nn.Module | None]] = []
        self.allowed: set[str] = set()
        self._which = list(which)
        self._lines: dict[FrameType, int] = {}
        self._states: dict[str, Any] = {}
        self._tracing = False

    def __enter__(self) -> Lines:
        if sys.gettrace() is None:
            self._tracing = True
            sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        if self._tracing:
            sys.settrace(None)
        self._lines.clear()

    def _call(self, frame: FrameType, event: str, _: Any) -> Callable[..., Any] | None:
        if owner_of(frame.f_code.co_filename) in LIBRARIES:
            return None
        caller = frame.f_back
        while caller is not None and caller not in self._lines:
            caller = caller.f_back
        if caller is None:  # what happened above the step is no line of it
            self._states = {which: STATES[which]() for which in self._which}
        else:
            self._look(caller, caller.f_lineno)
        self._lines[frame] = frame.f_lineno
        return self._line

    def _line(self, frame: FrameType, event: str, _: Any) -> Callable[..., Any]:
        self._look(frame, self._lines.get(frame, frame.f_lineno))
        if event == "return":
            self._lines.pop(frame, None)
        else:
            self._lines[frame] = frame.f_lineno
        return self._line

    def _look(self, frame: FrameType, line: int) -> None:
        for which in self._which:
            state = STATES[which]()
            if _SAME[which](state, self._states[which]):
                continue
            self._states[which] = state
            if allowed("stochastic"):
                self.allowed.add(which)
                continue
            code = frame.f_code
            text = beginning_of(linecache.getline(code.co_filename, line))
            owner = owner_of(code.co_filename)
            site = Site(f"{code.co_filename}:{line}", text, code.co_name, owner)
            place = (which, site, next(modules_around(frame), None))
            if place not in self.found:
                self.found.append(place)


STATES: dict[str, Callable[[], Any]] = {
    "torch": lambda: [generator.get_state() for _, generator in torch_generators()],
    "python": random.getstate,
    "numpy": numpy_state,
}
_SAME: dict[str, Callable[[Any, Any], bool]] = {
    "torch": lambda a, b: all(torch.equal(x, y) for x, y in zip(a, b, strict=False)),
    "python": lambda a, b: bool(a == b),
    "numpy": same_state,
}
