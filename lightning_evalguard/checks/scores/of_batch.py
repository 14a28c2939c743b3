"""What a loop over batches computes of each batch alone, by its source.

``acc = (net(x).argmax(1) == y).float().mean()`` is of its batch; ``right += ...``, ``right / seen``
and ``meter.avg`` are of all batches so far. Followed are the names that the loop gives a value,
from the batch on; what cannot be followed counts as not of its batch.
"""

from __future__ import annotations

import ast
import functools
import linecache
from collections.abc import Iterable, Iterator
from types import CodeType

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
_PUTS = ("append", "appendleft")
_LOOPS = (ast.For, ast.AsyncFor)


@functools.lru_cache(maxsize=256)
def names_of_batch(code: CodeType, line: int) -> frozenset[str]:
    """The names, and the lists, that hold what is of one batch.

    Args:
        code: Of the function in which the loop stands.
        line: Where the loop fetches its next batch.

    Returns:
        Names as they stand in the source, ``self.losses`` also as ``losses``; none where the source
        is not at hand or no ``for`` stands there.
    """
    loop = _loop_at(code.co_filename, line)
    if loop is None:
        return frozenset()
    return frozenset(_Followed(loop).names())


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
    """One loop."""

    def __init__(self, loop: ast.For | ast.AsyncFor) -> None:
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
                at = (
                    node.lineno,
                    -1,
                )  # the right side is read before the left is written
                if node.id in own and at <= first.get(node.id, at):
                    yield node.id

    def _is_of_batch(self, value: ast.AST) -> bool:
        nodes = list(ast.walk(value))
        if not self._own.isdisjoint(_names(value)):
            calls = [node for node in nodes if isinstance(node, ast.Call)]
            paths = {_path(node) for node in nodes}
            return not (paths & self._moved) and not any(map(_keeps, calls))
        return False


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


def _keeps(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and call.func.attr in _KEEPS


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
