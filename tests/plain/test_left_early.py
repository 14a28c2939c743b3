"""Passes over a loader that are left before their end: a first look is no evaluation."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_evalguard import EvalGuardWarning, watch

SAMPLES = [(torch.full((4,), float(n)), n % 2) for n in range(16)]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.drop = nn.Linear(4, 2), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.layer(x))


def looked(net: Net) -> None:
    for x, y in DataLoader(SAMPLES, 4):
        out = net(x)
        assert F.cross_entropy(out, y).isfinite()
        break


def failed(net: Net) -> None:
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for x, y in DataLoader(SAMPLES, 4):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        raise MemoryError(f"out of memory before the backward pass of {loss.shape}")


def probed(net: Net) -> None:
    """As what looks for the largest batch that fits does."""
    with pytest.raises(MemoryError):
        failed(net)


def scored(net: Net) -> None:
    right = torch.tensor(0)
    for number, (x, y) in enumerate(DataLoader(SAMPLES, 4)):
        right += (net(x).argmax(1) == y).sum()
        if number == 2:
            break


def scored_whole(net: Net) -> None:
    right = torch.tensor(0)
    for x, y in DataLoader(SAMPLES, 16):
        right += (net(x).argmax(1) == y).sum()


def trained(net: Net) -> None:
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for x, y in DataLoader(SAMPLES, 4):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()


def modes_found(*acts: Callable[[Net], None]) -> list[str]:
    """What is found about modes and grad mode in a script that does these one after another."""
    net = Net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EvalGuardWarning)
        with watch(weights="ignore", sync="ignore", data="ignore") as report:
            for act in acts:
                act(net)
    return [f.check for f in report.findings]


@pytest.mark.parametrize("act", [looked, probed])
def test_one_batch_of_a_pass_that_was_left_is_no_evaluation(
    act: Callable[[Net], None],
) -> None:
    assert modes_found(act) == []
    assert modes_found(act, trained) == []
    assert modes_found(trained, act, trained) == []


@pytest.mark.parametrize("act", [scored, scored_whole])
def test_several_batches_or_a_whole_pass_without_training_are_one(
    act: Callable[[Net], None],
) -> None:
    assert "modes" in modes_found(trained, act, trained)


def adversarial(make: nn.Module, judge: nn.Module, batches: int) -> None:
    """Two nets trained against each other; what is made of fixed noise is looked at by eye."""
    makes, judges = (torch.optim.SGD(net.parameters(), 0.1) for net in (make, judge))
    loss, fixed = nn.BCEWithLogitsLoss(), torch.randn(8, 4)
    for number, real in enumerate(DataLoader(torch.randn(8 * batches, 2), 8)):
        judge.zero_grad()
        label = torch.ones(8, 1)
        loss(judge(real), label).backward()
        fake = make(torch.randn(8, 4))
        loss(judge(fake.detach()), label * 0).backward()
        judges.step()
        make.zero_grad()
        loss(judge(fake), label).backward()
        makes.step()
        if number % 25 == 0:
            fake = make(fixed)
            assert fake.detach().isfinite().all()


@pytest.mark.parametrize("batches", [1, 3])
def test_what_a_generator_shows_after_its_last_step_is_no_evaluation(
    batches: int,
) -> None:
    make = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))
    with watch(weights="ignore", sync="ignore", data="ignore") as report:
        adversarial(make, nn.Linear(2, 1), batches)
    assert report.findings == []


def reused(net: Net) -> None:
    """What is scored has a name that stood for something else before."""
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for x, y in DataLoader(SAMPLES, 4):
        out = x.mean()
        assert out.isfinite()
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
        out = net(x)
        assert (out.argmax(1) == y).sum() >= 0
        break


def test_what_is_scored_under_a_name_that_stood_for_another_value_is_one() -> None:
    assert "modes" in modes_found(reused)
