"""Training draws the same random numbers with and without its evaluations, where that is asked."""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import words
from lightning_evalguard import EvalGuardError, EvalGuardWarning
from lightning_evalguard.callback import EvalGuard
from models.program import BATCH, CLASSES, FEATURES, Classifier, samples

MakeTrainer = Callable[..., pl.Trainer]
State = tuple[dict[str, Tensor], Tensor, object, object]


class Draws(Classifier):
    """Training shuffles, drops and augments; validation draws from every generator there is."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(FEATURES, 16), nn.Dropout(0.5), nn.Linear(16, CLASSES)
        )

    def train_dataloader(self) -> Any:
        return DataLoader(samples(1), batch_size=BATCH, shuffle=True)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x = batch[0] * random.random() + float(np.random.rand())
        return super().training_step([x, batch[1]], batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        random.random()
        np.random.rand()
        return super().validation_step(
            [torch.randn_like(batch[0]), batch[1]], batch_idx
        )


def trained(make: MakeTrainer, *callbacks: Any, **kwargs: Any) -> State:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    module = Draws()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EvalGuardWarning)
        make(callbacks=list(callbacks), max_epochs=3, **kwargs).fit(module)
    numpy = np.random.get_state()
    return (
        module.state_dict(),
        torch.get_rng_state(),
        random.getstate(),
        numpy[1].tobytes(),
    )


def same(a: State, b: State) -> bool:
    weights = all(torch.equal(t, b[0][name]) for name, t in a[0].items())
    return weights and torch.equal(a[1], b[1]) and a[2:] == b[2:]


def test_with_fix_training_is_the_same_with_and_without_validation(
    trainer: MakeTrainer,
) -> None:
    guard = EvalGuard(
        data="ignore", rng="fix", stochastic="ignore", metrics=None, sync="ignore"
    )
    guarded = trained(trainer, guard)
    assert same(guarded, trained(trainer, limit_val_batches=0))
    assert not same(guarded, trained(trainer))
    assert guard.report.findings == []


def test_by_default_the_guard_changes_no_generator(trainer: MakeTrainer) -> None:
    guard = EvalGuard(data="ignore", stochastic="ignore", metrics=None, sync="ignore")
    assert same(trained(trainer, guard), trained(trainer))


def test_with_warn_each_generator_that_moved_is_told(trainer: MakeTrainer) -> None:
    guard = EvalGuard(
        data="ignore", rng="warn", stochastic="ignore", metrics=None, sync="ignore"
    )
    trained(trainer, guard)
    assert [f.check for f in guard.report.findings] == ["rng"] * 3
    where, said = words.said(guard.report.findings[0]).split(": ", 1)
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    draw = next(n for n, line in enumerate(lines, 1) if "randn_like(batch[0])" in line)
    assert where.endswith(f"test_rng.py:{draw}")
    assert said == (
        "the evaluation moved torch's global generator in its steps, expected training "
        "to draw the same numbers with and without it (3x). "
        "Evaluating more often gives another model. Draw from a generator of its own, or "
        'pass rng="fix". [rng]'
    )
    # Lightning isolates the sanity check
    assert guard.report.findings[0].stage == "validate"


def test_the_seed_that_a_loader_draws_is_told_apart(trainer: MakeTrainer) -> None:
    guard = EvalGuard(data="ignore", rng="error", metrics=None, sync="ignore")
    with pytest.raises(
        EvalGuardError, match=r"outside its steps \(each `iter\(DataLoader\)`"
    ):
        trainer(callbacks=[guard]).fit(Classifier())


def test_a_loader_with_a_generator_of_its_own_is_left_alone(
    trainer: MakeTrainer,
) -> None:
    class Own(Classifier):
        def val_dataloader(self) -> Any:
            return DataLoader(samples(2), batch_size=BATCH, generator=torch.Generator())

    guard = EvalGuard(data="ignore", rng="error", metrics=None, sync="ignore")
    trainer(callbacks=[guard]).fit(Own())
    assert guard.report.findings == []


def test_with_fix_generators_come_back_after_an_exception_too(
    trainer: MakeTrainer,
) -> None:
    class Fails(Draws):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            super().validation_step(batch, batch_idx)
            raise KeyError("x")

    guard = EvalGuard(
        data="ignore", rng="fix", stochastic="ignore", metrics=None, sync="ignore"
    )
    made = trainer(callbacks=[guard], num_sanity_val_steps=0)
    module = Fails()
    before = torch.get_rng_state(), random.getstate()
    with contextlib.suppress(KeyError):
        made.validate(module, verbose=False)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
