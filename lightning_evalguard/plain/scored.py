"""Scores that no function of torch computes: does the source compare a model's outputs with others?

``((net(x) - y) ** 2).mean()``, ``(guess == y).mean()`` in numpy, a loop that counts, a function
that is called ``accuracy``: what is computed there is heard by no tap. So the source is read: from
the call of the model its outputs are followed through names, within the function and up to those
that it returns to, until they meet something that is not theirs.
"""

from __future__ import annotations

import ast
import functools
import linecache
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, permutations, starmap
from types import CodeType
from typing import TypeGuard

CodePlace = tuple[CodeType, int]
"""Code and the index of its running instruction."""

_SCORE = re.compile(
    r"(?<![a-z])(?:acc|accuracy|accuracies|score|scores|mse|mae|rmse|error|errors|err|loss|losses"
    r"|metric|metrics|r2|f1|auc|iou|dice|psnr|ssim|corr|correct|corrects|correlation|recall"
    r"|precision|confusion|criterion|crit|nll|bleu|mape|mrr|ndcg|perplexity|evaluate|measure|match"
    r"|matches|hits)(?![a-z])"
)
_REDUCES = {
    "mean", "sum", "norm", "average", "median", "nanmean", "item", "trace", "std", "var", "max",
    "allclose", "square", "abs", "fabs", "pow", "sqrt",
}  # fmt: skip
_FILLS = {"append", "extend", "add", "insert", "update", "put", "appendleft"}
_ABOUT = {
    "shape",
    "dtype",
    "device",
    "ndim",
    "requires_grad",
    "grad_fn",
    "size",
    "dim",
    "numel",
}
_LOOKS = {"len", "type", "print", "isinstance", "repr", "str", "format", "id", "hash"}
_Scope = ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
_Blocks = tuple[tuple[ast.AST, str], ...]
_LOOPS = (ast.For, ast.AsyncFor, ast.While)
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)


def scores(path: Sequence[CodePlace], models: Iterable[CodePlace] = ()) -> bool:
    """Whether what a model's call returns is scored, as far as the source shows.

    Args:
        path: Of the call: the user's running code, innermost first.
        models: Where other models are called: what those return is no target.
    """
    marks = {place: _node_at(*place) for place in models}
    for place in path:
        source = _node_at(*place)
        scope = _scope_of(place[0])
        if source is None or scope is None:
            return False
        others = [
            node for (code, _), node in marks.items() if node and code is place[0]
        ]
        flow = _Flow(scope, source, [node for node in others if node is not source])
        if flow.scores():
            return True
        if not flow.returns():
            return False
    return False


class _Flow:
    """Where the outputs of one call go within a function.

    Args:
        scope: The function, or the file.
        source: The call.
        models: Calls of other models.
    """

    def __init__(
        self, scope: _Scope, source: ast.AST, models: Sequence[ast.AST]
    ) -> None:
        self._scope = scope
        statements = list(_statements(scope))
        self._outputs = _followed(_Names([source]), statements)
        elsewhere = _given_anew(scope, source, self._outputs)
        if elsewhere:
            self._outputs = _followed(_Names([source], elsewhere), statements)
        self._of_others = _followed(_Names(models), statements)
        self._differences = _Names([])
        self._expressions = list(chain.from_iterable(map(_expressions, statements)))
        for node in self._nodes():
            if isinstance(node, ast.BinOp) and self._is_difference(node):
                self._differences.sources.append(node)
        _followed(self._differences, statements)

    def scores(self) -> bool:
        """Whether they are compared with something that is not theirs."""
        return any(map(self._is_score, self._nodes()))

    def returns(self) -> bool:
        """Whether the function returns them."""
        if isinstance(self._scope, ast.Module):
            return False
        if isinstance(self._scope, ast.Lambda):
            return True
        statements = (s for s in _statements(self._scope) if isinstance(s, ast.Return))
        values = [statement.value for statement in statements]
        for expression in self._expressions:
            values += [n.value for n in _walk(expression) if isinstance(n, ast.Yield)]
        return any(
            value is not None and self._outputs.are_in(value) for value in values
        )

    def _nodes(self) -> Iterator[ast.AST]:
        return chain.from_iterable(map(_walk, self._expressions))

    def _is_score(self, node: ast.AST) -> bool:
        if isinstance(node, ast.Compare):
            equal = len(node.ops) == 1 and isinstance(node.ops[0], (ast.Eq, ast.NotEq))
            return equal and self._meet(node.left, node.comparators[0])
        if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.BitAnd, ast.Mult)):
            return self._counts(node) and self._meet(node.left, node.right)
        if isinstance(node, ast.Subscript):
            picked = self._outputs.are_in(node.value) and _is_row_and_label(node.slice)
            return picked or self._indexes(node)
        if isinstance(node, ast.Call):
            return self._asks(node)
        return False

    def _asks(self, call: ast.Call) -> bool:
        """A function of a score is asked, or differences are reduced to a number."""
        name = _name(call.func)
        given = [*call.args, *(k.value for k in call.keywords)]
        on = given
        if isinstance(call.func, ast.Attribute):
            on = [call.func.value, *given]
        if name in _REDUCES and any(self._differences.are_in(x) for x in on):
            return not self._normalises(call)
        both = given
        if name in ("eq", "ne", "sub", "equal", "isclose"):
            both = on
        if name in ("eq", "ne", "equal") or _SCORE.search(name.lower()):
            return any(starmap(self._meet, permutations(both, 2)))
        return False

    def _normalises(self, call: ast.Call) -> bool:
        """Whether the number is only what the same values are centred or scaled by."""
        for node in self._nodes():
            if not isinstance(node, ast.BinOp):
                continue
            for one, other in ((node.left, node.right), (node.right, node.left)):
                is_apart = self._differences.are_in(one) and not _contains(one, call)
                if is_apart and _contains(other, call):
                    return True
        return False

    def _is_difference(self, node: ast.BinOp) -> bool:
        return isinstance(node.op, ast.Sub) and self._meet(node.left, node.right)

    def _counts(self, node: ast.BinOp) -> bool:
        """``guess & (y == 1)``: truth values, and no product of numbers."""
        if isinstance(node.op, ast.BitAnd):
            return True
        return any(isinstance(n, ast.Compare) for n in _walk(node))

    def _indexes(self, node: ast.Subscript) -> bool:
        """``matrix[t, p] += 1``: a table of outputs and something else."""
        index = node.slice
        if not isinstance(index, ast.Tuple) or len(index.elts) != 2:
            return False
        return isinstance(node.ctx, ast.Store) and self._meet(*index.elts)

    def _meet(self, one: ast.expr, other: ast.expr) -> bool:
        """Whether one side holds outputs, and the other is a value that does not."""
        for mine, theirs in ((one, other), (other, one)):
            if self._outputs.are_in(mine) and not self._outputs.are_in(theirs):
                return _is_value(theirs) and not self._of_others.are_in(theirs)
        return False


class _Names:
    """Expressions that hold some values: some nodes, and the names that they are given to.

    Args:
        sources: The nodes.
        elsewhere: Uses of such names that stand for something else.
    """

    def __init__(
        self, sources: Iterable[ast.AST], elsewhere: Iterable[ast.Name] = ()
    ) -> None:
        self.sources = list(sources)
        self._elsewhere = set(elsewhere)
        self._names: set[str] = set()

    def are_in(self, node: ast.AST) -> bool:
        """Whether an expression holds some of them, and not only their shape."""
        if any(node is source for source in self.sources):
            return True
        if isinstance(node, ast.Attribute):
            dotted = _dotted(node)
            if dotted in self._names:
                return True
            return node.attr not in _ABOUT and self.are_in(node.value)
        if isinstance(node, ast.Name):
            return node.id in self._names and node not in self._elsewhere
        if isinstance(node, ast.Call) and _name(node.func) in _LOOKS:
            return False
        if isinstance(node, _SCOPES):
            return any(inner in self.sources for inner in ast.walk(node))
        return any(self.are_in(child) for child in ast.iter_child_nodes(node))

    def follow(self, statement: ast.stmt) -> None:
        """A statement may give them to further names."""
        if isinstance(statement, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
            targets = (
                statement.targets
                if isinstance(statement, ast.Assign)
                else [statement.target]
            )
            if statement.value is not None:
                for target in targets:
                    self._give(target, statement.value)
        elif isinstance(statement, (ast.For, ast.AsyncFor)):
            self._give_each(statement.target, statement.iter)
        for expression in _expressions(statement):
            for node in _walk(expression):
                if isinstance(node, ast.comprehension):
                    self._give_each(node.target, node.iter)
                elif isinstance(node, ast.NamedExpr):
                    self._give(node.target, node.value)
                elif isinstance(node, ast.Call) and isinstance(
                    node.func, ast.Attribute
                ):
                    fills = node.func.attr in _FILLS and any(
                        self.are_in(a) for a in node.args
                    )
                    if fills:
                        self._take(node.func.value)

    def _give(self, target: ast.expr, value: ast.expr) -> None:
        pairs = isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
        if pairs and len(target.elts) == len(value.elts):  # type: ignore[attr-defined]
            for one, other in zip(target.elts, value.elts, strict=True):  # type: ignore[attr-defined]
                self._give(one, other)
        elif self.are_in(value):
            self._take(target)

    def _give_each(self, target: ast.expr, iterated: ast.expr) -> None:
        name = ""
        if isinstance(iterated, ast.Call):
            name = _name(iterated.func)
        if name in ("zip", "enumerate") and isinstance(target, ast.Tuple):
            given: list[ast.expr] = list(iterated.args)  # type: ignore[attr-defined]
            if name == "enumerate" and given:
                self._give_each(target.elts[-1], given[0])
                return
            for one, other in zip(target.elts, given, strict=False):
                self._give_each(one, other)
        elif self.are_in(iterated):
            self._take(target)

    def _take(self, target: ast.AST) -> None:
        if isinstance(target, (ast.Tuple, ast.List)):
            for one in target.elts:
                self._take(one)
        elif isinstance(target, (ast.Subscript, ast.Starred)):
            self._take(target.value)
        elif isinstance(target, ast.Name):
            self._names.add(target.id)
        elif isinstance(target, ast.Attribute):
            self._names.add(_dotted(target))


def _followed(names: _Names, statements: Sequence[ast.stmt]) -> _Names:
    for _ in range(2):  # in a loop, what stands below comes above
        for statement in statements:
            names.follow(statement)
    return names


def _given_anew(scope: _Scope, source: ast.AST, outputs: _Names) -> list[ast.Name]:
    """Uses of a name that a call's outputs are given to, between another value and the call.

    In ``fake = net(noise); score(fake); fake = net(fixed)`` the score is not that of the second
    call, in a loop neither.
    """
    blocks = dict(_blocks(scope))
    own = next((s for s in blocks if _states(s, source)), None)
    if not isinstance(own, ast.Assign):
        return []
    uses: list[ast.Name] = []
    for name in {t.id for t in own.targets if isinstance(t, ast.Name)}:
        before = [s for s in blocks if _gives(s, name) and s.lineno < own.lineno]
        others = bool(before) and not any(outputs.are_in(s.value) for s in before)
        if others and _is_passed(blocks[before[-1]], blocks[own]):
            ends = before[-1].end_lineno or own.lineno
            named = [n for n in ast.walk(scope) if isinstance(n, ast.Name)]
            uses += [n for n in named if n.id == name and ends < n.lineno < own.lineno]
    return uses


def _states(statement: ast.stmt, source: ast.AST) -> bool:
    return any(_contains(one, source) for one in _expressions(statement))


def _is_passed(blocks: _Blocks, later: _Blocks) -> bool:
    """Whether who comes to a statement again comes by one above it, by the blocks of both."""
    inner = later[len(blocks) :]
    around = later[: len(blocks)]
    return around == blocks and not any(isinstance(b, _LOOPS) for b, _ in inner)


def _gives(statement: ast.stmt, name: str) -> TypeGuard[ast.Assign]:
    return isinstance(statement, ast.Assign) and any(
        isinstance(target, ast.Name) and target.id == name
        for target in statement.targets
    )


def _blocks(scope: ast.AST, around: _Blocks = ()) -> Iterator[tuple[ast.stmt, _Blocks]]:
    """Each statement, and the blocks that it stands in, the outermost first."""
    for field, value in ast.iter_fields(scope):
        for child in value if isinstance(value, list) else ():
            if isinstance(child, ast.stmt) and not isinstance(child, _SCOPES):
                inside = (*around, (scope, field))
                yield child, inside
                yield from _blocks(child, inside)
            elif isinstance(child, (ast.ExceptHandler, ast.match_case)):
                yield from _blocks(child, (*around, (scope, field)))


def _is_value(node: ast.expr) -> bool:
    """Whether an expression can be targets: no number, no shape, nothing that is only looked at."""
    if isinstance(node, ast.Constant):
        return False
    if isinstance(node, ast.UnaryOp):
        return _is_value(node.operand)
    if isinstance(node, ast.Attribute):
        return node.attr not in _ABOUT
    if isinstance(node, ast.Call):
        name = _name(node.func)
        return name not in _LOOKS and name not in _ABOUT
    if isinstance(node, ast.Subscript):
        return _is_value(node.value)
    if isinstance(node, ast.BinOp):
        return _is_value(node.left) or _is_value(node.right)
    return True


def _is_row_and_label(index: ast.expr) -> bool:
    """``scores[rows, labels]``: of each sample the score of its label."""
    if not isinstance(index, ast.Tuple) or len(index.elts) != 2:
        return False
    rows, labels = index.elts
    counted = isinstance(rows, ast.Name) or (
        isinstance(rows, ast.Call) and _name(rows.func) in ("arange", "range")
    )
    return counted and isinstance(labels, (ast.Name, ast.Attribute, ast.Subscript))


def _contains(node: ast.AST, part: ast.AST) -> bool:
    return any(one is part for one in ast.walk(node))


def _name(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    if not isinstance(function, ast.Name):
        return ""
    return function.id


def _dotted(node: ast.Attribute) -> str:
    value = node.value
    around = _dotted(value) if isinstance(value, ast.Attribute) else _name(value)
    return f"{around}.{node.attr}"


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes of an expression, without those of functions that are defined in it."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, _SCOPES):
            yield from _walk(child)


def _statements(scope: ast.AST) -> Iterator[ast.stmt]:
    """All statements of a function or file, in their order, without those of functions in it."""
    if isinstance(scope, ast.Lambda):
        yield ast.copy_location(ast.Return(scope.body), scope)
        return
    for child in ast.iter_child_nodes(scope):
        if isinstance(child, ast.stmt):
            if not isinstance(child, _SCOPES):
                yield child
                yield from _statements(child)
        elif isinstance(child, (ast.ExceptHandler, ast.match_case)):
            yield from _statements(child)


def _expressions(statement: ast.stmt) -> Iterator[ast.expr]:
    """The expressions of one statement, without its body."""
    for child in ast.iter_child_nodes(statement):
        if isinstance(child, ast.expr):
            yield child
        elif isinstance(child, ast.withitem):
            yield child.context_expr


# where in the source


@functools.lru_cache(maxsize=256)
def _tree(path: str) -> ast.Module | None:
    try:
        return ast.parse("".join(linecache.getlines(path)))
    except (SyntaxError, ValueError, RecursionError):
        return None


@functools.lru_cache(maxsize=1024)
def _scope_of(code: CodeType) -> _Scope | None:
    """The function that a code object is of; of a comprehension, the one around it."""
    tree = _tree(code.co_filename)
    if tree is None or code.co_name == "<module>":
        return tree
    scope: _Scope = tree
    first = code.co_firstlineno
    for node in ast.walk(tree):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        decorators = [] if isinstance(node, ast.Lambda) else node.decorator_list
        begins = min([node.lineno, *(d.lineno for d in decorators)])
        if begins <= first <= (node.end_lineno or first):
            scope = node  # the walk goes outside in
    return scope


@functools.lru_cache(maxsize=4096)
def _node_at(code: CodeType, lasti: int) -> ast.expr | None:
    """The call that runs there."""
    tree = _tree(code.co_filename)
    if tree is None:
        return None
    where = _position(code, lasti)
    if where is None:
        return None
    best: ast.expr | None = None
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Call, ast.GeneratorExp, ast.ListComp)):
            continue
        at = (node.lineno, node.end_lineno, node.col_offset, node.end_col_offset)
        if at == where:
            return node
        if best is None and where[2] is None and at[0] <= where[0] <= (at[1] or at[0]):
            best = node
    return best


def _position(
    code: CodeType, lasti: int
) -> tuple[int, int | None, int | None, int | None] | None:
    if sys.version_info >= (3, 11):
        positions = list(code.co_positions())
        index = lasti // 2
        if 0 <= index < len(positions) and positions[index][0] is not None:
            return positions[index]  # type: ignore[return-value]
        return None
    lines = [line for start, end, line in code.co_lines() if start <= lasti < end]
    if lines and lines[0]:
        return (lines[0], None, None, None)
    return None


__all__ = ["CodePlace", "scores"]
