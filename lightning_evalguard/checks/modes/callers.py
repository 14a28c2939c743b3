"""Who put a module into train or eval mode: the user's line, and the hook that it ran in."""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

from torch import nn

from lightning_evalguard.allow import allowed
from lightning_evalguard.instruments.source import (
    PLUMBING,
    Site,
    nearest,
    owner_of,
    site_at,
)
from lightning_evalguard.instruments.variables import variable

LOOPS = frozenset({"lightning", "pytorch_lightning", "lightning_fabric"})
# built on that of transformers
_TRAINERS = frozenset({"trl", "sentence_transformers", "setfit"})
# Lightning's own methods that a user calls to set modes: the line is that of the caller.
_FREEZES = frozenset({"freeze", "unfreeze"})
_EVALUATES = ("on_validation_", "on_test_", "on_predict_", "on_sanity_check_")
_PLANS = ("on_", "setup", "configure_", "optimizer_step", "freeze_before_training")


@dataclass(eq=False)
class ModeCall:
    """One outermost call of `train(mode)`, shared by all modules that it reached.

    Attributes:
        mode: The mode that was asked for.
        number: Calls are numbered as they come.
        receiver: ``id()`` of the module on which it was called.
        allowed: Whether it stood inside ``allow("modes")``.
        inside_train: Whether an overridden `train()` of the user's made it.
        hook: The hook of training that it ran in; None in a step, an evaluation, or outside a loop.
    """

    mode: bool
    number: int
    receiver: int
    allowed: bool
    inside_train: bool
    hook: str | None
    code: CodeType | None
    lasti: int
    lineno: int

    @property
    def site(self) -> Site | None:
        """The user's line; None where Lightning called."""
        if self.code is None:
            return None
        return site_at(self.code, self.lasti, self.lineno)

    @property
    def is_plan(self) -> bool:
        """Whether the user's own code in a hook of training, or in a `train()`, asked for it."""
        if self.code is None or owner_of(self.code.co_filename) != "user":
            return False
        return self.inside_train or self.hook is not None


class _Calls:
    """Records who called `train()` or `eval()`, while at least one run is open.

    ``nn.Module.train`` is wrapped once for the process. The original does all the work.

    Attributes:
        number: Of the last call.
        heard: Told of each outermost call once it has returned.
    """

    def __init__(self) -> None:
        self.number = 0
        self.heard: list[Callable[[nn.Module, ModeCall], None]] = []
        self._listeners: list[list[tuple[nn.Module, ModeCall]]] = []
        self._last: dict[int, ModeCall] = {}
        self._last_eval: dict[int, ModeCall] = {}
        self._original: Callable[..., Any] | None = None
        self._local = threading.local()

    def start(self, woken: list[tuple[nn.Module, ModeCall]]) -> None:
        """From now on put into `woken` what is woken, with the call that did it."""
        self._listeners.append(woken)
        if self._original is not None:
            return
        original = self._original = nn.Module.train
        code = original.__code__
        local = self._local
        last = self._last
        last_eval = self._last_eval
        listeners = self._listeners

        @functools.wraps(original)
        def train(module: nn.Module, mode: bool = True) -> nn.Module:
            outer: ModeCall | None = getattr(local, "call", None)
            frame = _outside(sys._getframe(1), module, code)
            if outer is None or frame is None or frame.f_code is not code:
                self.number += 1
                local.call = call = _call_at(frame, mode, self.number, id(module))
            else:
                call = outer  # the original walks down to this module
            before = module.__dict__.get("training")
            try:
                result = original(module, mode)
            finally:
                local.call = outer
                last[id(module)] = call
                if not mode:
                    last_eval[id(module)] = call
                elif before is False:
                    for heard in listeners:
                        heard.append((module, call))
            if call is not outer:
                for hear in tuple(self.heard):
                    hear(module, call)
            return result

        nn.Module.train = train  # type: ignore[method-assign, assignment]

    def stop(self, woken: list[tuple[nn.Module, ModeCall]]) -> None:
        """Hand nothing more to `woken`; the last one to stop puts ``nn.Module.train`` back."""
        self._listeners[:] = [heard for heard in self._listeners if heard is not woken]
        if not self._listeners and self._original is not None:
            nn.Module.train = self._original  # type: ignore[method-assign]
            self._original = None
            self._last.clear()
            self._last_eval.clear()

    def last(self, module: nn.Module) -> ModeCall | None:
        """The last call that reached `module`."""
        return self._last.get(id(module))

    def slept(self, module: nn.Module, since: int) -> bool:
        """Whether its last call wakes `module`, after one since number `since` that did not."""
        last = self._last.get(id(module))
        before = self._last_eval.get(id(module))
        return (
            last is not None
            and last.mode
            and last.code is not None
            and before is not None
            and before.code is not None
            and since < before.number < last.number
        )


calls = _Calls()


def _outside(
    frame: FrameType | None, module: nn.Module, code: CodeType
) -> FrameType | None:
    """The first frame outside `eval()` and overrides of `train()` of this very module."""
    while (
        frame is not None
        and frame.f_code is not code
        and frame.f_code.co_name in ("train", "eval")
        and variable(frame, "self") is module
    ):
        frame = frame.f_back
    return frame


def _call_at(
    frame: FrameType | None, mode: bool, number: int, receiver: int
) -> ModeCall:
    meant = allowed("modes")
    at = nearest(frame, PLUMBING)
    while at is not None and at.f_code.co_name in _FREEZES and _is_loops(at):
        at = nearest(at.f_back, PLUMBING)
    if at is None:
        return ModeCall(bool(mode), number, receiver, meant, False, None, None, 0, 0)
    # a user's own train() that sets the mode of one of its parts
    by_train = at.f_code.co_name == "train"
    if _is_loops(at):
        return ModeCall(bool(mode), number, receiver, meant, by_train, None, None, 0, 0)
    return ModeCall(
        bool(mode),
        number,
        receiver,
        meant,
        by_train,
        _hook_around(at),
        at.f_code,
        at.f_lasti,
        at.f_lineno,
    )


def _is_loops(frame: FrameType) -> bool:
    return _runs_a_loop(frame.f_code.co_filename)


@functools.lru_cache(maxsize=4096)
def _runs_a_loop(file: str) -> bool:
    """Whether it is a loop's own: of transformers, whose models set modes too, the trainers'."""
    owner = owner_of(file)
    if owner == "transformers":
        return os.path.basename(file).startswith("trainer")
    return owner in LOOPS or (owner in _TRAINERS and f"{os.sep}trainer" in file)


def _hook_around(frame: FrameType | None) -> str | None:
    """The hook of training in which `frame` runs, called by the loop."""
    while frame is not None:
        above = frame.f_back
        name = frame.f_code.co_name
        if name.endswith("_step") and name != "optimizer_step":
            return None
        if name.startswith(_PLANS) and above is not None and _is_loops(above):
            if name.startswith(_EVALUATES):
                return None
            return name
        frame = above
    return None


@dataclass(frozen=True)
class Override:
    """A user's method that leaves a module in its mode."""

    name: str
    method: str
    site: Site


def who(module: nn.Module, mode: bool) -> tuple[Site | None, str | Override | None]:
    """Who put `module` into `mode`, or what stopped it from leaving it."""
    call = calls.last(module)
    if call is not None and call.mode == mode and call.code is not None:
        site = call.site
        return site, site.expression if site is not None else None
    if mode:
        for method in ("eval", "train"):
            override = override_of(type(module), method)
            if override is not None:
                return None, override
    return None, None


def override_of(cls: type, method: str) -> Override | None:
    """The user's override of `method` in `cls`, if there is one."""
    for base in cls.__mro__:
        member = vars(base).get(method)
        if member is None:
            continue
        code = getattr(member, "__code__", None)
        if code is None or owner_of(code.co_filename) in (*LOOPS, "torch", "self"):
            return None
        where = f"{code.co_filename}:{code.co_firstlineno}"
        site = Site(where, f"def {method}(...)", method, owner_of(code.co_filename))
        return Override(f"{base.__name__}.{method}", method, site)
    return None
