"""The training score is `validate`'s on the same samples, and training knows nothing of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from lightning_evalguard import EvalGuard, EvalGuardWarning
from models.data import Stream
from models.program import CLASSES, FEATURES, Classifier, samples

Make = Callable[..., pl.Trainer]
QUIET: dict[str, Any] = {"sync": "ignore"}


class Scored(Classifier):
    """Dropout, batch norm, a metric object, a list that the epoch's end reads, a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(FEATURES, 16),
            nn.BatchNorm1d(16),
            nn.Dropout(0.5),
            nn.Linear(16, CLASSES),
        )
        self.acc = MulticlassAccuracy(CLASSES)
        self.own = MeanMetric()
        self.kept: list[Tensor] = []
        self.seen = torch.zeros(())

    def train_dataloader(self) -> Any:
        return DataLoader(samples(1), batch_size=4, shuffle=True)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        logits = self(batch[0])
        loss = F.cross_entropy(logits, batch[1])
        self.acc(logits, batch[1])
        self.own.update(loss)
        self.kept.append(loss)
        self.log("val_loss", loss)
        self.log("val/acc", self.acc)
        return {"logits": logits, "target": batch[1]}

    def on_validation_epoch_end(self) -> None:
        self.log("val_own", self.own.compute())
        self.log("val_kept", torch.stack(self.kept).mean())
        self.own.reset()
        self.kept.clear()


def state_of(module: pl.LightningModule) -> list[Any]:
    numpy = np.random.get_state()[1].tobytes()
    held = [t.clone() for t in module.state_dict().values()]
    return [*held, torch.get_rng_state(), random.getstate(), numpy]


def fitted(
    make: Make, guard: EvalGuard, module: Any = None, **kwargs: Any
) -> pl.Trainer:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    module = Scored() if module is None else module()
    run = make(callbacks=[guard], **kwargs)
    run.fit(module)
    return run


def same(a: list[Any], b: list[Any]) -> bool:
    pairs = zip(a, b, strict=True)
    return all(torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in pairs)


def test_the_score_is_what_validate_gives_on_the_same_batches(trainer: Make) -> None:
    run = fitted(trainer, EvalGuard(train_score=3, **QUIET))
    held = dict(run.callback_metrics)
    some = Subset(samples(1), [i * 16 // 12 for i in range(12)])
    module = run.lightning_module
    # on training samples on purpose
    plain = trainer(callbacks=[EvalGuard(data="ignore", **QUIET)])
    (other,) = plain.validate(module, DataLoader(some, batch_size=4), verbose=False)
    for score, key in (
        ("loss", "val_loss"),
        ("acc", "val/acc"),
        ("f1_macro", "val/f1_macro"),
    ):
        assert held[f"train_eval/{score}"].item() == other[key]
        assert (
            held[f"train_eval/{score}_gap"] == held[f"train_eval/{score}"] - held[key]
        )


def test_training_and_validation_are_the_same_bit_for_bit(trainer: Make) -> None:
    runs = [
        fitted(trainer, EvalGuard(train_score=n, **QUIET), max_epochs=3) for n in (0, 2)
    ]
    modules = [run.lightning_module for run in runs]
    assert same(*map(state_of, modules))
    assert [m.training for m in modules[0].modules()] == [
        m.training for m in modules[1].modules()
    ]
    without, beside = (dict(run.callback_metrics) for run in runs)
    assert {k for k in beside if not k.startswith("train_eval/")} == set(without)
    assert all(torch.equal(beside[k], v) for k, v in without.items())
    assert "train_eval/loss" in beside


def test_what_dropout_does_is_measured_on_the_same_weights(trainer: Make) -> None:
    class Still(Scored):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(FEATURES, CLASSES))

    random_too = fitted(trainer, EvalGuard(train_score=2, **QUIET)).callback_metrics
    assert random_too["train_eval/loss_dropout"] != 0
    still = fitted(trainer, EvalGuard(train_score=2, **QUIET), Still).callback_metrics
    assert still["train_eval/loss_dropout"] == 0


def test_the_sanity_check_is_left_out(trainer: Make) -> None:
    guard = EvalGuard(train_score=1, **QUIET)
    trainer(callbacks=[guard], limit_train_batches=0).fit(Scored())
    assert not any("train_eval" in note for note in guard.report.notes)


class Augmented(Dataset[Any]):
    """Samples with a transform, as torchvision's datasets have one."""

    def __init__(self, transform: Callable[[Tensor], Tensor] | None, seed: int) -> None:
        self.inner, self.transform = samples(seed), transform

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, i: int) -> Any:
        x, y = self.inner[i]
        return (self.transform(x) if self.transform else x), y


def noisy(x: Tensor) -> Tensor:
    return x + torch.randn_like(x)


def test_augmentation_is_taken_off_where_the_validation_set_says_how(
    trainer: Make,
) -> None:
    class Split(Scored):
        def train_dataloader(self) -> Any:
            return DataLoader(
                Subset(Augmented(noisy, 1), range(16)), batch_size=4, shuffle=True
            )

        def val_dataloader(self) -> Any:
            return DataLoader(Augmented(None, 2), batch_size=4)

    guard = EvalGuard(train_score=4, **QUIET)
    run = fitted(trainer, guard, Split)
    held = run.callback_metrics["train_eval/loss"].item()
    bare = trainer(callbacks=[EvalGuard(data="ignore", **QUIET)])
    calm = DataLoader(samples(1), batch_size=4)
    (other,) = bare.validate(run.lightning_module, calm, verbose=False)
    assert held == other["val_loss"]
    assert (
        "train_eval: 16 of 16 training samples, evenly spaced, under the transforms of the "
        "validation set" in guard.report.notes
    )


def test_augmentation_that_stays_is_told_and_the_same_each_time(trainer: Make) -> None:
    class Noisy(Scored):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(FEATURES, CLASSES)

        def train_dataloader(self) -> Any:
            return DataLoader(Augmented(noisy, 1), batch_size=4)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    guard, seen = EvalGuard(train_score=4, **QUIET), []

    class Reads(pl.Callback):
        def on_validation_end(
            self, trainer: pl.Trainer, pl_module: pl.LightningModule
        ) -> None:
            seen.append(trainer.callback_metrics.get("train_eval/acc"))

    run = trainer(callbacks=[guard, Reads()], max_epochs=2, num_sanity_val_steps=0)
    run.fit(Noisy())
    assert seen[0] == seen[1]
    assert any("with their random augmentation" in note for note in guard.report.notes)


@pytest.mark.parametrize("loaders", ["stream", "two"])
def test_where_it_cannot_be_taken_one_sentence_says_so(
    trainer: Make, loaders: str
) -> None:
    class Other(Scored):
        def train_dataloader(self) -> Any:
            if loaders == "stream":
                return DataLoader(Stream(restarts=True), batch_size=4)
            return [DataLoader(samples(s), batch_size=4) for s in (1, 3)]

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(
                batch if loaders == "stream" else batch[0], batch_idx
            )

    guard = EvalGuard(train_score=1, data="ignore", **QUIET)
    with pytest.warns(EvalGuardWarning, match="no training score: TypeError"):
        fitted(trainer, guard, Other, max_epochs=2)
    assert sum("train_eval" in note for note in guard.report.notes) == 1


def test_a_number_of_batches_is_asked_for() -> None:
    with pytest.raises(ValueError, match="train_score=-1"):
        EvalGuard(train_score=-1)
