"""Each finding names its narrowest switch: pasted into the guard, it silences that one alone."""

from __future__ import annotations

import ast
import random
from collections.abc import Callable, Iterator
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from lightning_evalguard import Finding, Report
from models import PROGRAMS, Program
from test_zoo import guarded

pytestmark = [
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings(
        "ignore:ReduceLROnPlateau conditioned on metric:RuntimeWarning"
    ),
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
]
Make = Callable[..., pl.Trainer]
_STOP = ("modes", "grad", "state", "stochastic", "batch")
_EACH = 8  # the others are slow tests


def pasted(switch: str) -> dict[str, Any]:
    """The keywords of ``EvalGuard(...)`` as a finding prints it."""
    call = ast.parse(switch, mode="eval").body
    assert isinstance(call, ast.Call)
    assert isinstance(call.func, ast.Name)
    assert call.func.id == "EvalGuard"
    assert not call.args
    return {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}


def cause(finding: Finding) -> tuple[Any, ...]:
    """What is found, whatever the epoch, the stage and the count."""
    return finding.check, finding.subject, finding.location, finding.claim


def _programs() -> Iterator[Any]:
    for i, program in enumerate(PROGRAMS):
        marks = [] if i % _EACH == 0 else [pytest.mark.slow]
        yield pytest.param(program, id=program.module.__name__, marks=marks)


@pytest.mark.parametrize("program", list(_programs()))
def test_a_switch_silences_its_finding_and_no_other(
    program: Program, trainer: Make
) -> None:
    warns: dict[str, Any] = dict.fromkeys(_STOP, "warn")  # so that the run goes on
    warns |= {k: v for k, v in program.guard.items() if v != "error"}

    def found(**switch: Any) -> Report:
        torch.set_default_dtype(torch.float32)  # what one program changes and leaves
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        return guarded(program, program.module, trainer, warns | switch)[0]

    report = found()
    assert report.findings
    for finding in {cause(f): f for f in report.findings}.values():
        switch = pasted(finding.switch)
        again = found(**switch)
        assert cause(finding) not in {cause(f) for f in again.findings}, finding.switch
        others = {cause(f) for f in report.findings if not _is_silenced(f, finding)}
        assert others <= {cause(f) for f in again.findings}, finding.switch


def _is_silenced(other: Finding, finding: Finding) -> bool:
    """Whether another finding has the same switch, or one of its check is off altogether."""
    if "allow=" not in finding.switch:
        return other.check == finding.check
    return other.switch == finding.switch or cause(other) == cause(finding)
