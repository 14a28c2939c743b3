"""Looking at a function's variables keeps none of them alive, and changes none."""

from __future__ import annotations

import ast
import sys
import weakref
from pathlib import Path
from typing import Any

import lightning_evalguard
from lightning_evalguard.instruments.variables import variable, variables


class Large:
    """Something that should go when its function lets go of it."""


def test_what_a_function_deletes_is_gone() -> None:
    for _ in range(3):
        large = Large()
        gone = weakref.ref(large)
        assert variable(sys._getframe(), "large") is large
        del large
        assert gone() is None


def test_what_locals_gave_the_user_stays() -> None:
    answer = 42
    kept = locals()
    assert variables(sys._getframe())["answer"] == answer
    assert kept["answer"] == 42


def test_closures_and_namespaces_stay() -> None:
    outer = 5

    def inner() -> int:
        assert variables(sys._getframe())["outer"] == 5
        return outer

    assert inner() == 5
    space: dict[str, Any] = {"seen": variables, "frame": sys._getframe}
    exec("here = 3\nfound = seen(frame())\nthere = here + 1", space)
    assert space["found"]["here"] == 3
    assert space["there"] == 4


def test_variables_stay_under_a_trace_function() -> None:
    def traced(frame: Any, event: str, arg: Any) -> Any:
        assert frame.f_locals is not None
        return traced

    def work() -> int:
        total = 0
        for i in range(3):
            total += i
            variables(sys._getframe())
        return total

    before = sys.gettrace()
    sys.settrace(traced)
    try:
        assert work() == 3
    finally:
        sys.settrace(before)


def test_frames_are_asked_for_their_variables_here_alone() -> None:
    here = Path(lightning_evalguard.__file__).parent
    asking = [
        path.relative_to(here).as_posix()
        for path in sorted(here.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "f_locals"
    ]
    assert asking == ["instruments/variables.py"]
