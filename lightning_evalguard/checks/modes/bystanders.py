"""Modules that do not learn, but act as in training while others do: frozen norms, teachers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_evalguard.checks.check import Moment
from lightning_evalguard.checks.modes.effect import effect_of, tracks_statistics
from lightning_evalguard.checks.modes.learning import Learning
from lightning_evalguard.checks.modes.plans import Repair, planned
from lightning_evalguard.checks.modes.words import (
    common,
    kinds_of,
    mode_finding,
    patterns,
)
from lightning_evalguard.model.tensors import is_metric, version
from lightning_evalguard.model.tree import Modes, parent

_STEPS = 4  # training steps in which it is looked whether a module is used
# These take another path where hooks are on what they hold.
_FAST = (nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.MultiheadAttention)


@dataclass
class _Bystander:
    """One module in train mode that does not learn.

    Attributes:
        name: Its qualified name.
        top: The largest part around it in which nothing learns.
        around: The parameters of that part.
        marks: Versions of these before the steps looked at.
        count: Version of the count of batches before the latest of these steps.
        heard: Whether its calls are listened to.
        calls: Whether grad mode was on, for each time that it was called in train mode.
    """

    name: str
    module: nn.Module
    top: str
    frozen: bool
    around: list[Tensor]
    marks: list[int] = field(default_factory=list)
    count: int | None = None
    heard: bool = False
    calls: list[bool] = field(default_factory=list)

    @property
    def batches(self) -> Tensor | None:
        """How many batches its running statistics have seen."""
        return self.module._buffers.get("num_batches_tracked")

    def mark(self) -> None:
        """Remember where its tensors stand as a step begins."""
        if not self.marks:
            self.marks = [version(p) for p in self.around]
        # Between steps others may write it: an average of buffers, statistics computed anew.
        self.count = version(self.batches) if self.batches is not None else None

    @property
    def follows(self) -> bool:
        """Whether its parameters move although nothing trains them: an average of others."""
        return self.marks != [version(p) for p in self.around]

    @property
    def moves_statistics(self) -> bool:
        """Whether a call within the step moved its running statistics."""
        if not tracks_statistics(self.module) or (self.heard and not self.calls):
            return False
        return self.batches is None or version(self.batches) != self.count


class Bystanders:
    """Looks at the steps after a judgement: which of the modules that do not learn are used.

    Args:
        modes: The module tree.
        expected: Modes that a plan declares.
    """

    def __init__(self, modes: Modes, expected: Sequence[tuple[str, bool]]) -> None:
        self._modes = modes
        self._expected = expected
        self._candidates: list[_Bystander] = []
        self._reported: set[int] = set()
        self._handles: list[Any] = []
        self._left = 0
        self._trained_at_open = {
            id(p) for p in modes.root.parameters() if p.requires_grad
        }

    def consider(self, flags: Sequence[bool], learning: Learning) -> None:
        """Choose the modules to look at in the next steps."""
        self._candidates, self._left = [], _STEPS
        if learning.is_all():
            return
        modules = dict(zip(self._modes.names, self._modes.modules, strict=True))
        for (name, module), flag in zip(modules.items(), flags, strict=True):
            if not flag or id(module) in self._reported or learning.learns(name):
                continue
            top = learning.idle_part(name)
            if top is None or effect_of(module) is None:
                continue
            if planned(self._expected, name) is not None or self._in_metric(
                name, modules
            ):
                continue
            around: list[Tensor] = list(modules[top].parameters())
            held = learning.is_held(top)
            if held and any(id(p) in self._trained_at_open for p in around):
                continue  # one side of a pair that takes turns
            frozen = not any(p.requires_grad for p in around)
            self._candidates.append(_Bystander(name, module, top, frozen, around))

    @staticmethod
    def _in_metric(name: str, modules: dict[str, nn.Module]) -> bool:
        at: str | None = name
        while at is not None:
            if at in modules and is_metric(modules[at]):
                return True
            at = parent(at)
        return False

    @property
    def looks(self) -> bool:
        """Whether there are modules to look at."""
        return bool(self._candidates)

    def before_step(self) -> None:
        """A training step is about to run: mark what it may move, hear what it may call."""
        if not self._candidates:
            return
        for bystander in self._candidates:
            bystander.mark()
            bystander.heard = self._may_be_heard(bystander.name)
            if bystander.heard:
                hook = _Called(bystander.calls)
                self._handles.append(bystander.module.register_forward_pre_hook(hook))

    def _may_be_heard(self, name: str) -> bool:
        modules = dict(zip(self._modes.names, self._modes.modules, strict=True))
        at: str | None = name
        while at is not None:
            module = modules.get(at)
            compiled = type(module).__module__.startswith(
                ("torch.jit.", "torch._dynamo.")
            )
            if compiled or isinstance(module, _FAST):
                return False
            at = parent(at)
        return True

    def after_step(self, now: Moment) -> Iterator[Repair]:
        """What the step used."""
        if not self._candidates:
            return
        self.stop()
        acting = [b for b in self._candidates if b.module.training and self._acts(b)]
        yield from self._report(now, acting)
        parts = {b.top for b in acting}
        self._reported.update(id(b.module) for b in self._candidates if b.top in parts)
        self._left -= 1
        waiting = [b for b in self._candidates if id(b.module) not in self._reported]
        self._candidates = waiting if self._left > 0 else []

    def stop(self) -> None:
        """Take all hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @staticmethod
    def _acts(bystander: _Bystander) -> bool:
        if any(p.requires_grad for p in bystander.around) and bystander.frozen:
            return False  # it was unfrozen meanwhile
        if tracks_statistics(bystander.module):
            return bystander.moves_statistics
        # A frozen layer below others that train drops as they do; a teacher is asked on the side.
        on_the_side = not all(bystander.calls) or bystander.follows
        return bool(bystander.calls) and on_the_side

    @staticmethod
    def _is_other(module: nn.Module) -> bool:
        return not module.training and effect_of(module) is not None

    def _report(self, now: Moment, acting: list[_Bystander]) -> Iterator[Repair]:
        modules = dict(zip(self._modes.names, self._modes.modules, strict=True))
        by_part: dict[str, list[_Bystander]] = {}
        for bystander in acting:
            by_part.setdefault(bystander.top.split(".")[0], []).append(bystander)
        for group in by_part.values():
            names = [b.name for b in group]
            moving = [b for b in group if b.moves_statistics]
            follows = any(b.follows for b in group)
            part = common([b.top for b in group])
            subject = part
            if len(names) == 1:
                subject = names[0]
            if subject not in modules:
                subject = names[0]
            fact = self._fact(group, moving, follows)
            # a pattern may take in what has no mode of its own, and what is in train mode anyway
            others = [
                n for n, m in modules.items() if n not in names and self._is_other(m)
            ]
            listed = patterns(names, others, [part] if part else [])
            remedy = (
                "Call `.eval()` on it and override `train()` to keep it so, or write "
                f"`guard.expect_modes(train={listed})` if that is the plan."
            )
            found = mode_finding(
                now, subject, modules[subject], fact, remedy, None, certain=False
            )
            tops = {bystander.top for bystander in group}
            beside = [b for b in self._candidates if b.top in tops]
            teaches = follows or not all(tracks_statistics(b.module) for b in beside)
            yield found, [] if teaches else [(b.module, False) for b in group]

    @staticmethod
    def _fact(group: list[_Bystander], moving: list[_Bystander], follows: bool) -> str:
        what = "is in no optimizer"
        if all(b.frozen for b in group):
            what = "is frozen"
        what = "follows other weights and does not train" if follows else what
        many = ""
        if len(group) != 1:
            many = f" with {kinds_of(b.module for b in group)}"
        acts = []
        if moving:
            acts.append("running statistics still move")
        if len(moving) < len(group):
            acts.append("it is used with dropout or the like switched on")
        return (
            f"{what} but in train mode{many}: {' and '.join(acts)}, expected eval mode"
        )


class _Called:
    """The hook on one module; it does nothing in a copy of it."""

    def __init__(self, calls: list[bool] | None = None) -> None:
        self._calls = calls

    def __call__(self, module: nn.Module, args: Any) -> None:
        if self._calls is not None and module.training:
            self._calls.append(torch.is_grad_enabled())

    def __deepcopy__(self, memo: dict[int, Any]) -> _Called:
        return _Called()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Called, ()
