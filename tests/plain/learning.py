"""A small task and its loops, for scripts that tests run under `watch`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_evalguard import Report, watch
from lightning_evalguard.checks.registry import CHECKS

X = torch.randn(160, 8, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)
train_set, test_set = TensorDataset(X[:120], Y[:120]), TensorDataset(X[120:], Y[120:])


class Net(nn.Module):
    def __init__(self, head: str = "head") -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.1))
        self.add_module(head, nn.Linear(32, 3))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = list(self.children())[-1](self.body(x))
        return out


def sgd(*models: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for model in models for p in model.parameters()], 0.1)


def train_loader() -> DataLoader[Any]:
    return DataLoader(train_set, 30, shuffle=True)


def test_loader() -> DataLoader[Any]:
    return DataLoader(test_set, 20)


def train(
    model: Callable[..., Tensor], optimizer: Any, loader: DataLoader[Any] | None = None
) -> None:
    if isinstance(model, nn.Module):
        model.train()
    for x, y in loader or train_loader():
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def accuracy(model: nn.Module, loader: DataLoader[Any] | None = None) -> float:
    model.eval()
    right = number = 0
    with torch.no_grad():
        for x, y in loader or test_loader():
            right += int((model(x).argmax(1) == y).sum())
            number += len(y)
    return right / number


def watched(act: Callable[[], Any], *checks: str) -> Report:
    """What is found of `act` by some checks."""
    policies: Any = {name: "ignore" for name in CHECKS if name not in checks}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with watch(**policies) as report:
            act()
    assert not [note for note in report.notes if "failed inside" in note]
    return report
