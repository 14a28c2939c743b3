"""What `weights`, `data`, `scores` and `selection` cost: an evaluation of 100 batches, and a fit.

Run: ``python benchmarks/chain.py [--pairs 9]``. In one process fits run in turn, with the other
checks off: without these four, and with them. Evaluations are timed by the CPU time between their
first and last hook; the difference of the medians counts. Evaluations after the first ones are
told apart from those, in which sets are compared once.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_evalguard import EvalGuard
from lightning_evalguard.checks.registry import CHECKS

FOUR = ("weights", "data", "scores", "selection")
BATCHES, EPOCHS = 100, 4


class Net(pl.LightningModule):
    """Any net that gives (N, 10) logits, with a loss and an accuracy in its books."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        logits = self.net(batch[0])
        n = len(batch[1])
        self.log("val_loss", F.cross_entropy(logits, batch[1]), batch_size=n)
        self.log("val_acc", (logits.argmax(1) == batch[1]).float().mean(), batch_size=n)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 1e-3)


def mlp() -> tuple[nn.Module, tuple[int, ...]]:
    return nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10)), (784,)


def conv() -> tuple[nn.Module, tuple[int, ...]]:
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    return net, (3, 32, 32)


class Clock(pl.Callback):
    """CPU time of each evaluation and of what comes before the first training step."""

    def __init__(self) -> None:
        self.evaluations: list[float] = []

    def on_validation_start(self, *args: Any) -> None:
        self.start = time.process_time()

    def on_validation_end(self, *args: Any) -> None:
        self.evaluations.append(time.process_time() - self.start)


def fit(
    make: Callable[[], tuple[nn.Module, tuple[int, ...]]], on: bool
) -> tuple[float, list[float]]:
    """CPU seconds of a whole fit, and of each of its evaluations."""
    torch.manual_seed(0)
    net, shape = make()
    samples = 64 * BATCHES
    val = TensorDataset(torch.randn(samples, *shape), torch.randint(0, 10, (samples,)))
    train = TensorDataset(torch.randn(640, *shape), torch.randint(0, 10, (640,)))
    off = CHECKS if not on else CHECKS - set(FOUR)
    guard = EvalGuard(metrics=None, record=None, **dict.fromkeys(off, "ignore"))  # type: ignore[arg-type]
    clock = Clock()
    best = ModelCheckpoint("/dev/shm", monitor="val_acc", mode="max", save_top_k=0)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=EPOCHS, logger=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
        callbacks=[clock, guard, best],
    )  # fmt: skip
    began = time.process_time()
    trainer.fit(Net(net), DataLoader(train, 64), DataLoader(val, 64))
    return time.process_time() - began, clock.evaluations


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=9)
    pairs = parser.parse_args().pairs
    logging.disable(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for make in (mlp, conv):
        fit(make, True)
        apart: dict[str, list[float]] = {"fit": [], "later": []}
        bare = []
        for i in range(pairs):
            order = (True, False) if i % 2 else (False, True)
            runs = {on: fit(make, on) for on in order}
            later = {on: statistics.median(each[1][2:]) for on, each in runs.items()}
            bare.append(later[False])
            apart["later"].append(later[True] - later[False])
            apart["fit"].append(runs[True][0] - runs[False][0])
        share = statistics.median(apart["later"]) / statistics.median(bare)
        print(
            f"{make.__name__}: an evaluation of {BATCHES} batches {statistics.median(bare):.3f} s, "
            f"{share:+.2%} with the four checks; a fit with {EPOCHS} evaluations "
            f"{statistics.median(apart['fit']) * 1e3:+.1f} ms"
        )


if __name__ == "__main__":
    main()
