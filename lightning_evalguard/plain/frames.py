"""Whose code calls: the user's frame, and whether a Trainer stands around it."""

from __future__ import annotations

import dis
import functools
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from types import CodeType, FrameType

from lightning_evalguard.instruments.source import PLUMBING, Site, nearest, owner_of
from lightning_evalguard.report import Finding

_TRAINERS = ("lightning", "pytorch_lightning", "transformers")


def user_frame(frame: FrameType | None) -> FrameType | None:
    """The user's frame that calls; of a library that trains by itself, the library's."""
    first = nearest(frame, PLUMBING)
    while frame is not None:
        if owner_of(frame.f_code.co_filename) == "user":
            return frame
        frame = frame.f_back
    return first


def is_trainers(frame: FrameType | None) -> bool:
    """Whether a Trainer runs this step: it has a guard of its own."""
    if not any(name in sys.modules for name in _TRAINERS):
        return False
    while frame is not None:
        if _runs_a_trainer(frame.f_code.co_filename):
            return True
        frame = frame.f_back
    return False


@functools.lru_cache(maxsize=4096)
def _runs_a_trainer(file: str) -> bool:
    owner = owner_of(file)
    if owner in ("lightning", "pytorch_lightning"):
        return f"{os.sep}trainer{os.sep}" in file or f"{os.sep}loops{os.sep}" in file
    return owner == "transformers" and os.path.basename(file).startswith("trainer")


def is_discarded(frame: FrameType) -> bool:
    """Whether the value of the call that `frame` is in is thrown away: a statement by itself."""
    return _discards(frame.f_code, frame.f_lasti)


@functools.lru_cache(maxsize=4096)
def _discards(code: CodeType, lasti: int) -> bool:
    for instruction in dis.get_instructions(code):
        if instruction.offset <= lasti or instruction.opname in (
            "CACHE",
            "EXTENDED_ARG",
        ):
            continue
        if instruction.opname.startswith("STORE_"):
            return bool(instruction.argval == "_")
        return instruction.opname == "POP_TOP"
    return False


def path_of(frame: FrameType | None) -> tuple[tuple[CodeType, int], ...]:
    """A frame and the user's running code around it, innermost first, with its instructions."""
    places: list[tuple[CodeType, int]] = []
    if frame is not None:
        places.append((frame.f_code, frame.f_lasti))
        frame = frame.f_back
    while frame is not None and len(places) < 4:
        if owner_of(frame.f_code.co_filename) == "user":
            places.append((frame.f_code, frame.f_lasti))
        frame = frame.f_back
    return tuple(places)


def functions_around(
    frame: FrameType | None, owner_of: Callable[[str], str]
) -> tuple[str, ...]:
    """Names of the user's functions around a frame, innermost first."""
    names: list[str] = []
    while frame is not None and len(names) < 6:
        if owner_of(frame.f_code.co_filename) == "user":
            names.append(frame.f_code.co_name)
            if names[-1] == "<module>":
                break
        frame = frame.f_back
    return tuple(names)


def at_site(finding: Finding, site: Site) -> Finding:
    """The finding, at the line of a site."""
    return replace(
        finding,
        location=site.location,
        expression=site.expression,
        function=site.function,
    )
