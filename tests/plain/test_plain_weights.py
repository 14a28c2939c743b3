"""Scripts whose scores are those of other weights than is meant, and honest ones beside them."""

from __future__ import annotations

import copy
import gc
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from learning import (
    Net,
    X,
    Y,
    accuracy,
    sgd,
    train,
    train_loader,
    train_set,
    watched,
)
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR
from torch.optim.swa_utils import AveragedModel, update_bn
from torch.utils.data import DataLoader, Subset

Act = Callable[[], Any]


def renamed(model: nn.Module, old: str, new: str) -> dict[str, Tensor]:
    return {k.replace(old, new, 1): v for k, v in model.state_dict().items()}


# what is found


def a_head_replaced_after_the_optimizer_was_made() -> None:
    model = Net()
    optimizer = sgd(model)
    model.head = nn.Linear(32, 3)
    for _ in range(2):
        train(model, optimizer)
    accuracy(model)


def a_head_replaced_and_no_evaluation() -> None:
    model = Net()
    optimizer = sgd(model)
    model.head = nn.Linear(32, 3)
    for _ in range(2):
        train(model, optimizer)


def a_body_in_no_optimizer() -> None:
    model = Net()
    optimizer = sgd(model.head)
    for _ in range(2):
        train(model, optimizer)
    accuracy(model)


def an_optimizer_that_never_steps() -> None:
    model = Net()
    optimizer, other = sgd(model.head), sgd(model.body)
    for _ in range(5):
        train(model, optimizer)
        other.zero_grad()
    accuracy(model)


def a_body_that_no_gradient_reaches() -> None:
    class Detached(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x).detach())

    model = Detached()
    optimizer = sgd(model)
    for _ in range(2):
        train(model, optimizer)
    accuracy(model)


def another_model_than_the_trained_one() -> None:
    model = Net()
    train(model, sgd(model))
    accuracy(Net())


def a_checkpoint_that_is_not_loaded() -> None:
    accuracy(Net())


def a_head_of_another_name() -> None:
    model = Net()
    model.load_state_dict(renamed(Net(), "head", "fc"), strict=False)
    accuracy(model)


def a_prefix() -> None:
    model = Net()
    model.load_state_dict(
        {f"module.{k}": v for k, v in Net().state_dict().items()}, strict=False
    )
    accuracy(model)


def a_prefix_before_training() -> None:
    model = Net()
    model.load_state_dict(
        {f"module.{k}": v for k, v in Net().state_dict().items()}, strict=False
    )
    train(model, sgd(model))


def an_average_of_nothing() -> None:
    model = Net()
    averaged = AveragedModel(model)
    train(model, sgd(model))
    accuracy(averaged)


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 3))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


def an_average_with_the_statistics_of_the_last_step() -> None:
    model = Normed()
    averaged, optimizer = AveragedModel(model), sgd(model)
    for _ in range(3):
        train(model, optimizer)
        averaged.update_parameters(model)
    accuracy(averaged)


def the_best_kept_by_reference() -> None:
    model, best, kept = Net(), -1.0, {}
    optimizer = sgd(model)
    for _ in range(2):
        train(model, optimizer)
        score = accuracy(model)
        if score > best:
            best, kept = score, model.state_dict()
    model.load_state_dict(kept)
    accuracy(model)


def an_own_average_that_is_never_updated() -> None:
    model = Net()
    optimizer, average = sgd(model), copy.deepcopy(model.state_dict())
    for _ in range(2):
        train(model, optimizer)
        own = copy.deepcopy(model.state_dict())
        model.load_state_dict(average)
        accuracy(model)
        model.load_state_dict(own)


def layers_in_a_list() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = [nn.Linear(8, 8), nn.ReLU()]
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            out: Tensor = self.head(x)
            return out

    model = Listed()
    optimizer = sgd(model)
    for _ in range(2):
        train(model, optimizer)


def scheduled(make: Callable[[Any], Any], epochs: int = 2) -> None:
    """Train with a scheduler that is stepped once an epoch."""
    model = Net()
    optimizer = sgd(model)
    scheduler = make(optimizer)
    for _ in range(epochs):
        train(model, optimizer)
        scheduler.step()
    accuracy(model)


def a_warmup_by_epochs_that_begins_at_nothing() -> None:
    scheduled(lambda optimizer: LambdaLR(optimizer, lambda epoch: epoch / 5))


def a_schedule_that_ends_before_the_fit() -> None:
    scheduled(lambda optimizer: CosineAnnealingLR(optimizer, 1), epochs=3)


def a_rate_by_hand_that_begins_at_nothing() -> None:
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for epoch in range(2):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * epoch / 10
        train(model, optimizer)
    accuracy(model)


FOUND: dict[Act, str] = {
    a_warmup_by_epochs_that_begins_at_nothing: (
        r"learning\.py:\d+: SGD had a learning rate of 0 in all 4 steps"
    ),
    a_schedule_that_ends_before_the_fit: "SGD had a learning rate of 0 in all 4 steps",
    a_rate_by_hand_that_begins_at_nothing: "AdamW had a learning rate of 0 in all 4 ",
    a_head_replaced_after_the_optimizer_was_made: "`head` .*replaced after the optimizer was made",
    a_head_replaced_and_no_evaluation: "`head` .*replaced after the optimizer was made",
    a_body_in_no_optimizer: "`body` .*is in no optimizer: it gets gradients",
    an_optimizer_that_never_steps: "`body` .*the optimizer that holds it never made a step",
    a_body_that_no_gradient_reaches: "`body` .*no gradient reached it",
    another_model_than_the_trained_one: r"`Net` \(the whole model\): is scored as it was init",
    a_checkpoint_that_is_not_loaded: r"`Net` \(the whole model\): is scored as it was init",
    a_head_of_another_name: "matched 2 of 4 keys .*`head` .*is evaluated as initialised",
    a_prefix: "matched 0 of 4 keys .*the model is scored as it was initialised",
    a_prefix_before_training: "matched 0 of 4 keys .*training begins with the whole model",
    an_average_of_nothing: "is scored before anything was averaged",
    an_average_with_the_statistics_of_the_last_step: "its running mean is that of `Normed",
    the_best_kept_by_reference: "a load gave the model its own tensors",
    an_own_average_that_is_never_updated: "the weights that training began with",
    layers_in_a_list: r"`layers\[0\]`: is registered nowhere",
}


@pytest.mark.parametrize("act", FOUND, ids=lambda act: act.__name__)
def test_it_is_found_once(act: Act) -> None:
    report = watched(act, "weights")
    assert len(report.findings) == 1, report
    assert re.search(FOUND[act], str(report.findings[0])), report
    assert report.findings[0].host == "watch"


# what is meant


def a_baseline_before_training() -> None:
    model = Net()
    accuracy(model)
    train(model, sgd(model))
    accuracy(model)


def a_new_head_on_purpose() -> None:
    model = Net()
    model.load_state_dict(renamed(Net(), "head", "fc"), strict=False)
    accuracy(model)
    optimizer = sgd(model)
    for _ in range(2):
        train(model, optimizer)
        accuracy(model)


def a_frozen_body() -> None:
    model = Net()
    model.body.requires_grad_(False)
    optimizer = sgd(model.head)
    for _ in range(2):
        train(model, optimizer)
    accuracy(model)


def a_loaded_body_in_no_optimizer() -> None:
    model = Net()
    model.load_state_dict(renamed(Net(), "head", "fc"), strict=False)
    optimizer = sgd(model.head)
    for _ in range(2):
        train(model, optimizer)
    accuracy(model)


def two_optimizers() -> None:
    model = Net()
    optimizers = sgd(model.body), torch.optim.Adam(model.head.parameters())
    for x, y in train_loader():
        for optimizer in optimizers:
            optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        for optimizer in optimizers:
            optimizer.step()
    accuracy(model)


def unfrozen_later() -> None:
    model = Net()
    optimizer = sgd(model.head)
    for _ in range(2):
        train(model, optimizer)
        accuracy(model)
    optimizer = sgd(model)
    train(model, optimizer)


def folds() -> None:
    for fold in range(3):
        model = Net()
        train(
            model, sgd(model), DataLoader(Subset(train_set, range(fold * 30, 120)), 30)
        )
        accuracy(model)


def folds_of_one_model_that_starts_anew() -> None:
    model = Net()
    start = copy.deepcopy(model.state_dict())
    for _ in range(3):
        model.load_state_dict(start)
        train(model, sgd(model))
        accuracy(model)


def a_gan() -> None:
    generator, critic = (
        Net(),
        nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1)),
    )
    of_generator, of_critic = sgd(generator), sgd(critic)
    for x, y in train_loader():
        real = F.one_hot(y, 3).float()
        fake = generator(x)
        of_critic.zero_grad()
        (critic(fake.detach()).mean() - critic(real).mean()).backward()
        of_critic.step()
        of_generator.zero_grad()
        (-critic(fake).mean()).backward()
        of_generator.step()
    accuracy(generator)


def teacher_and_student() -> None:
    teacher, student = Net(), Net()
    train(teacher, sgd(teacher))
    teacher.eval()
    optimizer = sgd(student)
    for x, _ in train_loader():
        with torch.no_grad():
            wanted = teacher(x).softmax(1)
        optimizer.zero_grad()
        F.cross_entropy(student(x), wanted).backward()
        optimizer.step()
    accuracy(student)
    accuracy(teacher)


def averages_that_follow() -> None:
    model = Normed()
    by_hand, averaged = copy.deepcopy(model), AveragedModel(model)
    optimizer = sgd(model)
    for _ in range(2):
        train(model, optimizer)
        averaged.update_parameters(model)
        with torch.no_grad():
            for mine, theirs in zip(
                by_hand.parameters(), model.parameters(), strict=True
            ):
                mine.mul_(0.9).add_(theirs, alpha=0.1)
    update_bn(train_loader(), averaged)
    accuracy(averaged)
    accuracy(by_hand)


def the_best_kept_by_copy() -> None:
    model = Net()
    optimizer, kept = sgd(model), {}
    for _ in range(2):
        train(model, optimizer)
        accuracy(model)
        kept = copy.deepcopy(model.state_dict())
    model.load_state_dict(kept)
    accuracy(model)


def resumed() -> None:
    saved = Net()
    train(saved, sgd(saved))
    model = Net()
    model.load_state_dict(saved.state_dict())
    accuracy(model)
    train(model, sgd(model))
    accuracy(model)


def accumulated() -> None:
    model = Net()
    optimizer = sgd(model)
    for i, (x, y) in enumerate(train_loader()):
        (F.cross_entropy(model(x), y) / 2).backward()
        if i % 2:
            optimizer.step()
            optimizer.zero_grad()
    accuracy(model)


def closures() -> None:
    model = Net()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(X[:100]), Y[:100])
        loss.backward()
        return loss

    for _ in range(5):
        optimizer.step(closure)
    accuracy(model)


def weights_carried_over_by_hand() -> None:
    model, copied = Net(), Net()
    optimizer = sgd(model)
    for _ in range(3):
        train(model, optimizer)
    for mine, theirs in zip(copied.parameters(), model.parameters(), strict=True):
        mine.data.copy_(theirs.data)
    accuracy(copied)


def random_features() -> None:
    encoder, head = nn.Sequential(nn.Linear(8, 64), nn.ReLU()), nn.Linear(64, 3)
    optimizer = sgd(head)
    for x, y in train_loader():
        with torch.no_grad():
            features = encoder(x)
        optimizer.zero_grad()
        F.cross_entropy(head(features), y).backward()
        optimizer.step()
    with torch.no_grad():
        for x, y in train_loader():
            print((head(encoder(x)).argmax(1) == y).float().mean())


def trained_without_an_optimizer() -> None:
    model = Net()
    accuracy(model)
    for x, y in train_loader():
        gradients = torch.autograd.grad(
            F.cross_entropy(model(x), y), list(model.parameters())
        )
        with torch.no_grad():
            for p, g in zip(model.parameters(), gradients, strict=True):
                p -= 0.1 * g


def what_a_debugging_forward_shows() -> None:
    model = Net()
    with torch.no_grad():
        print(model(X[:2]).shape)


def a_warmup_by_steps() -> None:
    model = Net()
    optimizer = sgd(model)
    scheduler = LambdaLR(optimizer, lambda step: min(1.0, step / 5))
    for x, y in train_loader():
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        scheduler.step()
    accuracy(model)


def a_schedule_that_ends_with_the_fit() -> None:
    scheduled(lambda optimizer: CosineAnnealingLR(optimizer, 2))


def a_rate_of_nothing_on_purpose() -> None:
    model = Net()
    for rate in (0.1, 0.0):
        train(model, torch.optim.SGD(model.parameters(), rate))
    accuracy(model)


def one_optimizer_of_two_waits() -> None:
    model = Net()
    first, second = sgd(model.head), sgd(model.body)
    waits = LambdaLR(second, lambda epoch: float(epoch > 0))
    for _ in range(2):
        for x, y in train_loader():
            for optimizer in (first, second):
                optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            first.step()
            second.step()
        waits.step()
    accuracy(model)


HONEST: list[Act] = [
    a_warmup_by_steps,
    a_schedule_that_ends_with_the_fit,
    a_rate_of_nothing_on_purpose,
    one_optimizer_of_two_waits,
    a_baseline_before_training,
    a_new_head_on_purpose,
    a_frozen_body,
    a_loaded_body_in_no_optimizer,
    two_optimizers,
    unfrozen_later,
    folds,
    folds_of_one_model_that_starts_anew,
    a_gan,
    teacher_and_student,
    averages_that_follow,
    the_best_kept_by_copy,
    resumed,
    accumulated,
    closures,
    weights_carried_over_by_hand,
    random_features,
    trained_without_an_optimizer,
    what_a_debugging_forward_shows,
]


@pytest.mark.parametrize("act", HONEST, ids=lambda act: act.__name__)
def test_it_is_honest_and_nothing_is_said(act: Act) -> None:
    report = watched(act, "weights")
    assert report.findings == []


# the line of a load, and who holds what


@pytest.mark.parametrize("second", ["the same", "one tensor"])
def test_of_two_partial_loads_the_first_is_named(second: str) -> None:
    given = renamed(Net(), "head", "fc")
    later = given
    if second == "one tensor":
        later = {"body.0.bias": torch.zeros(32)}

    def act() -> None:
        model = Net()
        model.load_state_dict(given, strict=False)  # the one
        model.load_state_dict(later, strict=False)
        accuracy(model)

    (finding,) = watched(act, "weights").findings
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    assert lines[int((finding.location or "").rpartition(":")[2]) - 1].endswith(
        "# the one"
    )


def test_a_later_load_that_has_most_is_named() -> None:
    given = renamed(Net(), "head", "fc")

    def act() -> None:
        model = Net()
        model.load_state_dict({"body.0.bias": torch.zeros(32)}, strict=False)
        model.load_state_dict(given, strict=False)  # the later
        accuracy(model)

    (finding,) = watched(act, "weights").findings
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    assert lines[int((finding.location or "").rpartition(":")[2]) - 1].endswith(
        "# the later"
    )


def test_no_model_is_held_after_its_last_use() -> None:
    def one() -> weakref.ref[nn.Module]:
        model = Net()
        train(model, sgd(model))
        accuracy(model)
        return weakref.ref(model)

    def act() -> None:
        model = one()
        gc.collect()
        assert model() is None

    watched(act, "weights", "data")
