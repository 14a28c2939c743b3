"""Tracebacks without our frames: they show the user's code, as those of the bare run do."""

from __future__ import annotations

import re
from types import TracebackType

from lightning_evalguard.instruments.source import owner_of, site_at

# How a function of ours calls what it stands before.
_THROUGH = re.compile(r"\b(original|call|func)\(")


def trim(error: BaseException | None, trace: TracebackType | None = None) -> None:
    """Take the frames of this package out of a traceback, in place.

    The first entry stays, for whoever handles the error holds it. A fault of ours that no check
    caught keeps its frames: it has to be reported with them.

    Args:
        error: The exception on its way; None changes nothing.
        trace: Where its traceback begins, if that is known; else what the exception holds.
    """
    first = trace if trace is not None or error is None else error.__traceback__
    if first is None or (_ends_in_ours(first) and not is_verdict(error)):
        return
    entry = first
    while entry.tb_next is not None:
        if _is_ours(entry.tb_next):
            entry.tb_next = entry.tb_next.tb_next
        else:
            entry = entry.tb_next


def cut(error: BaseException) -> None:
    """Take all our frames out, for the handler of a function of ours that the user's code calls.

    The bare ``raise`` that follows goes on with what the exception holds, so that not even this
    function's frame is left for a script that catches the error. Before Python 3.11 it goes on with
    that one frame.
    """
    trim(error)
    first = error.__traceback__
    if first is not None and (is_verdict(error) or not _ends_in_ours(first)):
        error.__traceback__ = first.tb_next


def is_verdict(error: BaseException | None) -> bool:
    """Whether it is raised by the guard on purpose."""
    return type(error).__name__ in ("EvalGuardError", "EvalGuardWarning")


def _ends_in_ours(trace: TracebackType) -> bool:
    """Whether a fault of ours raised it: not where torch, called in the user's place, did."""
    while trace.tb_next is not None:
        trace = trace.tb_next
    if not _is_ours(trace):
        return False
    site = site_at(trace.tb_frame.f_code, trace.tb_lasti, trace.tb_lineno)
    return not _THROUGH.search(site.expression)


def _is_ours(trace: TracebackType) -> bool:
    return owner_of(trace.tb_frame.f_code.co_filename) == "self"
