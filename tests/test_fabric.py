"""The guard in loops of Fabric and accelerate, which are the user's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from torch import nn

from lightning_evalguard import EvalGuard, EvalGuardError, evaluating


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)
    )


def set_up(net: nn.Module, **options: Any) -> Any:
    fabric = Fabric(accelerator="cpu", devices=1, **options)
    return fabric.setup(net)


def test_fabric_takes_the_callback_and_it_says_where_to_stand() -> None:
    guard = EvalGuard()
    fabric = Fabric(accelerator="cpu", devices=1, callbacks=[guard])
    net = model()
    wrapped, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), 0.1))
    fabric.backward(wrapped(torch.ones(3, 4)).sum())
    optimizer.step()
    fabric.call("on_train_epoch_end")
    assert guard.report.findings == []
    assert "evaluating(model)" in guard.report.notes[0]


def test_evaluating_a_module_of_fabric_puts_back_every_mode() -> None:
    net = model()
    net[1].eval()
    wrapped = set_up(net)
    before = [module.training for module in wrapped.modules()]
    with evaluating(wrapped) as report:
        first, second = wrapped(torch.ones(3, 4)), wrapped(torch.ones(3, 4))
        assert not any(module.training for module in wrapped.modules())
    assert torch.equal(first, second)
    assert [module.training for module in wrapped.modules()] == before
    assert report.checked["batches"] == 2
    assert report.findings == []


class Draws(nn.Module):
    """Its dropout does not ask for the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = model()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(self.layers(x), 0.5)


def test_findings_have_the_names_of_the_users_own_module() -> None:
    net = Draws()
    wrapped = set_up(net)
    with pytest.raises(EvalGuardError), evaluating(wrapped) as report:
        net.layers[2].train()
        wrapped(torch.ones(3, 4))
    assert [finding.subject for finding in report.findings] == ["layers.2"]
    with pytest.raises(EvalGuardError), evaluating(wrapped) as report:
        wrapped(torch.ones(3, 4))
    (finding,) = report.findings
    assert finding.check == "stochastic"
    assert "nn.functional.dropout" in (finding.expression or "")


def test_evaluating_a_module_that_accelerate_prepared() -> None:
    accelerate = pytest.importorskip("accelerate")
    net = accelerate.Accelerator(cpu=True).prepare(model())
    with evaluating(net) as report:
        net(torch.ones(3, 4))
    assert (report.checked["batches"], net.training) == (1, True)
    with pytest.raises(EvalGuardError, match="`2`"), evaluating(net):
        net[2].train()
        net(torch.ones(3, 4))
