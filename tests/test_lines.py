"""The line after which a value is another, where no operator shows it."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from lightning_evalguard._lines import lines_that_change


class Box:
    def __init__(self) -> None:
        self.x = torch.zeros(3)
        self.flag = False


def test_the_innermost_line_of_the_users_is_named() -> None:
    box = Box()

    def inner() -> None:
        view = box.x.numpy()
        view += 1  # here

    def outer() -> None:
        inner()
        box.flag = True

    values = {"x": lambda: box.x.tolist(), "flag": lambda: box.flag, "not": lambda: 0}
    found = lines_that_change(values, outer)
    assert {name: site.expression for name, site in found.items()} == {
        "x": "view += 1",
        "flag": "box.flag = True",
    }
    assert found["x"].function == "inner"


def test_an_assignment_of_what_a_call_returns_is_the_callers_line() -> None:
    box = Box()

    def made() -> Any:
        one = torch.ones(3)
        return one * 2

    def step() -> None:
        box.x.data = made()

    (site,) = lines_that_change({"x": lambda: box.x.tolist()}, step).values()
    assert site.expression == "box.x.data = made()"


def test_the_last_line_before_an_exception_is_named_and_tracing_ends() -> None:
    box, tracing = Box(), sys.gettrace()
    found: dict[str, Any] = {}

    def step() -> None:
        box.flag = True
        raise KeyError("x")

    def run() -> None:
        with pytest.raises(KeyError):
            step()

    found = lines_that_change({"flag": lambda: box.flag}, run)
    assert found["flag"].expression == "box.flag = True"
    with pytest.raises(KeyError):
        lines_that_change({"flag": lambda: box.flag}, step)
    assert sys.gettrace() is tracing


def test_what_does_not_change_has_no_line() -> None:
    assert lines_that_change({"x": lambda: 1}, lambda: None) == {}
