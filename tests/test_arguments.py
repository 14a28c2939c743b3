"""Every argument is refused at once where it is wrong, and by its name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch

from lightning_evalguard import ConfusionMetrics, EvalGuard, allow, evaluating

ANYTHING: list[Any] = [
    None, 3, -1, 0, "x", "", 1.5, True, [], {}, {"a": 1}, [1], ("a",), object(), float("nan"),
    b"x", {"x"}, {"modes": "x"}, {"modes": [1]}, {"nope": []}, len, ["modes"], {"modes": None},
]  # fmt: skip


def evaluating_(**keywords: Any) -> Any:
    return evaluating(keywords.pop("model", torch.nn.Linear(1, 1)), **keywords)


def allow_(**keywords: Any) -> Any:
    return allow(keywords.pop("check", "sync"), **keywords)


PUBLIC: list[tuple[Callable[..., Any], Any]] = [
    (EvalGuard, EvalGuard),
    (ConfusionMetrics, ConfusionMetrics),
    (evaluating_, evaluating),
    (allow_, allow),
]
KEYWORDS = [
    (make, name) for make, of in PUBLIC for name in inspect.signature(of).parameters
]


def refusal(make: Any, name: str, value: Any) -> str:
    """Why a value is refused; any exception but a ValueError fails the test."""
    try:
        make(**{name: value})
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("make", "name"), KEYWORDS, ids=lambda x: getattr(x, "__name__", x)
)
def test_a_keyword_takes_a_value_or_refuses_it_by_name(make: Any, name: str) -> None:
    refusals = [text for value in ANYTHING if (text := refusal(make, name, value))]
    assert refusals
    assert all(name in text for text in refusals)


@pytest.mark.parametrize(
    "names", [{"cat", "dog"}, "cd", {"cat": 0, "dog": 1}, 3, iter(["a", "b"])]
)
def test_class_names_without_an_order_are_refused(names: Any) -> None:
    with pytest.raises(ValueError, match="class_names"):
        ConfusionMetrics(class_names=names)
