"""What a watched script prints as it stops: the user's lines, and none of ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BEGINS = """
import sys
import torch
from torch import nn
from torch.utils.data import DataLoader
import lightning_evalguard

lightning_evalguard.watch("error")
model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
loader = DataLoader(torch.ones(8, 4), 2)
"""
STOPS = {
    "at a batch": """
def evaluate():
    with torch.no_grad():
        return [model(x).argmax(1) == 0 for x in loader]
evaluate()
""",
    "at a call": """
class Drops(nn.Linear):
    def forward(self, x):
        return nn.functional.dropout(super().forward(x))
model = Drops(4, 4).eval()
def evaluate():
    right = 0
    with torch.no_grad():
        for x, y in zip(torch.ones(8, 4).split(2), torch.zeros(8).split(2)):
            right += (model(x).argmax(1) == y).sum()
    return right
evaluate()
""",
    "at a step": """
optimizer = torch.optim.SGD(model.parameters(), 0.1)
def train():
    for x in loader:
        optimizer.zero_grad()
        model(x).sum().backward()
        optimizer.step()
train()
model.eval()
with torch.no_grad():
    hits = [model(x).argmax(1) == 0 for x in loader]
train()
""",
    "by the script's own error": """
class Broken(nn.Linear):
    def forward(self, x):
        raise ValueError("of the script's own")
Broken(4, 4)(torch.ones(2, 4))
""",
}


# an optimizer's first step imports half of torch again
_KINDS = [
    pytest.param(kind, marks=pytest.mark.slow if kind == "at a step" else ())
    for kind in STOPS
]


@pytest.mark.parametrize("kind", _KINDS)
def test_the_traceback_has_no_frame_of_ours(kind: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(BEGINS + STOPS[kind])
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    trace, _, said = done.stderr.partition(
        "\nlightning_evalguard.report.EvalGuardError: "
    )
    assert bool(said) == (kind != "by the script's own error"), done.stderr
    assert trace.count("Traceback (most recent call last)") == 1
    assert "script.py" in trace
    files = [line for line in trace.splitlines() if line.lstrip().startswith("File ")]
    assert not [line for line in files if "lightning_evalguard" in line], trace


def test_a_hook_of_the_users_is_called_with_the_same(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "sys.excepthook = lambda kind, error, trace: print('mine', kind.__name__, error)\n"
        "from lightning_evalguard import watch\n"
        "report = watch('error')\n"
        "watched = sys.excepthook\n"
        "report.stop()\n"
        "print(watched is not sys.excepthook)\n"
        "watch('error')\n"
        "1 / 0\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines() == [
        "True",
        "mine ZeroDivisionError division by zero",
    ]
    assert done.stderr == ""
