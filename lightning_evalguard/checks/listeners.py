"""Which checks do something at which event: most do nothing at most of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from lightning_evalguard.checks.check import Check
from lightning_evalguard.report import Finding

Ruled = tuple[Check, str]
"""A check and its policy."""


class Asked(NamedTuple):
    """What an event calls: the method of one check."""

    pair: Ruled
    method: Callable[..., Iterable[Finding]]


_SKIPPED = ("before_skipped_step", "after_skipped_step", "tripped_skipped")


class Listeners:
    """The checks of a run, by the events at which they do something.

    Events of a step that is not looked at have names of their own: ``before_skipped_step``.

    Args:
        checks: Each with its policy.

    Attributes:
        checks: Those that have not failed.
        methods: What each event calls.
    """

    def __init__(self, checks: Iterable[Ruled]) -> None:
        self.checks: Sequence[Ruled] = list(checks)
        self._hearing: dict[str, tuple[Ruled, ...]] = {}
        self.methods = _Methods(self.hearing)
        self._thins: list[bool] = []

    def hearing(self, event: str) -> tuple[Ruled, ...]:
        """The checks that do something at an event."""
        hearing = self._hearing.get(event)
        if hearing is None:
            method = _method_of(event)
            each = self.checks
            if method != event:
                each = [pair for pair in each if not pair[0].thins]
            default = getattr(Check, method, None)
            hearing = self._hearing[event] = tuple(
                pair
                for pair in each
                if getattr(type(pair[0]), method, None) is not default
            )
        return hearing

    def ask_who_thins(self) -> None:
        """Which checks may be left out when steps are skipped: some say so by what they saw."""
        thins = [check.thins for check, _ in self.checks]
        if thins != self._thins:
            self._thins = thins
            for event in _SKIPPED:
                self.methods.pop(event, None)
                self._hearing.pop(event, None)

    def remove(self, pair: Ruled) -> None:
        """A check failed, and hears no more."""
        self.checks = [p for p in self.checks if p is not pair]
        self._hearing.clear()
        self.methods.clear()


class _Methods(dict[str, tuple[Asked, ...]]):
    """What each event calls, made as it is asked for: most steps only look it up."""

    def __init__(self, hearing: Callable[[str], Iterable[Ruled]]) -> None:
        super().__init__()
        self._hearing = hearing

    def __missing__(self, event: str) -> tuple[Asked, ...]:
        method = _method_of(event)
        each = self._hearing(event)
        self[event] = asked = tuple(
            Asked(pair, getattr(pair[0], method)) for pair in each
        )
        return asked


def _method_of(event: str) -> str:
    return event.replace("_skipped", "")
