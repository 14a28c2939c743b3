"""Does an evaluation leave the model, its optimizers and torch's settings as it found them?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.modules import module as _module

from lightning_evalguard.allow import allowed
from lightning_evalguard.checks.check import Check, Moment
from lightning_evalguard.checks.state.change import PROJECT, Change, finding_of
from lightning_evalguard.checks.state.contents import buffers
from lightning_evalguard.checks.state.optimization import Optimization
from lightning_evalguard.checks.state.window import StateWindow
from lightning_evalguard.checks.state.writes import FirstWrites
from lightning_evalguard.instruments.dispatch import Subscriber
from lightning_evalguard.instruments.source import Site, user_site
from lightning_evalguard.model.attributes import LEAVE_IN_EVAL
from lightning_evalguard.model.tensors import Inventory
from lightning_evalguard.model.tree import registrations
from lightning_evalguard.report import Finding

if TYPE_CHECKING:
    from lightning_evalguard.instruments.replay import Look


class StateCheck(Check):
    """The `state` check: tripwires around every step, contents and settings at both ends.

    Args:
        optimizers: Gives the optimizers that train the model.
        schedulers: Gives their learning rate schedulers.
        accumulates: Whether gradients that stand when an evaluation begins are still needed.
    """

    name = "state"
    thins = True

    def __init__(
        self,
        optimizers: Callable[[], Iterable[Any]] = tuple,
        schedulers: Callable[[], Iterable[Any]] = tuple,
        accumulates: Callable[[], bool] = lambda: True,
    ) -> None:
        self.notes: list[str] = []
        self._optimizers = optimizers
        self._schedulers = schedulers
        self.accumulates = accumulates
        self._inventory: Inventory | None = None
        self._windows: list[StateWindow] = []
        self._evaluations = 0
        self.restless: set[str] = set()
        self.calibrated: set[str] = set()
        # of tensors that one line wrote, by what became of them
        self._sites: dict[tuple[str, str, str], Site] = {}
        self._allowed: set[str] = set()
        # reported once: each evaluation does it again
        self._projected: set[str] = set()
        self.assigned: dict[str, Site | None] = {}
        self._handles: list[Any] = []
        self.pending: list[Change] = []

    # a run

    def open(self, root: nn.Module, now: Moment) -> Iterable[Finding]:
        registrations.start()
        self._inventory = Inventory(root)
        self._windows, self.pending = [], []
        self._evaluations = 0
        self.restless, self._allowed, self._projected = set(), set(), set()
        self.calibrated, self._sites = set(), {}
        self._handles = [
            _module.register_module_parameter_registration_hook(self._registered),
            _module.register_module_buffer_registration_hook(self._registered),
            _module.register_module_module_registration_hook(self._registered),
        ]
        return ()

    def close(self, now: Moment) -> Iterable[Finding]:
        if self._inventory is None:
            return ()
        try:
            return self._flush(now)
        finally:  # whatever fails, no hook stays
            self._inventory = None
            registrations.stop()
            for handle in self._handles:
                handle.remove()

    # an evaluation

    def start(self, now: Moment) -> Iterable[Finding]:
        inventory = self._held()
        inventory.refresh(force=True)
        self.assigned.clear()
        # Everything at the first evaluation; from then on a piece of each parameter, and all of
        # those that once moved.
        whole = None
        if self._evaluations != 0:
            whole = frozenset(self.restless) | buffers(inventory)
        self._windows.append(StateWindow(inventory, self, whole, self._evaluations))
        self._evaluations += 1
        for name in inventory.opaque:
            self.note(
                f"`{name}` has no version or address: writes to it were not looked for"
            )
        return ()

    def standing(self) -> Mapping[str, Any]:
        if not self._windows:
            return {}
        return self._windows[-1].standing()

    def before_step(self, now: Moment, args: tuple[Any, ...]) -> Iterable[Finding]:
        findings = self._flush(now)
        if self._windows:
            self._windows[-1].before_step(now, args)
        return findings

    def after_step(self, now: Moment, outputs: Any) -> Iterable[Finding]:
        if self._windows:
            self.pending += self._windows[-1].after_step(now)
        return ()

    def stop(self, now: Moment, error: BaseException | None) -> Iterable[Finding]:
        findings = list(self._flush(now))
        if self._windows:
            window = self._windows.pop()
            if error is None:
                self._held().refresh(force=True)
                findings += self._findings(window.stop(now), now)
        return findings

    # a witness (see `checks.check.Check`)

    def tripped(self) -> bool:
        """Whether the step that just ended moved anything."""
        return bool(self.pending)

    def watch(self, now: Moment) -> Subscriber:
        """Sees who writes to what the model holds, to its attributes and to the batch."""
        if self._windows:
            return self._windows[-1].watch()
        return Subscriber()

    def saw(
        self, now: Moment, seen: Subscriber | None, look: Look | None
    ) -> Iterable[Finding]:
        """Name the lines, and find what only the operators show."""
        if isinstance(seen, FirstWrites) and self._windows:
            self._allowed |= seen.allowed
            self.pending += self._windows[-1].saw(seen, look)
            return self._findings(self._take(), now, seen)
        return self._flush(now)

    # how findings are made

    def _held(self) -> Inventory:
        assert self._inventory is not None, "open() comes first"
        return self._inventory

    def optimization(self) -> Optimization:
        return Optimization(self._optimizers(), self._schedulers())

    def note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)

    def _registered(self, module: nn.Module, key: str, tensor: Any) -> None:
        if self._windows:
            owner = self._windows[-1].names.get(id(module))
            if owner is not None:
                self.assigned[f"{owner}.{key}" if owner else key] = user_site()
                if allowed("state"):
                    self._allowed.add(f"{owner}.{key}" if owner else key)

    def _site_before(self, change: Change) -> Site | None:
        """The line of an earlier evaluation that did the same: later ones are not followed."""
        if not change.writes:
            return None
        return self._sites.get((change.name, change.fact, change.remedy))

    def _remember(self, groups: Iterable[list[Change]]) -> None:
        """Keep the lines that wrote to tensors of several modules: they are one cause."""
        for group in groups:
            site = group[0].site
            if site is None or len({change.owner for change in group}) < 2:
                continue
            for change in group:
                if change.writes:
                    key = change.name, change.fact, change.remedy
                    self._sites.setdefault(key, site)

    def _take(self) -> list[Change]:
        changes, self.pending = self.pending, []
        return changes

    def _flush(self, now: Moment) -> list[Finding]:
        return self._findings(self._take(), now)

    def _findings(
        self, changes: list[Change], now: Moment, seen: FirstWrites | None = None
    ) -> list[Finding]:
        groups: dict[tuple[Any, ...], list[Change]] = {}
        for change in changes:
            if change.name in self._allowed:
                continue
            if change.writes and change.name in self._projected:
                continue
            if change.site is None and change.writes:
                site = None
                if seen is not None:
                    site = seen.sites.get(change.name)
                change.site = site or self.assigned.get(change.name)
            elif change.site is None and change.backward and seen is not None:
                change.site = seen.backward
            change.site = change.site or self.lines.get(change.name)
            change.site = change.site or self._site_before(change)
            if seen is not None and change.writes and change.name in seen.projected:
                change.certain = False
                change.remedy = PROJECT
            where = None
            if change.site:
                where = change.site.location
            # one line is one cause, however many modules it runs in
            by_line = (
                change.writes and where is not None and change.remedy != LEAVE_IN_EVAL
            )
            owner = None
            if not by_line:
                owner = change.owner
            key = (
                owner,
                change.fact,
                change.expected,
                change.remedy,
                change.certain,
                where,
            )
            groups.setdefault(key, []).append(change)
        if seen is not None:
            self._projected |= seen.projected
        self._remember(groups.values())
        return [finding_of(group, now) for group in groups.values()]
