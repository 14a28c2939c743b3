"""Of plain loops that are watched from outside."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_evalguard import Report, watch
from models.program import BATCH, CLASSES, FEATURES, samples
from remedies import CHECKS, Make, applied


def model_of() -> nn.Sequential:
    norm, head = nn.BatchNorm1d(FEATURES), nn.Linear(FEATURES, CLASSES)
    return nn.Sequential(nn.Linear(FEATURES, FEATURES), norm, nn.Dropout(0.5), head)


def watched(act: Callable[[], Any], *checks: str) -> Report:
    policies: Any = {name: "ignore" for name in CHECKS if name not in checks}
    policies |= dict.fromkeys(checks, "warn")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with watch(**policies) as report:
            act()
    return report


def train_epoch(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for x, y in DataLoader(samples(1), BATCH, shuffle=True):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def rate(model: nn.Module) -> list[Tensor]:
    right = []
    with torch.no_grad():
        for x, y in DataLoader(samples(2), BATCH // 2):
            right.append((model(x).argmax(1) == y).float().mean())
    return right


@applied("Call `{}.eval()` before this {} and `{}.train()` after it.")
def evaluated_in_train_mode(make: Make, fixed: bool) -> Report:
    def act() -> None:
        model = model_of()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(3):
            train_epoch(model, optimizer)
            if fixed:
                model.eval()
            rate(model)
            model.train()

    return watched(act, "modes")


@applied("Call `.eval()` on it, or remove {}.")
def a_part_that_is_woken(make: Make, fixed: bool) -> Report:
    def act() -> None:
        model = model_of()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(3):
            model.train()
            train_epoch(model, optimizer)
            model.eval()
            if not fixed:
                model[2].train()
            rate(model)

    return watched(act, "modes")


@applied("Call `{}.eval()` before this {}.")
def parts_that_were_never_put_to_sleep(make: Make, fixed: bool) -> Report:
    def act() -> None:
        model = model_of()
        model.training = False  # by hand, and its parts stay awake
        if fixed:
            model.eval()
        rate(model)

    return watched(act, "modes")


@applied("Write `with torch.no_grad():` around this {}")
def evaluated_with_grad_mode_on(make: Make, fixed: bool) -> Report:
    def scores(model: nn.Module) -> list[Tensor]:
        with torch.set_grad_enabled(not fixed):
            return [model(x).argmax(1) for x, _ in DataLoader(samples(2), BATCH // 2)]

    def act() -> None:
        model = model_of()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(3):
            model.train()
            train_epoch(model, optimizer)
            model.eval()
            scores(model)

    return watched(act, "grad")


@applied("Call `{}.train()` after `{}`, before training goes on.")
def never_woken_after_an_evaluation(make: Make, fixed: bool) -> Report:
    def act() -> None:
        model = model_of()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(3):
            train_epoch(model, optimizer)
            model.eval()
            rate(model)
            if fixed:
                model.train()

    return watched(act, "modes")


@applied("Call `{}.train()` before the training loop, in each epoch.")
def asleep_by_hand_while_it_trains(make: Make, fixed: bool) -> Report:
    def act() -> None:
        model = model_of()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(3):
            if fixed:
                model.train()
            train_epoch(model, optimizer)
            for module in model.modules():
                module.training = False
            rate(model)

    return watched(act, "modes")


@applied("Put it back in eval mode after this line.")
def a_frozen_part_that_is_woken(make: Make, fixed: bool) -> Report:
    def act() -> None:
        body, head = (
            model_of(),
            nn.Sequential(nn.Dropout(0.1), nn.Linear(CLASSES, CLASSES)),
        )
        model = nn.Sequential(body, head)
        body.requires_grad_(False)
        body.eval()
        optimizer = torch.optim.SGD(head.parameters(), 0.1)
        for _ in range(3):
            train_epoch(model, optimizer)
            model.eval()
            rate(model)
            model.train()
            if fixed:
                body.eval()

    return watched(act, "modes")


@applied("Replace it before the optimizer is made.")
def replaced_after_the_optimizer(make: Make, fixed: bool) -> Report:
    def act() -> None:
        model = model_of()
        if fixed:
            model[3] = nn.Linear(FEATURES, CLASSES)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        if not fixed:
            model[3] = nn.Linear(FEATURES, CLASSES)
        for _ in range(2):
            train_epoch(model, optimizer)

    return watched(act, "weights")


@applied(
    "Pass its parameters to the optimizer, or freeze it with `.requires_grad_(False)`."
)
def in_no_optimizer(make: Make, fixed: bool) -> Report:
    def act() -> None:
        model = model_of()
        trained = model
        if not fixed:
            trained = model[3]
        optimizer = torch.optim.SGD(trained.parameters(), 0.1)
        for _ in range(2):
            train_epoch(model, optimizer)

    return watched(act, "weights")


@applied(
    "Evaluate the model that was trained, or call `model.load_state_dict(torch.load(...))` first."
)
def another_model_evaluated(make: Make, fixed: bool) -> Report:
    def act() -> None:
        model = model_of()
        train_epoch(model, torch.optim.SGD(model.parameters(), 0.1))
        other = model
        if not fixed:
            other = model_of()
        other.eval()
        rate(other)

    return watched(act, "weights")
