"""Modules that a model holds without registering them: `.eval()` and `state_dict()` miss them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from types import FrameType
from typing import Any

from torch import Tensor, nn

from lightning_evalguard.instruments.dispatch import ModuleNames, Op
from lightning_evalguard.instruments.rollback import held_parts
from lightning_evalguard.instruments.source import owner_of
from lightning_evalguard.instruments.variables import variables

_OWN = frozenset({"_modules", "_parameters", "_buffers", "_trainer", "_fabric"})
_DEEP = 6

BEFORE_TRACING = "Call `.eval()` on the model before `torch.jit.trace`."
LEAVE_IN_EVAL = "Leave it in eval mode during an evaluation."
_ASSIGN = "Assign it to an attribute of the model."


def where_hidden(
    running: Sequence[nn.Module], root: nn.Module, names: ModuleNames, op: Op
) -> tuple[str, str]:
    """How to write the place of an unregistered module, and how to have it registered.

    Args:
        running: The modules that run, innermost first; the first is not registered.
        root: The model.
        names: Of the root's modules.
        op: The operator that runs.

    Returns:
        The place, as in ``encoder.drops[0]`` or ``<global DROP>``, and one imperative.
    """
    known = next((i for i, m in enumerate(running) if m in names), len(running))
    innermost = running[0]
    hidden = running[known - 1]
    below = next(
        (f".{n}" for n, m in hidden.named_modules() if m is innermost and n), ""
    )
    found = find_unregistered(hidden, root)
    if found is not None:
        owner, path = found
        return (f"{owner}.{path}" if owner else path) + below, how_to_hold(path)
    for frame in op.stack():
        if owner_of(frame.f_code.co_filename) in ("torch", "stdlib"):
            continue
        for scope in (frame.f_globals, _free(frame)):
            for name, value in scope.items():
                held = value is hidden or any(
                    part is hidden for _, part in _shallow(value)
                )
                if held:
                    where = "closure"
                    if scope is frame.f_globals:
                        where = "global"
                    return (
                        f"<{where} {name}>{below}",
                        _ASSIGN,
                    )
    made_in = "forward"
    if op.site is not None:
        made_in = op.site.function
    return f"<created in {made_in}>{below}", "Create it in `__init__`."


# what holds them is no attribute that can be exchanged for a container of modules
_NO_CONTAINER = ("<closure", ".keywords", ".args", ".func", "_hparams")


def how_to_hold(path: str) -> str:
    """One imperative that has the module at `path` registered.

    Example:
        >>> how_to_hold("encoder.norms[0]"), how_to_hold("_hparams['drop']")
        ('Make `self.norms` an nn.ModuleList.', 'Assign it to an attribute of the model.')
    """
    if any(holder in path for holder in _NO_CONTAINER):
        return _ASSIGN
    name = re.match(r"[\w.]+", path)
    attribute = "it"
    if name:
        attribute = f"self.{name.group().rpartition('.')[2]}"
    last = re.search(r"\[[^\]]*\]$", path)
    if last is None:
        return _ASSIGN
    if last.group()[1:-1].isdigit():
        return f"Make `{attribute}` an nn.ModuleList."
    return f"Make `{attribute}` an nn.ModuleDict."


def _shallow(value: object) -> Iterable[tuple[str, object]]:
    if not isinstance(value, (list, tuple, dict)):
        return ()
    return held_parts(value)


def _free(frame: FrameType) -> dict[str, Any]:
    held = variables(frame)
    return {name: held[name] for name in frame.f_code.co_freevars if name in held}


def find_unregistered(target: nn.Module, root: nn.Module) -> tuple[str, str] | None:
    """Where among the attributes of `root`'s modules `target` hides from ``named_modules()``.

    Returns:
        Qualified name of the registered module and the path below it: ``("encoder", "drops[0]")``.
    """
    seen: set[int] = set()
    for owner, module in root.named_modules():
        stack = []
        for name, value in list(vars(module).items()):
            if name not in _OWN and not name.endswith("_hooks"):
                stack.append((name, value, 0))
        stack.reverse()
        while stack:
            path, thing, depth = stack.pop()
            if thing is target:
                return owner, path
            if depth > _DEEP or id(thing) in seen or isinstance(thing, Tensor):
                continue
            seen.add(id(thing))
            if isinstance(thing, nn.Module):
                continue
            below = [(path + step, part, depth + 1) for step, part in held_parts(thing)]
            stack += reversed(below)
    return None
