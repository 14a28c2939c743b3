"""`evaluating` around an evaluator of pytorch-ignite."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_evalguard import EvalGuardError, evaluating, watch

pytest.importorskip("ignite")
from ignite.engine import (
    Engine,
    Events,
    create_supervised_evaluator,
    create_supervised_trainer,
)
from ignite.metrics import Accuracy

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2)
    )


def loader(n: int = 24, seed: int = 0) -> DataLoader[Any]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=g)
    return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), 6)


def test_each_mode_comes_back_after_the_evaluator() -> None:
    net = model()
    net[1].eval()
    evaluator = create_supervised_evaluator(net, {"accuracy": Accuracy()})
    with evaluating(net) as report:
        evaluator.run(loader())
    assert [m.training for m in net] == [True, False, True, True]
    assert (report.checked["batches"], report.findings) == (4, [])


def test_an_evaluator_that_wakes_a_module_is_stopped_at_the_line() -> None:
    net = model()

    def step(engine: Engine, batch: Any) -> Any:
        net[2].train()
        return net(batch[0])

    with (
        pytest.raises(EvalGuardError, match=r"`2` \(Dropout\).*test_ignite.py"),
        evaluating(net),
    ):
        Engine(step).run(loader())


def test_a_watched_training_with_its_evaluator_is_silent() -> None:
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    trainer = create_supervised_trainer(net, optimizer, nn.CrossEntropyLoss())
    evaluator = create_supervised_evaluator(net, {"accuracy": Accuracy()})
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda: evaluator.run(loader(18, 1))
    )
    with watch(sync="ignore") as report:
        trainer.run(loader(), max_epochs=2)
    assert report.findings == []
    assert report.checked["evaluations"] == 2


def test_a_watched_evaluator_without_eval_is_found() -> None:
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    trainer = create_supervised_trainer(net, optimizer, nn.CrossEntropyLoss())

    def step(engine: Engine, batch: Any) -> Any:
        with torch.no_grad():
            return net(batch[0]), batch[1]

    evaluator = Engine(step)
    Accuracy().attach(evaluator, "accuracy")
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda: evaluator.run(loader(18, 1))
    )
    with (
        watch(sync="ignore") as report,
        pytest.warns(match="in train mode while it is evaluated"),
    ):
        trainer.run(loader(), max_epochs=2)
    (finding,) = report.findings
    assert finding.expression == "net(batch[0])"
