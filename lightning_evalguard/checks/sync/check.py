"""At which line does the host wait for the device, how often, and for how long?"""

from __future__ import annotations

import dataclasses
import itertools
import operator
from collections import Counter
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

import torch
from torch import nn

from lightning_evalguard.checks.check import Check, Moment
from lightning_evalguard.checks.sync.debug_mode import DebugMode
from lightning_evalguard.checks.sync.host_or_device import forget_compiled
from lightning_evalguard.checks.sync.overrides import KEYS, SUPPORTED, WaitWatch
from lightning_evalguard.checks.sync.owner import Where, where_of
from lightning_evalguard.checks.sync.remedies import (
    OPERATORS,
    remedy_of_metric,
    sync_remedy,
)
from lightning_evalguard.data.batches import moved_tensors
from lightning_evalguard.instruments.dispatch import holds
from lightning_evalguard.instruments.replay import uncollected
from lightning_evalguard.report import Finding, Report, Sync
from lightning_evalguard.stages import spelling

_FIRST, _EVERY = 2, 50  # steps of each stage that are watched by default
# on the CPU, operators of a watched step for each step before it, unless more is asked for
_FOR_A_STEP = 20


def check_steps(sync_steps: Any) -> None:
    """Refuse what does not say which steps are watched.

    Raises:
        ValueError: If it is not two numbers, the first >= 0 and the second >= 1.
    """
    is_pair = isinstance(sync_steps, (tuple, list)) and len(sync_steps) == 2
    are_counts = is_pair and all(type(n) is int for n in sync_steps)
    if not are_counts or sync_steps[0] < 0 or sync_steps[1] < 1:
        raise ValueError(
            f"sync_steps={sync_steps!r}: expected (first steps, every n-th step)"
        )


class SyncCheck(Check):
    """Lists every line at which the host waits for the device; only the user's own are findings.

    A window reaches from one step to the next, so that the backward pass, the optimizer, the
    progress bar, loggers and callbacks are inside. On the CPU nothing waits: there it says what
    would wait in a run on a device.

    Args:
        sync_steps: Which steps of each stage are watched: the first so many, and every so many
            from there on; on the CPU the gaps double (50, 100, 200, ...), and begin later where
            a step has many operators, unless the second number is below 50.
        allowed: Whether the running code is inside ``allow("sync")``.

    Attributes:
        notes: What was not watched, one sentence each.
        logs: Whether the steps belong to a LightningModule.

    Raises:
        ValueError: If `sync_steps` is not two numbers, the first >= 0 and the second >= 1.
    """

    name = "sync"
    enters = True
    logs = True

    def __init__(
        self,
        sync_steps: tuple[int, int] = (_FIRST, _EVERY),
        allowed: Callable[[], bool] = lambda: False,
    ) -> None:
        check_steps(sync_steps)
        self.notes: list[str] = []
        self._first, self._every = sync_steps
        self._allowed = allowed
        self._root: nn.Module | None = None
        self._watch: WaitWatch | None = None
        self._second: DebugMode | None = None
        self._moment: Moment | None = None  # of the open window
        self._stage = ""
        self._steps: Counter[str] = Counter()
        self._pass: dict[str, int] = {}  # steps of a stage that are counted already
        self._watched: Counter[str] = Counter()
        self._sites: dict[tuple[str, Where, str, bool], list[float]] = {}
        self._said: set[tuple[str, str]] = set()

    def records(self) -> list[Sync]:
        """One record a site, dearest first."""
        on_cpu = self._watch is None or self._watch.on_cpu
        merged: dict[tuple[Any, ...], list[float]] = {}
        for (stage, at, op, allowed), (count, seconds) in self._sites.items():
            remedy = remedy_of_metric(op, at)
            key = (
                at.location,
                at.expression,
                at.owner,
                stage,
                op,
                at.via,
                allowed,
                remedy,
            )
            total = merged.setdefault(key, [0, 0.0])
            total[0] += count
            total[1] += seconds
        found = []
        for (location, text, owner, stage, op, *rest), (
            count,
            seconds,
        ) in merged.items():
            n = self._watched[stage]
            spent = None
            if not on_cpu:
                spent = 1e3 * seconds / n
            found.append(
                Sync(location, text, owner, stage, op, count / n, spent, *rest)
            )
        return sorted(found, key=_cost)

    def write(self, report: Report) -> None:
        """Put the records of this run, and what was not watched, in `report`."""
        records = self.records()
        key = operator.attrgetter(
            "stage", "location", "expression", "op", "via", "owner"
        )
        again = {key(record) for record in records}
        records += [record for record in report.syncs if key(record) not in again]
        report.syncs = sorted(records, key=_cost)
        missed = 0
        if self._second is not None:
            missed = self._second.unattributed
        if missed:
            report.note(
                f"syncs: torch.cuda.set_sync_debug_mode counted {missed:,} waits in the watched "
                "steps that are not listed, because no line was found for them"
            )
        if self._watch is not None and self._watch.missed_backward:
            report.note(
                "syncs: a backward pass was not watched: torch would compute some of its gradients "
                "(prod, masked_fill, binary cross entropy of mixed precisions) in another way"
            )
        for note in self.notes:
            report.note(note)

    def open(self, root: nn.Module, now: Moment) -> Iterable[Finding]:
        self._root = root
        if not any(holds(module, "_orig_mod") for module in root.modules()):
            forget_compiled()
        return ()

    def close(self, now: Moment) -> Iterable[Finding]:
        findings = self._safely(self._leave)
        self._drop()
        return findings

    def start(self, now: Moment) -> Iterable[Finding]:
        return self._safely(self._leave)

    def before_step(self, now: Moment, args: tuple[Any, ...]) -> Iterable[Finding]:
        if self._passes(now.stage):
            return ()
        return self._safely(self._step, now, args)

    before_train_step = before_step

    def stop(self, now: Moment, error: BaseException | None) -> Iterable[Finding]:
        return self._safely(self._leave)

    # Windows

    def _safely(self, do: Callable[..., list[Finding]], *args: Any) -> list[Finding]:
        """Whatever goes wrong, nothing stays replaced in torch."""
        try:
            return do(*args)
        except BaseException:
            self._drop()
            raise

    def _drop(self) -> None:
        self._root = self._moment = None
        if self._second is not None:
            self._second.close()
        if self._watch is not None:
            self._watch.stop()

    def _passes(self, stage: str) -> bool:
        """Whether a step is not watched and the one before it was not: most are such."""
        left = self._pass.get(stage, 0)
        if not left or self._moment is not None:
            return False
        self._pass[stage] = left - 1
        return True

    def _step(self, now: Moment, args: tuple[Any, ...]) -> list[Finding]:
        stage = spelling(now.stage).kind
        n = self._steps[stage]
        self._steps[stage] = n + 1
        watched = n < self._first or self._is_due(n)
        if not watched and n >= self._first:
            # up to the next that is due nothing is to be done: they are counted together
            self._pass[now.stage] = left = self._every - 1 - n % self._every
            self._steps[stage] += left
        findings = self._findings() if watched else self._leave()
        if watched and self._root is not None and self._ready(self._root, args):
            self._moment = dataclasses.replace(now)
            self._stage = stage
            self._watched[stage] += 1
            self._enter(self._root, args)
        return findings

    def _enter(self, root: nn.Module, args: tuple[Any, ...]) -> None:
        assert self._watch is not None
        if not self._watch.on_cpu:
            self._watch.open(())
            if self._second is not None:
                self._second.open()
            return
        # a hook of the user's may leave a part of the batch on the host: then nothing is known
        moves = getattr(type(root), "transfer_batch_to_device", None)
        known = moves is None or moves.__module__.startswith(
            ("lightning.", "pytorch_lightning.")
        )
        batch = moved_tensors(args) if known else ()
        with uncollected():
            self._watch.open(itertools.chain(root.parameters(), root.buffers(), batch))

    def _is_due(self, n: int) -> bool:
        times, rest = divmod(n, self._every)
        if rest or self._watch is None or not self._watch.on_cpu:
            return not rest
        # on the CPU a watched step is slower, and there is no wait to measure again and again
        if times & (times - 1):
            return False
        operators = self._watch.operators / max(1, self._watched.total())
        return self._every < _EVERY or n * _FOR_A_STEP >= operators

    def _leave(self) -> list[Finding]:
        findings = self._findings()
        self._moment = None
        if self._second is not None:
            self._second.close()
        if self._watch is not None:
            self._watch.close()
        return findings

    def _ready(self, root: nn.Module, args: tuple[Any, ...]) -> bool:
        if self._watch is None and not self.notes:
            tensors = itertools.chain(
                root.parameters(), root.buffers(), moved_tensors(args)
            )
            device = next((t.device.type for t in tensors), "cpu")
            if not SUPPORTED:
                self.notes.append(
                    f"syncs: not watched; torch {torch.__version__} is below 2.9"
                )
            elif device not in KEYS:
                self.notes.append(
                    f"syncs: not watched on {device}, only on CPU, CUDA and MPS"
                )
            else:
                self._watch = WaitWatch(device, self._hear)
                self._second = DebugMode() if device == "cuda" else None
        return self._watch is not None

    # Waits

    def _hear(self, op: str, frame: FrameType | None, seconds: float) -> None:
        assert self._watch is not None
        on_cpu = self._watch.on_cpu
        at = where_of(frame, on_cpu)
        if at is None or not at.is_a_cost_of_steps:
            return
        op = OPERATORS.get(op, op)
        if (
            on_cpu
            and op == "copy to the device"
            and "apply_func.py:" in (at.via or at.location)
        ):
            return  # Lightning copies with non_blocking=True where there is a device
        site = self._sites.setdefault((self._stage, at, op, self._allowed()), [0, 0.0])
        site[0] += 1
        site[1] += seconds

    def _findings(self) -> list[Finding]:
        """The user's own sites that were not said yet, one finding each."""
        if self._watch is not None and self._watch.error is not None:
            error = self._watch.error
            self._watch.error = None
            raise error
        now = self._moment
        if now is None:
            return []
        found: dict[tuple[str, str], tuple[Where, str, list[float]]] = {}
        for (stage, at, op, allowed), (count, seconds) in self._sites.items():
            site = (at.location, at.expression)
            if (
                at.owner != "user"
                or allowed
                or stage != self._stage
                or site in self._said
            ):
                continue
            total = found.setdefault(site, (at, op, [0, 0.0]))[2]
            total[0] += count
            total[1] += seconds
        self._said.update(found)
        return [self._finding(now, *each) for each in found.values()]

    def _finding(self, now: Moment, at: Where, op: str, cost: list[float]) -> Finding:
        assert self._watch is not None
        n = self._watched[self._stage]
        on_cpu = self._watch.on_cpu
        often = f"{cost[0] / n:.1f} per {spelling(self._stage).step_words}"
        spent = ""
        if not on_cpu:
            spent = f" ({1e3 * cost[1] / n:.2f} ms)"
        makes = "makes"
        if on_cpu:
            makes = "would make"
        return Finding(
            "sync",
            now.stage,
            f"`{at.expression}` {makes} the host wait for the device, {often}{spent}",
            sync_remedy(op, at, self.logs),
            location=at.location,
            expression=at.expression,
            function=at.function,
            epoch=now.epoch,
            step=now.step,
            rank=now.rank,
            count=int(cost[0]),
        )


def _cost(sync: Sync) -> tuple[float, float, str]:
    return -(sync.milliseconds or 0.0), -sync.per_step, sync.location
