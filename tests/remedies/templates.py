"""The texts of the package that are remedies, read from its source."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import lightning_evalguard

ROOT = Path(lightning_evalguard.__file__).parent
# Where findings are made; what `--help` and SARIF say of a rule is no remedy of a finding.
_FOLDERS = ("checks", "confusion", "data", "huggingface", "model", "plain", "trainer")
_NOT = frozenset({"checks/registry.py"})
_IMPERATIVES = (
    "Add|Apply|Assign|Begin|Call|Catch|Change|Choose|Collect|Compare|Compute|Copy|Count|Create|Declare|"
    "Decide|Delete|Divide|Draw|Evaluate|Fill|Fix|Freeze|Give|Hold|Keep|Leave|Let|Load|Log|Look|"
    "Make|Name|Normalise|Pack|Pass|Print|Put|Read|Register|Remove|Replace|Reset|Return|Run|Save|"
    "Set|Share|Shuffle|Split|Start|Step|Take|Train|Update|Use|Wait|Weigh|Work|Write|The size of"
)
_REMEDY = re.compile(rf"({_IMPERATIVES})\b \S.* ", re.DOTALL)


def templates() -> Iterator[tuple[str, str]]:
    """Each text of the package that is a remedy, ``{}`` where it is filled in, and its place."""
    for path in sorted(ROOT.rglob("*.py")):
        place = path.relative_to(ROOT).as_posix()
        if place.partition("/")[0] not in _FOLDERS or place in _NOT:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for text, line in _texts(tree):
            if _REMEDY.match(text + " "):
                yield text, f"{place}:{line}"


def _texts(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """The strings of a module that are no docstrings."""
    left_out = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            left_out.add(node.value)  # a docstring
        if isinstance(node, ast.JoinedStr):
            left_out |= {part for part in ast.walk(node) if part is not node}
    for node in ast.walk(tree):
        if node in left_out:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value, node.lineno
        elif isinstance(node, ast.JoinedStr):
            yield "".join(_part(part) for part in node.values), node.lineno


def _part(node: ast.expr) -> str:
    return str(node.value) if isinstance(node, ast.Constant) else "{}"


def pattern_of(template: str) -> re.Pattern[str]:
    pieces = (re.escape(piece) for piece in template.split("{}"))
    return re.compile(".*".join(pieces), re.DOTALL)


@functools.cache
def _patterns() -> tuple[re.Pattern[str], ...]:
    return tuple(pattern_of(text) for text, _ in templates())


def is_collected(remedy: str) -> bool:
    """Whether a remedy that was given is one of them."""
    return any(pattern.search(remedy) for pattern in _patterns())
