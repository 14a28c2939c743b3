"""Metric objects of a script that are never reset, and those whose total is meant."""

from __future__ import annotations

import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from learning import Net, sgd, test_set, train, train_loader, watched
from learning import test_loader as held_out
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score


def evaluate(model: nn.Module, metric: Any, loader: Any = None) -> None:
    model.eval()
    with torch.no_grad():
        for x, y in loader or held_out():
            metric.update(model(x), y)


def epochs(
    metric: Any, reset: bool = False, after: Callable[[Any], Any] | None = None
) -> None:
    model = Net()
    optimizer = sgd(model)
    for _ in range(3):
        train(model, optimizer)
        if reset:
            metric.reset()
        evaluate(model, metric)
        (after or (lambda m: m.compute()))(metric)


@pytest.mark.parametrize(
    "make",
    [
        lambda: MulticlassAccuracy(3),
        lambda: MetricCollection([MulticlassAccuracy(3), MulticlassF1Score(3)]),
    ],
    ids=["one", "a collection"],
)
def test_a_metric_that_is_never_reset_is_found(make: Callable[[], Any]) -> None:
    report = watched(lambda: epochs(make()), "scores")
    assert report.findings
    for finding in report.findings:
        assert finding.check == "scores"
        assert "still held 2 updates from the evaluation before" in finding.fact
        assert not finding.certain
        assert "test_plain_metrics.py" in (finding.location or "")


def test_a_metric_that_is_reset_is_none() -> None:
    assert watched(lambda: epochs(MulticlassAccuracy(3), True), "scores").findings == []


def resets(metric: Any) -> None:
    metric.compute()
    metric.reset()


def test_a_reset_after_the_value_is_asked_is_none() -> None:
    act = lambda: epochs(MulticlassAccuracy(3), after=resets)  # noqa: E731
    assert watched(act, "scores").findings == []


def folds() -> None:
    """One value of all folds, each predicted by a model of its own."""
    pooled = MulticlassAccuracy(3)
    for _ in range(3):
        model = Net()
        train(model, sgd(model))
        evaluate(model, pooled)
        pooled.compute()


def several_loaders() -> None:
    """One value of several loaders."""
    model, pooled = Net(), MulticlassAccuracy(3)
    train(model, sgd(model))
    for size in (10, 20, 40):
        evaluate(model, pooled, DataLoader(test_set, size))
        pooled.compute()


def running_in_training() -> None:
    """The accuracy of training so far, asked every other step, and an evaluation between."""
    model, metric = Net(), MulticlassAccuracy(3)
    optimizer = sgd(model)
    for _ in range(3):
        model.train()
        for i, (x, y) in enumerate(train_loader()):
            logits = model(x)
            optimizer.zero_grad()
            F.cross_entropy(logits, y).backward()
            optimizer.step()
            metric.update(logits, y)
            if i % 2:
                metric.compute()
        evaluate(model, MulticlassAccuracy(3))


def per_batch_values() -> None:
    """`forward` gives the value of each batch; the total is reset."""
    model, metric = Net(), MulticlassAccuracy(3)
    optimizer = sgd(model)
    for _ in range(3):
        train(model, optimizer)
        model.eval()
        with torch.no_grad():
            for x, y in held_out():
                metric(model(x), y)
        metric.compute()
        metric.reset()


def asked_once() -> None:
    """A total over all epochs that is asked when they are over."""
    model, metric = Net(), MulticlassAccuracy(3)
    optimizer = sgd(model)
    for _ in range(3):
        train(model, optimizer)
        evaluate(model, metric)
    metric.compute()


@pytest.mark.parametrize(
    "act",
    [folds, several_loaders, running_in_training, per_batch_values, asked_once],
)
def test_a_total_that_is_meant_is_none(act: Callable[[], None]) -> None:
    assert watched(act, "scores").findings == []


def test_the_metric_is_left_as_it_was() -> None:
    metric = MulticlassAccuracy(3)
    before = set(vars(metric))
    watched(lambda: epochs(metric, reset=True), "scores")
    assert set(vars(metric)) == before
    assert "evalguard" not in repr(metric.compute)


def test_a_copy_of_a_metric_is_its_own_and_pickles() -> None:
    metric = MulticlassAccuracy(3)
    held: list[Any] = []

    def copied(one: Any) -> None:
        one.compute()
        twin = one.clone()
        count = one.update_count
        twin.reset()
        held.append((one.update_count == count, twin.update_count))
        held.append(pickle.loads(pickle.dumps(one)).update_count == count)

    watched(lambda: epochs(metric, after=copied), "scores")
    assert held == [(True, 0), True] * 3


def test_no_metric_is_kept_alive() -> None:
    gone: list[Any] = []

    def act() -> None:
        model = Net()
        optimizer = sgd(model)
        for _ in range(3):
            train(model, optimizer)
            metric = MulticlassAccuracy(3)
            evaluate(model, metric)
            metric.compute()
            before = weakref.ref(metric)
            del metric
            gc.collect()
            gone.append(before() is None)

    assert watched(act, "scores").findings == []
    assert gone == [True] * 3
