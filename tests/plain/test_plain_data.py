"""Scripts that evaluate other samples than is meant, and honest ones beside them."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
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
    test_set,
    train,
    train_loader,
    train_set,
    watched,
)
from learning import test_loader as held_out
from torch import nn
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    RandomSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)

Act = Callable[[], Any]


def fitted(epochs: int = 1) -> Net:
    model = Net()
    optimizer = sgd(model)
    for _ in range(epochs):
        train(model, optimizer)
    return model


# what is found


def training_samples_called_test() -> None:
    test_loader = DataLoader(train_set, 20)
    accuracy(fitted(), test_loader)


def training_samples_called_test_beside_others() -> None:
    model, loader, val_loader = Net(), held_out(), DataLoader(train_set, 20)
    optimizer = sgd(model)
    for _ in range(2):
        train(model, optimizer)
        accuracy(model, loader)
        accuracy(model, val_loader)


def nothing_but_training_samples() -> None:
    model, loader = Net(), train_loader()
    optimizer = sgd(model)
    for _ in range(2):
        train(model, optimizer, loader)
        accuracy(model, loader)


def some_training_samples() -> None:
    loader = DataLoader(ConcatDataset([test_set, Subset(train_set, range(20))]), 20)
    accuracy(fitted(), loader)


def copies_of_training_samples() -> None:
    x, y = torch.cat([X[120:], X[:20]]), torch.cat([Y[120:], Y[:20]])
    loader = DataLoader(TensorDataset(x, y), 20)
    accuracy(fitted(), loader)


def the_test_set_is_the_validation_set() -> None:
    val_loader, test_loader = DataLoader(test_set, 20), DataLoader(test_set, 10)
    model = Net()
    optimizer = sgd(model)
    for _ in range(2):
        train(model, optimizer)
        accuracy(model, val_loader)
    accuracy(model, test_loader)


def samples_given_twice() -> None:
    loader = DataLoader(ConcatDataset([test_set, test_set]), 20)
    accuracy(fitted(), loader)


def the_last_batch_dropped() -> None:
    loader = DataLoader(test_set, 30, drop_last=True)
    accuracy(fitted(), loader)


def samples_drawn() -> None:
    sampler = RandomSampler(test_set, replacement=True, num_samples=20)
    loader = DataLoader(test_set, 10, sampler=sampler)
    accuracy(fitted(), loader)


def one_net_for_all_folds() -> None:
    model = Net()
    for fold in range(3):
        own = range(30 * fold, 30 * fold + 30)
        rest = [i for i in range(120) if i not in own]
        parts = (
            DataLoader(Subset(train_set, rest), 30),
            DataLoader(Subset(train_set, own), 30),
        )
        train(model, sgd(model), parts[0])
        accuracy(model, parts[1])


def another_sample_each_time() -> None:
    class Noisy(TensorDataset):
        def __getitem__(self, index: int) -> Any:
            x, y = super().__getitem__(index)
            return x + torch.randn(8), y

    model, loader = Net(), DataLoader(Noisy(*test_set.tensors), 20)
    optimizer = sgd(model)
    for _ in range(2):
        train(model, optimizer)
        accuracy(model, loader)


def pixels_on_another_scale() -> None:
    images = torch.rand(160, 3, 8, 8) * 255

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.net(x)
            return out

    model = Small()
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    scaled = DataLoader(TensorDataset(images[:120] / 255, Y[:120]), 20, shuffle=True)
    for _ in range(3):
        train(model, optimizer, scaled)
    loader = DataLoader(TensorDataset(images[120:], Y[120:]), 20)
    accuracy(model, loader)


LEAKS = "of its .* samples (are|stand in) the training set('s)? too"
FOUND: dict[Act, str] = {
    training_samples_called_test: rf"`test_loader` \(TensorDataset\): 120 {LEAKS}",
    training_samples_called_test_beside_others: rf"`val_loader` \(TensorDataset\): 120 {LEAKS}",
    nothing_but_training_samples: f"`loader` .*: 120 {LEAKS}",
    some_training_samples: f": 20 {LEAKS}",
    copies_of_training_samples: f": 20 {LEAKS}",
    the_test_set_is_the_validation_set: "40 of its 40 samples are the validation set's too",
    samples_given_twice: "40 of the 80 samples that it gives are repetitions",
    the_last_batch_dropped: "drop_last=True leaves out the last 10 of 40 samples",
    samples_drawn: "RandomSampler draws other samples for each evaluation",
    one_net_for_all_folds: "training set of an earlier fit of these weights",
    another_sample_each_time: "gave other samples in its first batches|read twice",
    pixels_on_another_scale: "training",
}


@pytest.mark.parametrize("act", FOUND, ids=lambda act: act.__name__)
def test_it_is_found_once(act: Act) -> None:
    report = watched(act, "data")
    assert len(report.findings) == 1, report
    assert re.search(FOUND[act], str(report.findings[0])), report
    assert (report.findings[0].stage, report.findings[0].host) == ("evaluate", "watch")


# what is meant


def both_sets_after_each_epoch() -> None:
    model, first, second = Net(), train_loader(), held_out()
    optimizer = sgd(model)
    for _ in range(3):
        train(model, optimizer, first)
        for loader in (first, second):
            print(accuracy(model, loader))


def the_training_set_by_its_name() -> None:
    model, train_data = Net(), train_loader()
    optimizer = sgd(model)
    for _ in range(2):
        train(model, optimizer, train_data)
        accuracy(model, train_data)


def by_phases() -> None:
    model, loaders = Net(), {"train": train_loader(), "val": held_out()}
    optimizer = sgd(model)
    for _ in range(2):
        for phase, loader in loaders.items():
            model.train(phase == "train")
            for x, y in loader:
                with torch.set_grad_enabled(phase == "train"):
                    loss = F.cross_entropy(model(x), y)
                if phase == "train":
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
    for loader in loaders.values():
        accuracy(model, loader)


def folds_with_new_models() -> None:
    for fold in range(3):
        model = Net()
        own = range(30 * fold, 30 * fold + 30)
        rest = [i for i in range(120) if i not in own]
        parts = (
            DataLoader(Subset(train_set, rest), 30),
            DataLoader(Subset(train_set, own), 30),
        )
        train(model, sgd(model), parts[0])
        accuracy(model, parts[1])


def folds_that_start_anew() -> None:
    model = Net()
    start = copy.deepcopy(model.state_dict())
    for fold in range(3):
        model.load_state_dict(start)
        own = range(30 * fold, 30 * fold + 30)
        rest = [i for i in range(120) if i not in own]
        parts = (
            DataLoader(Subset(train_set, rest), 30),
            DataLoader(Subset(train_set, own), 30),
        )
        train(model, sgd(model), parts[0])
        accuracy(model, parts[1])


def folds_whose_layers_are_drawn_anew() -> None:
    model = Net()
    for fold in range(3):
        for layer in (model.body[0], model.head):
            layer.reset_parameters()
        own = range(30 * fold, 30 * fold + 30)
        rest = [i for i in range(120) if i not in own]
        parts = (
            DataLoader(Subset(train_set, rest), 30),
            DataLoader(Subset(train_set, own), 30),
        )
        train(model, sgd(model), parts[0])
        accuracy(model, parts[1])


def shuffled_and_drawn_for_training_alone() -> None:
    model = Net()
    optimizer, weights = sgd(model), torch.rand(120).tolist()
    first = DataLoader(
        train_set, 50, sampler=WeightedRandomSampler(weights, 120), drop_last=True
    )
    second = DataLoader(test_set, 20, shuffle=True)
    for _ in range(2):
        train(model, optimizer, first)
        accuracy(model, first)
        accuracy(model, second)


def noise_on_the_training_side() -> None:
    class Noisy(TensorDataset):
        def __getitem__(self, index: int) -> Any:
            x, y = super().__getitem__(index)
            return x + 0.1 * torch.randn(8), y

    model, augmented = Net(), DataLoader(Noisy(*train_set.tensors), 30, shuffle=True)
    optimizer = sgd(model)
    for _ in range(2):
        train(model, optimizer, augmented)
        accuracy(model, held_out())


def features_of_the_training_set() -> None:
    model, loader = fitted(), train_loader()
    model.eval()
    with torch.no_grad():
        features = [model.body(x) for x, _ in loader]
    print(len(features))


def looks_at_validation_while_training() -> None:
    model, batches, others = Net(), train_loader(), held_out()
    optimizer, more = sgd(model), iter(others)
    for i, (x, y) in enumerate(batches):
        model.train()
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        if i % 2:
            model.eval()
            with torch.no_grad():
                a, b = next(more)
                print((model(a).argmax(1) == b).float().mean())
    accuracy(model, others)


HONEST: list[Act] = [
    both_sets_after_each_epoch,
    the_training_set_by_its_name,
    by_phases,
    folds_with_new_models,
    folds_that_start_anew,
    folds_whose_layers_are_drawn_anew,
    shuffled_and_drawn_for_training_alone,
    noise_on_the_training_side,
    features_of_the_training_set,
    looks_at_validation_while_training,
]


@pytest.mark.parametrize("act", HONEST, ids=lambda act: act.__name__)
def test_it_is_honest_and_nothing_is_said(act: Act) -> None:
    report = watched(act, "data", "weights")
    assert report.findings == []


def test_what_the_check_reads_changes_no_number() -> None:
    def act() -> list[torch.Tensor]:
        torch.manual_seed(3)
        model, loader = Net(), held_out()
        optimizer = sgd(model)
        for _ in range(2):
            train(model, optimizer)
            accuracy(model, loader)
        return [*(p.detach() for p in model.parameters()), torch.rand(3)]

    bare, guarded = act(), []
    watched(lambda: guarded.extend(act()), "data", "weights")
    assert all(torch.equal(a, b) for a, b in zip(bare, guarded, strict=True))
