"""An error that a watched script catches itself: what it prints of it has no frame of ours."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import lightning_evalguard
from lightning_evalguard import EvalGuardError, watch

pytestmark = pytest.mark.skipif(
    sys.version_info < (3, 11),
    reason="before Python 3.11 a bare `raise` puts the frame that it stands in back",
)
OURS = str(Path(lightning_evalguard.__file__).parent)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.drop = nn.Linear(4, 2), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.layer(x))


class Broken(Net):
    def forward(self, x: Tensor) -> Tensor:
        columns = x.shape[1] + 1
        raise LookupError(f"no column {columns}")


class Samples(Dataset[Any]):
    def __init__(self, broken: int = -1) -> None:
        self.broken = broken

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == self.broken:
            raise LookupError("no such sample")
        return torch.full((4,), float(index)), index % 2


class Refuses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise LookupError("no gradient")


def scored(model: nn.Module, data: Dataset[Any]) -> None:
    right = torch.tensor(0)
    with torch.no_grad():
        for x, y in DataLoader(data, 4):
            right += (model(x).argmax(1) == y).sum()


def trained(loss: Callable[[Tensor, Tensor], Tensor]) -> Net:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for x, y in DataLoader(Samples(), 4):
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
    return model


def a_layer_fails() -> None:
    scored(Broken().eval(), Samples())


def an_operator_fails() -> None:
    scored(nn.Sequential(nn.Linear(3, 2)).eval(), Samples())


def a_sample_fails() -> None:
    scored(Net().eval(), Samples(broken=9))


def the_backward_pass_fails() -> None:
    trained(lambda out, y: Refuses.apply(out).sum())


def an_operator_of_the_loop_fails() -> None:
    losses = iter((nn.functional.cross_entropy, lambda out, y: out @ out))
    trained(lambda out, y: next(losses)(out, y))


def the_guard_stops_it() -> None:
    model = trained(nn.functional.cross_entropy)
    scored(model, Samples())
    scored(model, Samples())


FAILURES: list[tuple[Callable[[], None], type[Exception]]] = [
    (a_layer_fails, LookupError),
    (an_operator_fails, RuntimeError),
    (a_sample_fails, LookupError),
    (the_backward_pass_fails, LookupError),
    (an_operator_of_the_loop_fails, RuntimeError),
    (the_guard_stops_it, EvalGuardError),
]
failing = pytest.mark.parametrize(
    ("act", "kind"), FAILURES, ids=[act.__name__ for act, _ in FAILURES]
)


@pytest.fixture(autouse=True)
def _watched() -> Any:
    report = watch("error", weights="ignore")
    yield
    report.stop()


@failing
def test_a_traceback_that_is_printed_has_none(
    act: Callable[[], None], kind: type[Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        act()
    except kind:
        traceback.print_exc()
    said = capsys.readouterr().err
    assert said.startswith("Traceback (most recent call last)")
    assert f"in {act.__name__}" in said
    assert OURS not in said


@failing
def test_a_log_has_none(
    act: Callable[[], None], kind: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    try:
        act()
    except kind:
        logging.getLogger(__name__).exception("it failed")
    assert f"in {act.__name__}" in caplog.text
    assert OURS not in caplog.text


@failing
def test_the_cause_of_another_error_has_none(
    act: Callable[[], None], kind: type[Exception]
) -> None:
    with pytest.raises(OSError, match="the run failed") as raised:
        try:
            act()
        except kind as error:
            raise OSError("the run failed") from error
    said = "".join(traceback.format_exception(raised.value))
    assert "direct cause" in said
    assert f"in {act.__name__}" in said
    assert OURS not in said


def test_a_debugger_stands_where_the_error_was_raised() -> None:
    with pytest.raises(LookupError) as raised:
        a_layer_fails()
    *_, (innermost, _) = traceback.walk_tb(raised.value.__traceback__)
    assert innermost.f_code is Broken.forward.__code__
    assert innermost.f_locals["columns"] == 5


def test_the_loop_goes_on_after_an_error_that_it_caught() -> None:
    model, failed = Net(), 0
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for x, y in DataLoader(Samples(), 4):
        optimizer.zero_grad()
        try:
            Broken()(x)
        except LookupError:
            failed += 1
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert failed == 4
