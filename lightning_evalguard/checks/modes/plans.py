"""Which modes are meant: declared by `expect_modes`, or set by the user's own code on a part."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from types import CodeType
from typing import Any

from torch import nn

from lightning_evalguard.checks.modes.callers import calls
from lightning_evalguard.instruments.source import owner_of
from lightning_evalguard.model.tree import Modes, parent
from lightning_evalguard.report import Finding

# A finding, with the flags that set it right; without any it is to be left alone.
Repair = tuple[Finding, list[tuple[nn.Module, bool]]]
_EARLY = ("setup", "freeze_before_training", "on_fit_start")


def planned(expected: Sequence[tuple[str, bool]], name: str) -> bool | None:
    """The mode that a declared plan expects of the module called `name`."""
    for pattern, mode in reversed(expected):
        if fnmatchcase(name, pattern):
            return mode
    return None


def is_set_by_a_hook(module: nn.Module) -> bool:
    """Whether the user's own code put `module` into eval mode, in a hook of training."""
    call = calls.last(module)
    return call is not None and not call.mode and call.is_plan


def is_kept_by_train(name: str, module: nn.Module, modes: Modes) -> bool:
    """Whether an overridden `train()`, its own or one above it, keeps this module in eval mode."""
    call = calls.last(module)
    if call is not None and not call.mode and call.inside_train:
        return True
    if keeps_eval(_class(module)):
        return True
    modules = dict(zip(modes.names, modes.modules, strict=True))
    up = parent(name)
    while up is not None:
        above = modules.get(up)
        if above is not None and above.training and keeps_eval(_class(above)):
            return True
        up = parent(up)
    return False


def plan_modes(callbacks: Iterable[object]) -> bool:
    """Whether one of the user's callbacks sets modes before the guard can hear of it."""
    kinds: list[Any] = [type(callback) for callback in callbacks]
    return any(map(_plans_modes, kinds))


def names_in(code: CodeType, word: str) -> bool:
    """Whether `code`, or code that it defines, uses a name."""
    return word in code.co_names or any(
        names_in(c, word) for c in code.co_consts if isinstance(c, CodeType)
    )


def _class(module: nn.Module) -> Any:
    # untyped: mypy holds that Module's __hash__ does not suit a cache's key
    return type(module)


@functools.cache
def keeps_eval(cls: type) -> bool:
    """Whether `cls` overrides `train()` with code that sets eval mode on a part of itself."""
    for base in cls.__mro__:
        if base is nn.Module:
            return False
        code = getattr(vars(base).get("train"), "__code__", None)
        if code is not None and not base.__module__.startswith("torch."):
            return (
                names_in(code, "eval")
                or names_in(code, "training")
                or code.co_names.count("train") > 0
            )
    return False


@functools.cache
def _plans_modes(cls: Any) -> bool:
    for base in cls.__mro__:
        for name in _EARLY:
            code = getattr(vars(base).get(name), "__code__", None)
            if code is None or owner_of(code.co_filename) != "user":
                continue
            if names_in(code, "eval") or names_in(code, "train"):
                return True
    return False
