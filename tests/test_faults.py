"""A bug of our own costs one warning and what it broke, and never the training."""

from __future__ import annotations

import functools
import itertools
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_evalguard import EvalGuard, EvalGuardWarning
from lightning_evalguard.checks.batch.check import BatchCheck
from lightning_evalguard.checks.data.check import DataCheck
from lightning_evalguard.checks.grad import GradCheck
from lightning_evalguard.checks.modes.check import ModesCheck
from lightning_evalguard.checks.rng import RngCheck
from lightning_evalguard.checks.state.check import StateCheck
from lightning_evalguard.checks.stochastic.check import StochasticCheck
from lightning_evalguard.checks.sync.check import SyncCheck
from lightning_evalguard.confusion import figure as plot
from lightning_evalguard.confusion import first_step, loader, recorder
from lightning_evalguard.confusion import loggers as sinks
from lightning_evalguard.instruments import lines as _lines
from lightning_evalguard.instruments import replay as _replay
from lightning_evalguard.trainer import training_score

CHECKS = (
    ModesCheck, GradCheck, StateCheck, StochasticCheck, BatchCheck, RngCheck, DataCheck, SyncCheck,
)  # fmt: skip
EVENTS = (
    "open", "close", "start", "stop", "before_step", "after_step", "before_train_step",
    "after_train_step", "before_move", "after_move", "tripped", "watch", "saw", "standing",
    "steps_over",
)  # fmt: skip
OF_CHECKS = [(c, e) for c, e in itertools.product(CHECKS, EVENTS) if e in vars(c)]
OF_OTHERS: list[tuple[Any, str]] = [
    *((recorder.Recorder, e) for e in ("start", "before_step", "after_step", "stop")),
    (first_step.FirstStep, "consider"),
    (loader.LoaderCount, "count"),
    (recorder, "reduced"),
    (recorder, "read_state"),
    (sinks, "_csv"),
    (plot, "figure"),
    (SyncCheck, "write"),
    (training_score.TrainingScore, "evaluate"),
    (_replay.Look, "again"),
    (_lines.LineTrace, "_look"),
]


class Net(pl.LightningModule):
    """Dropout, batch norm, a loss that is tapped and a score in a dict that is returned."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(4, 8),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(8, 3),
        )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        logits = self.net(batch[0])
        self.log("val_loss", F.cross_entropy(logits, batch[1]))
        return {"logits": logits, "target": batch[1]}

    def on_validation_epoch_end(self) -> None:
        self.log("ended", 1.0)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 0.01)

    def points(self, seed: int, n: int) -> DataLoader[Any]:
        draw = torch.Generator().manual_seed(seed)
        x = torch.randn(n, 4, generator=draw)
        return DataLoader(
            TensorDataset(x, (x[:, 0] > 0).long() + (x[:, 1] > 0)), batch_size=8
        )

    def train_dataloader(self) -> Any:
        return self.points(0, 32)

    def val_dataloader(self) -> Any:
        return self.points(1, 16)


def weights(folder: Path, *callbacks: pl.Callback, logged: bool = True) -> list[Tensor]:
    pl.seed_everything(0, verbose=False)
    module = Net()
    logger = CSVLogger(folder) if logged else False
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=2, logger=logger, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=list(callbacks),
    )  # fmt: skip
    trainer.fit(module)
    return [p.detach().clone() for p in (*module.parameters(), *module.buffers())]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> list[Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return weights(tmp_path_factory.mktemp("bare"))


def broken(patch: pytest.MonkeyPatch, owner: Any, name: str) -> list[int]:
    """Make something of ours raise whenever it is called; gives the number of calls."""
    calls: list[int] = []
    original = getattr(owner, name)

    @functools.wraps(original)
    def raises(*_: Any, **__: Any) -> Any:
        calls.append(1)
        if name == "close":  # what it puts back is not to be lost with it
            original(*_, **__)
        raise KeyError("planted")

    patch.setattr(owner, name, raises)
    return calls


def said_under(
    run: Callable[[], list[Tensor]], bare: list[Tensor]
) -> tuple[list[str], list[str]]:
    """Our warnings and all others, of a run that ends with the weights of the bare one."""
    tracing = sys.gettrace()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = run()
    assert all(torch.equal(a, b) for a, b in zip(bare, found, strict=True))
    assert sys.gettrace() is tracing
    ours = [w for w in said if issubclass(w.category, EvalGuardWarning)]
    return [str(w.message) for w in ours], [
        str(w.message) for w in said if w not in ours
    ]


@pytest.mark.parametrize(
    ("check", "event"), OF_CHECKS, ids=[f"{c.name}-{e}" for c, e in OF_CHECKS]
)
def test_a_check_that_fails_is_off_and_nothing_else(
    check: Any,
    event: str,
    bare: list[Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = broken(monkeypatch, check, event)
    guard = EvalGuard(rng="warn", record=None)
    # a picture of each matrix takes longer than the fit, and no check has to do with it
    ours, _ = said_under(lambda: weights(tmp_path, guard, logged=False), bare)
    failed = [text for text in ours if "planted" in text]
    assert len(failed) == bool(calls), ours
    # training draws from the generators anew in each epoch, as a loader's iterator does
    assert [t for t in ours if t not in failed and "[rng]" not in t] == []
    if calls:
        assert failed[0].startswith(
            f"the `{check.name}` check failed inside lightning-evalguard"
        )


@pytest.mark.parametrize(
    ("owner", "name"), OF_OTHERS, ids=[f"{o.__name__}-{n}" for o, n in OF_OTHERS]
)
def test_whatever_else_fails_costs_at_most_one_warning(
    owner: Any,
    name: str,
    bare: list[Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = broken(monkeypatch, owner, name)
    guard = EvalGuard(train_score=int(owner is training_score.TrainingScore))
    ours, _ = said_under(lambda: weights(tmp_path, guard), bare)
    assert len(ours) <= 1, ours
    if calls:
        assert ours or [note for note in guard.report.notes if "planted" in note]
