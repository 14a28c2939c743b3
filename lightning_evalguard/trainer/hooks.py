"""The hooks of a first evaluation, followed line by line."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from lightning_evalguard.instruments.patch import Wrap


class FollowedHooks:
    """Follows what runs between two names that the profiler is told: every hook and fetch.

    Of the batches only the first two are followed, so after them the profiler is left as it is
    until the last one is over.

    Args:
        profiler: The trainer's.
        following: Follows what runs inside.
        is_late: Whether the running batch is none of those that are followed.
    """

    def __init__(
        self,
        profiler: Any,
        following: Callable[[], AbstractContextManager[Any]],
        is_late: Callable[[], bool],
    ) -> None:
        self._profiler = profiler
        self._following = following
        self._is_late = is_late
        self._inside: list[str] = []
        self._stack = ExitStack()
        self._wraps: tuple[Wrap, ...] = ()

    def __enter__(self) -> FollowedHooks:
        self.resume()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._remove()

    def resume(self) -> None:
        """Follow from now on."""
        if not self._wraps:
            profiler = self._profiler
            self._wraps = (
                Wrap(profiler, "start", self._start),
                Wrap(profiler, "stop", self._stop),
            )

    def rest(self) -> None:
        """Leave the profiler as it is until `resume`."""
        if self._wraps and not self._inside:
            self._remove()

    def _remove(self) -> None:
        for wrap in self._wraps:
            wrap.remove()
        self._wraps = ()

    def _start(self, start: Callable[[str], None], action: str) -> None:
        start(action)
        of_batch = "_batch_" in action or action.endswith("_next")
        if (
            self._inside
            or action.startswith("[Strategy]")
            or (of_batch and self._is_late())
        ):
            return
        self._inside.append(action)
        self._stack.enter_context(self._following())

    def _stop(self, stop: Callable[[str], None], action: str) -> None:
        if self._inside == [action]:
            self._inside.clear()
            self._stack.close()
        stop(action)
