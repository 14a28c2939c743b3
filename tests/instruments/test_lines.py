"""The line after which a value is another, where no operator shows it."""

from __future__ import annotations

import sys
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_evalguard import EvalGuard, EvalGuardError
from lightning_evalguard.instruments.lines import LineTrace, lines_that_change


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


# --- following what counts ------------------------------------------------------------------------


def test_a_trace_names_the_last_line_and_what_changes_outside_of_it_is_nobodys() -> (
    None
):
    box = Box()
    trace = LineTrace(lambda: {"flag": box.flag, "x": box.x.tolist()}, live=True)

    def hook() -> None:
        box.flag = not box.flag
        box.flag = not box.flag  # the last

    with trace:
        hook()
    box.x += 1
    with trace:
        (lambda: None)()
    assert trace.found["flag"].location.endswith(f":{hook.__code__.co_firstlineno + 2}")
    assert "x" not in trace.found


def test_what_is_found_apart_wins_and_stands_alone_meanwhile() -> None:
    box = Box()
    trace = LineTrace(lambda: {"flag": box.flag, "x": box.x.tolist()}, live=True)

    def first() -> None:
        box.x = box.x + 1
        box.flag = True

    def second() -> None:
        box.flag = False

    with trace:
        first()
    with trace.apart():
        assert trace.found == {}
        with trace:
            second()
        assert list(trace.found) == ["flag"]
    assert {n: s.function for n, s in trace.found.items()} == {
        "flag": "second",
        "x": "first",
    }


def test_a_trace_within_itself_ends_with_the_outer_one() -> None:
    box, tracing = Box(), sys.gettrace()
    trace = LineTrace(lambda: {"flag": box.flag}, live=True)

    def hook() -> None:
        with trace:
            box.flag = True

    with trace:
        hook()
        assert sys.gettrace() is not tracing
    assert sys.gettrace() is tracing
    assert trace.found["flag"].expression == "box.flag = True"


def test_a_live_trace_gives_way_to_a_debugger_and_ends_with_its_budget() -> None:
    box, seen = Box(), []

    def debugger(frame: Any, event: str, arg: Any) -> Any:
        seen.append(event)
        return debugger

    def hook() -> None:
        box.flag = True

    before = sys.gettrace()
    trace = LineTrace(lambda: {"flag": box.flag}, live=True)
    sys.settrace(debugger)
    try:
        with trace:
            hook()
    finally:
        sys.settrace(before)
    assert trace.found == {}
    assert "line" in seen
    spent = LineTrace(lambda: {"flag": box.flag}, most=0, live=True)
    with spent:
        assert sys.gettrace() is before
        hook()


class Hooked(pl.LightningModule):
    """An evaluation that ends with another default dtype, set in a hook of its own."""

    leaves = True

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(4, 2)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.net(batch[0]).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.net(batch[0])

    def on_validation_epoch_end(self) -> None:
        if self.leaves:
            torch.set_default_dtype(torch.float64)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)

    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(torch.ones(8, 4)), batch_size=4)

    def val_dataloader(self) -> Any:
        return DataLoader(TensorDataset(torch.zeros(8, 4)), batch_size=4)


def test_a_line_of_a_hook_is_named(fit: Any) -> None:
    guard = EvalGuard()
    with pytest.raises(EvalGuardError) as raised:
        fit(Hooked(), guard)
    torch.set_default_dtype(torch.float32)
    (finding,) = [f for f in raised.value.report.findings if f.check == "state"]
    assert finding.expression == "torch.set_default_dtype(torch.float64)"
    assert finding.function == "on_validation_epoch_end"


def test_following_hooks_leaves_nothing_behind_and_syncs_nothing(fit: Any) -> None:
    module = Hooked()
    module.leaves = False
    guard, tracing = EvalGuard(), sys.gettrace()
    trainer = fit(module, guard)
    assert sys.gettrace() is tracing
    assert not {"start", "stop"} & vars(trainer.profiler).keys()
    assert [
        s for s in guard.report.syncs if s.owner in ("user", "lightning_evalguard")
    ] == []
