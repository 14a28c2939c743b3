"""The rules that keep the package one house; each with a test that it can fail."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import lightning_evalguard
from lightning_evalguard.checks.check import Check

PACKAGE = Path(lightning_evalguard.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
ROOT = Path(__file__).parents[1]
_LINES = 500  # of a file
_FUNCTION = 60  # lines of a function


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def long_functions(tree: ast.AST) -> list[str]:
    """The functions that fill more than a screen, their docstring apart."""
    names = []
    for function in functions(tree):
        lines = (function.end_lineno or 0) - function.lineno + 1
        if ast.get_docstring(function):
            first = function.body[0]
            lines -= (first.end_lineno or 0) - first.lineno + 1
        if lines > _FUNCTION:
            names.append(function.name)
    return names


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_is_read_in_one_sitting(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= _LINES
    assert long_functions(ast.parse(text)) == []


def test_the_test_of_length_can_fail() -> None:
    body = "    x = 1\n" * (_FUNCTION + 1)
    assert long_functions(ast.parse(f"def f():\n{body}")) == ["f"]
    documented = f'def f():\n    """{"x" * 20}\n{"    x" * 90}\n    """\n    return 1'
    assert long_functions(ast.parse(documented)) == []


def public_names(tree: ast.Module) -> set[str]:
    """The functions, classes and constants that a file defines for others."""
    names = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign):
            targets = [node.target]
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in names if not name.startswith("_")}


def defined_twice(files: dict[str, ast.Module]) -> dict[str, list[str]]:
    homes: dict[str, list[str]] = defaultdict(list)
    for path, tree in files.items():
        for name in public_names(tree):
            homes[name].append(path)
    return {name: paths for name, paths in homes.items() if len(paths) > 1}


def test_a_name_has_one_home() -> None:
    files = {
        name_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in FILES
    }
    assert defined_twice(files) == {}


def test_the_test_of_names_can_fail() -> None:
    one, other = ast.parse("def f(): ...\n_X = 1"), ast.parse("f: int = 1\n_X = 1")
    assert defined_twice({"one": one, "other": other}) == {"f": ["one", "other"]}


def strings(tree: ast.AST) -> set[str]:
    """The strings that code works with, docstrings apart."""
    texts = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in texts
    }


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_stage_is_spelt_in_one_file(path: Path) -> None:
    spelt = "sanity_check" in strings(ast.parse(path.read_text(encoding="utf-8")))
    assert spelt == (name_of(path) == "stages.py")


def test_the_test_of_stages_can_fail() -> None:
    assert strings(ast.parse('"""sanity_check"""\nif x == "sanity_check": ...')) == {
        "sanity_check"
    }


_ASKS = frozenset({"ask", "hearing"})


def asked(tree: ast.AST) -> set[str]:
    """The events by which the guard asks its checks."""
    return {
        node.args[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in _ASKS
        and node.args
        and isinstance(node.args[0], ast.Constant)
    }


def test_each_event_that_the_guard_asks_is_declared() -> None:
    events = set()
    for path in FILES:
        events |= asked(ast.parse(path.read_text(encoding="utf-8")))
    assert len(events) > 5
    assert {event for event in events if event not in vars(Check)} == set()


def test_the_test_of_events_can_fail() -> None:
    assert asked(ast.parse('self._guard.ask("misspelt", f)')) == {"misspelt"}
    assert "misspelt" not in vars(Check)


def test_no_check_is_asked_what_it_may_not_have() -> None:
    """The protocol gives every question an answer, so that nothing is asked by `getattr`."""
    asks = re.compile(r"(getattr|hasattr)\(check, \"")
    askers = [PACKAGE / name for name in ("guard.py", "audit.py", "evaluation.py")]
    assert [
        name_of(p) for p in askers if asks.search(p.read_text(encoding="utf-8"))
    ] == []
    assert asks.search('hasattr(check, "saw")')


def named_in(text: str) -> tuple[set[str], set[str]]:
    """The files and the methods (`Class.method`) that a page names."""
    spelt = set(re.findall(r"`([^`]+)`", text))
    files = {name for name in spelt if re.fullmatch(r"[a-z_/]+\.py", name)}
    return files, {name for name in spelt if re.fullmatch(r"[A-Z][a-z]\w+\.\w+", name)}


def test_the_architecture_names_what_there_is() -> None:
    files, methods = named_in((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"))
    assert len(files) > 10
    assert len(methods) > 10
    defined = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                defined |= {f"{node.name}.{f.name}" for f in functions(node)}
    assert {m for m in methods if m not in defined} == set()
    assert {
        f for f in files if not (PACKAGE / f).is_file() and not (ROOT / f).is_file()
    } == set()


def test_the_test_of_the_architecture_can_fail() -> None:
    assert named_in("`a/b.py` calls `Some.thing` and `other`") == (
        {"a/b.py"},
        {"Some.thing"},
    )


_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
# By file and function. Most of them run at each batch or operator, where a loop or a function of
# one line more would cost; the list may only get shorter.
_CROWDED = {
    "checks/scores/logged.py": {"_scalars_of"},
    "checks/state/writes.py": {"_enters"},
    "checks/weights/hyper.py": {"other_hyper_parameters"},
    "checks/weights/loads.py": {"probe"},
    "checks/weights/rates.py": {"_trainable"},
    "confusion/stream.py": {"versions_of"},
    "guard.py": {"_kept"},
    "model/tensors.py": {"training"},
}


def parts_of(node: ast.AST) -> Iterator[ast.AST]:
    """What stands in a comprehension itself, and not in one within it."""
    for part in ast.iter_child_nodes(node):
        yield part
        if not isinstance(part, (*_COMPREHENSIONS, ast.Lambda)):
            yield from parts_of(part)


def conditions_of(node: ast.AST) -> int:
    tests = [test for part in parts_of(node) for test in getattr(part, "ifs", [])]
    joined = [test.values for test in tests if isinstance(test, ast.BoolOp)]
    return len(tests) - len(joined) + sum(map(len, joined))


def loops_of(node: ast.AST) -> int:
    return sum(isinstance(part, ast.comprehension) for part in parts_of(node))


def is_crowded(node: ast.AST) -> bool:
    """Whether a comprehension holds more than one idea.

    Two loops, or a plain comprehension within, are one idea; with a condition they are two. So is
    a choice between two values, and a third condition.
    """
    parts = list(parts_of(node))
    if any(isinstance(part, ast.IfExp) for part in parts) or conditions_of(node) > 2:
        return True
    if loops_of(node) > 1 and (conditions_of(node) or loops_of(node) > 2):
        return True
    inner = [part for part in parts if isinstance(part, _COMPREHENSIONS)]
    return len(inner) > 1 or any(conditions_of(p) or loops_of(p) > 1 for p in inner)


def crowded_functions(tree: ast.AST) -> set[str]:
    names = set()
    for scope in (tree, *functions(tree)):
        if any(
            isinstance(part, _COMPREHENSIONS) and is_crowded(part)
            for part in ast.walk(scope)
        ):
            names.add(getattr(scope, "name", "<module>"))
    if len(names) > 1:
        names.discard("<module>")  # it holds the functions
    return names


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_comprehension_holds_one_idea(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert crowded_functions(tree) == _CROWDED.get(name_of(path), set())


@pytest.mark.parametrize(
    "text",
    [
        "[a if b else c for a in x]",
        "[a for a in x if b and c and d]",
        "[a for b in x for a in b if a]",
        "[a for b in x for c in b for a in c]",
        "{k: [v for v in vs if v] for k, vs in x}",
        "any(a for a in ([b for b in x if b]) if a)",
    ],
)
def test_the_test_of_comprehensions_can_fail(text: str) -> None:
    assert crowded_functions(ast.parse(f"def f(x):\n    return {text}")) == {"f"}
    assert crowded_functions(ast.parse(f"y = {text}")) == {"<module>"}


@pytest.mark.parametrize(
    "text",
    [
        "[a for b in x for a in b]",
        "[a for a in x if a and b]",
        "[a for a in x if any(a in b for b in y)]",
        "{k: [f(v) for v in vs] for k, vs in x if vs}",
        "sorted(x, key=lambda a: 1 if a else 0)",
    ],
)
def test_the_test_of_comprehensions_takes_what_is_plain(text: str) -> None:
    assert crowded_functions(ast.parse(text)) == set()
