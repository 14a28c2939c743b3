"""What a loop over batches computes of each batch alone, by its source.

``acc = (net(x).argmax(1) == y).float().mean()`` is of its batch; ``right += ...``, ``right / seen``
and ``meter.avg`` are of all batches so far. Followed are the names that the loop gives a value,
from the batch on; what cannot be followed counts as not of its batch.
"""

from __future__ import annotations

import ast
import dis
import functools
import inspect
import linecache
from collections.abc import Iterable, Iterator, Mapping
from types import BuiltinFunctionType, CodeType, FrameType
from typing import Any

from torch import nn

from lightning_evalguard.instruments.source import owner_of
from lightning_evalguard.instruments.variables import variables

# methods that hand out, or take in, more than the batch
_KEEPS = frozenset(
    {
        "update",
        "add",
        "push",
        "put",
        "append",
        "extend",
        "step",
        "log",
        "compute",
        "result",
    }
    | {"value", "avg", "average"}
)
_PURE = ("torch", "numpy", "builtins")
_PUTS = ("append", "appendleft")
_LOOPS = (ast.For, ast.AsyncFor)


# what a function does that may keep something from one call to the next
_WRITES = frozenset({"STORE_ATTR", "STORE_GLOBAL", "STORE_SUBSCR", "STORE_DEREF"})


def names_of_batch(frame: FrameType) -> frozenset[str]:
    """The names, and the lists, that hold what is of one batch.

    Args:
        frame: Of the function in which the loop stands, as it fetches its next batch.

    Returns:
        Names as they stand in the source, ``self.losses`` also as ``losses``; none where the source
        is not at hand or no ``for`` stands there.
    """
    loop = _loop_at(frame.f_code.co_filename, frame.f_lineno)
    if loop is None:
        return frozenset()
    scope = {**frame.f_builtins, **frame.f_globals, **variables(frame)}
    return frozenset(_Followed(loop, scope).names())


def is_after_loop(frame: FrameType, line: int) -> bool:
    """Whether a function's running line stands behind the loop that fetches at `line`."""
    loop = _loop_at(frame.f_code.co_filename, line)
    return loop is not None and frame.f_lineno > (loop.end_lineno or loop.lineno)


@functools.lru_cache(maxsize=256)
def _loop_at(path: str, line: int) -> ast.For | ast.AsyncFor | None:
    try:
        tree = ast.parse("".join(linecache.getlines(path)))
    except (SyntaxError, ValueError):
        return None
    found = None
    for node in ast.walk(tree):
        if isinstance(node, _LOOPS) and node.lineno <= line < node.body[0].lineno:
            found = node  # the innermost comes last
    return found


class _Followed:
    """One loop.

    Args:
        loop: Its source.
        scope: What the names around it stand for.
    """

    def __init__(self, loop: ast.For | ast.AsyncFor, scope: Mapping[str, Any]) -> None:
        self._scope = scope
        self._body = [node for one in loop.body for node in ast.walk(one)]
        self._given = list(_assignments(self._body))
        self._moved = {_path(node) for node in self._moves()} - {""}
        self._own = set(_names(loop.target))
        own = {target for target, _ in self._given}
        self._moved |= own & set(self._carried(own))

    def names(self) -> Iterator[str]:
        """What is of one batch."""
        self._follow()
        lists = dict(_appended(self._body))
        yield from self._own
        for path, value in lists.items():
            if self._is_of_batch(value):
                yield path
                yield path.removeprefix("self.")

    def _follow(self) -> None:
        """Add what is made of the batch, until nothing more is."""
        before = -1
        while before != len(self._own):
            before = len(self._own)
            for target in {target for target, _ in self._given}:
                values = [value for name, value in self._given if name == target]
                if target not in self._moved and all(map(self._is_of_batch, values)):
                    self._own.add(target)

    def _moves(self) -> Iterator[ast.AST]:
        """What the loop changes in place."""
        for node in self._body:
            if isinstance(node, ast.AugAssign):
                yield node.target
            elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                if isinstance(node.value.func, ast.Attribute):
                    yield node.value.func.value
            elif isinstance(node, ast.Assign):
                yield from (t for t in node.targets if not isinstance(t, ast.Name))

    def _carried(self, own: set[str]) -> Iterator[str]:
        """Names that are read before this round of the loop gave them a value."""
        first: dict[str, tuple[int, int]] = {}
        for node in self._body:
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                at = node.lineno, node.col_offset
                first[node.id] = min(first.get(node.id, at), at)
        for node in self._body:
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                # the right side is read before the left is written
                at = node.lineno, -1
                if node.id in own and at <= first.get(node.id, at):
                    yield node.id

    def _is_of_batch(self, value: ast.AST) -> bool:
        nodes = list(ast.walk(value))
        if not self._own.isdisjoint(_names(value)):
            calls = [node for node in nodes if isinstance(node, ast.Call)]
            paths = {_path(node) for node in nodes}
            return not (paths & self._moved) and all(map(self._forgets, calls))
        return False

    def _forgets(self, call: ast.Call) -> bool:
        """Whether a call gives what it gives for its arguments alone."""
        function = call.func
        if isinstance(function, ast.Attribute) and function.attr in _KEEPS:
            return False
        path = _path(function)
        if not path or path.partition(".")[0] in self._own:
            return True  # a tensor's own method
        return _is_stateless(self._at(path))

    def _at(self, path: str) -> Any:
        """What stands under a dotted name; None where that is not plain to see."""
        name, *rest = path.split(".")
        thing = self._scope.get(name)
        for name in rest:
            held = (
                getattr(thing, "_modules", {}) if isinstance(thing, nn.Module) else {}
            )
            thing = held.get(name) or inspect.getattr_static(thing, name, None)
        return thing


def _names(node: ast.AST) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            yield part.id


def _assignments(body: Iterable[ast.AST]) -> Iterator[tuple[str, ast.expr]]:
    """Each name that is given a value, with that."""
    for node in body:
        targets: list[ast.expr] = []
        value: ast.expr | None = None
        if isinstance(node, (ast.AnnAssign, ast.NamedExpr)):
            targets, value = [node.target], node.value
        elif isinstance(node, ast.Assign):
            targets, value = node.targets, node.value
        if value is None:
            continue
        for target in targets:
            for part in ast.walk(target):
                if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                    yield part.id, value


def _appended(body: Iterable[ast.AST]) -> Iterator[tuple[str, ast.expr]]:
    """Each list that something is put into, with that."""
    for node in body:
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if node.func.attr in _PUTS and len(node.args) == 1:
            yield _path(node.func.value), node.args[0]


def _is_stateless(function: Any) -> bool:
    """Whether something that is called keeps nothing that its next result hangs on."""
    if isinstance(function, staticmethod):
        function = function.__func__
    if isinstance(function, (nn.Module, type, BuiltinFunctionType)):
        return not isinstance(function, type) or function in (float, int, bool)
    code = getattr(function, "__code__", None)
    if not isinstance(code, CodeType):
        # torch's own entries, numpy's functions
        return type(function).__module__.partition(".")[0] in _PURE
    if owner_of(code.co_filename) != "user":
        return True
    writes = any(at.opname in _WRITES for at in dis.get_instructions(code))
    return not (writes or code.co_freevars or _KEEPS.intersection(code.co_names))


def _path(node: ast.AST) -> str:
    """A name with its attributes: ``self.meter``; empty where it is something else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        inner = _path(node.value)
        return f"{inner}.{node.attr}" if inner else ""
    if isinstance(node, ast.Subscript):
        return _path(node.value)
    return ""
