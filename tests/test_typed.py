"""Code that is typed into an interpreter or a notebook has no file, and is the user's."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_evalguard.instruments.source import owner_of

CODE = """
import re, torch, torch.nn.functional as F
from torch import nn
from lightning_evalguard import evaluating

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        self.layer.weight.data.add_(1.0)
        return self.layer(F.dropout(x, 0.5))

def evaluate(allow):
    model = Net()
    with evaluating(model, state="warn", stochastic="warn", allow=allow) as report:
        model(torch.randn(8, 4))
    return report.findings

found = evaluate({})
switch = next(f.switch for f in found if f.check == "stochastic")
left = evaluate({"stochastic": re.findall(r'"stochastic": \\["(.*)"\\]', switch)})
"""


@pytest.mark.filterwarnings("ignore::lightning_evalguard.EvalGuardWarning")
@pytest.mark.parametrize(
    "name", ["<stdin>", "<ipython-input-3-0a1b>", "<python-input-0>"]
)
def test_typed_code_is_named_by_its_line_and_allowed_by_its_name(name: str) -> None:
    names: dict[str, Any] = {"__name__": "typed"}
    exec(compile(CODE, name, "exec"), names)
    found = {f.check: (f.location, f.fact) for f in names["found"]}
    assert found["state"][0] == f"{name}:12"
    drew = "a line of `forward` drew random numbers in eval mode"
    assert found["stochastic"] == (f"{name}:13", drew)
    assert [f.check for f in names["left"]] == ["state"]


def test_code_that_libraries_make_is_not_the_users() -> None:
    made = [
        "<frozen importlib._bootstrap>",
        "<eval_with_key>.3",
        "<__array_function__ internals>",
    ]
    assert {owner_of(name) for name in [*made, "<string>"]} == {"stdlib"}
