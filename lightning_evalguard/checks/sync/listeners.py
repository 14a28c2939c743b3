"""Who hears of a wait: the watches of this thread, and those that the backward pass reports to."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, Protocol

import torch

TO_HOST = "copy to the host"
TO_DEVICE = "copy to the device"
# called as a wait begins, and as it ends
second_ears: list[Callable[[bool], object]] = []


class WaitListener(Protocol):
    """What is called with each wait.

    Attributes:
        missed_backward: Whether a backward pass ran unseen, for it would have moved bits.
    """

    missed_backward: bool

    @property
    def on_cpu(self) -> bool:
        """Whether nothing waits, and it is found out what would."""

    def tell(self, op: str, frame: FrameType | None, seconds: float) -> None:
        """A wait was seen."""


class _Here(threading.local):
    """What this thread watches. Other threads are not policed."""

    def __init__(self) -> None:
        self.watches: list[WaitListener] = []
        # a wait that is being counted: what it does inside is part of it
        self.inside = False
        self.places: Any = None  # of the CPU: see `host_or_device.Places`


here = _Here()
devices_open: list[WaitListener] = []  # also called from the autograd engine's threads


def caller(depth: int = 1) -> FrameType | None:
    """Who called the caller; None on the autograd engine's threads, where nobody in Python did."""
    frame: FrameType | None = sys._getframe(1)
    for _ in range(depth):
        frame = frame.f_back if frame is not None else None
    return frame


def heard_by() -> Sequence[WaitListener]:
    """Who is to be called with a wait on this thread."""
    if here.watches:
        return here.watches
    if devices_open and torch._C._current_graph_task_id() != -1:
        return devices_open
    return ()


def tell(op: str, seconds: float, frame: FrameType | None) -> None:
    """Call everybody who listens."""
    for watch in tuple(heard_by()):
        watch.tell(op, frame, seconds)


__all__ = [
    "TO_DEVICE",
    "TO_HOST",
    "WaitListener",
    "caller",
    "devices_open",
    "heard_by",
    "here",
    "second_ears",
    "tell",
]
