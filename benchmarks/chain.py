"""What `weights`, `data`, `scores` and `selection` cost: an evaluation of 100 batches, and a fit.

Run: ``python benchmarks/chain.py [--pairs 7]``. In one process fits run in turn, under the default
guard with these four checks and without them. An epoch of such a fit is one evaluation and ten
training steps. From the third epoch on each is taken to be alike: the median of all of them with
the checks, less that of all without, is what an evaluation costs. What is more in the first two
epochs, before and after, is what a fit costs once. All is CPU time.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_evalguard import EvalGuard

FOUR = ("weights", "data", "scores", "selection")
BATCHES = 100
EPOCHS = 12
ALIKE = 2  # sets and scores are compared closely in the first two evaluations


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
    """CPU seconds when each epoch begins, and when the last one is over."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.at.append(time.process_time())

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.at.append(time.process_time())

    @property
    def alike(self) -> list[float]:
        """Seconds of each epoch but the first ones, and but the last, which ends elsewhere."""
        return [b - a for a, b in pairwise(self.at)][ALIKE:-1]


def fit(
    make: Callable[[], tuple[nn.Module, tuple[int, ...]]], on: bool
) -> tuple[list[float], float]:
    """CPU seconds of each later epoch of a fit, with the four checks or without, and of the rest.

    Returns:
        The epochs that are alike, and all that is beside them.
    """
    torch.manual_seed(0)
    net, shape = make()
    samples = 64 * BATCHES
    val = TensorDataset(torch.randn(samples, *shape), torch.randint(0, 10, (samples,)))
    train = TensorDataset(torch.randn(640, *shape), torch.randint(0, 10, (640,)))
    off = () if on else FOUR
    guard = EvalGuard(record=None, **dict.fromkeys(off, "ignore"))  # type: ignore[arg-type]
    best = ModelCheckpoint("/dev/shm", monitor="val_acc", mode="max", save_top_k=0)
    clock = Clock()
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=EPOCHS, logger=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, callbacks=[clock, guard, best],
    )  # fmt: skip
    began = time.process_time()
    trainer.fit(Net(net), DataLoader(train, 64), DataLoader(val, 64))
    return clock.alike, time.process_time() - began - sum(clock.alike)


def bare(make: Callable[[], tuple[nn.Module, tuple[int, ...]]]) -> float:
    """CPU seconds of one evaluation without a guard."""
    torch.manual_seed(0)
    net, shape = make()
    samples = 64 * BATCHES
    val = TensorDataset(torch.randn(samples, *shape), torch.randint(0, 10, (samples,)))
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    module, loader = Net(net), DataLoader(val, 64)
    trainer.validate(module, loader, verbose=False)
    began = time.process_time()
    trainer.validate(module, loader, verbose=False)
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=7)
    pairs = parser.parse_args().pairs
    logging.disable(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for make in (mlp, conv):
        alone = statistics.median(bare(make) for _ in range(5))
        fit(make, True)
        alike: dict[bool, list[float]] = {True: [], False: []}
        others: dict[bool, list[float]] = {True: [], False: []}
        for i in range(pairs):
            for on in (True, False) if i % 2 else (False, True):
                epochs, beside = fit(make, on)
                alike[on] += epochs
                others[on].append(beside)
        each = statistics.median(alike[True]) - statistics.median(alike[False])
        beside = statistics.median(others[True]) - statistics.median(others[False])
        once = beside - (ALIKE + 1) * each
        print(
            f"{make.__name__}: an evaluation of {BATCHES} batches takes {alone:.3f} s; the four "
            f"checks add {each * 1e3:.1f} ms ({each / alone:.1%}) to each, and "
            f"{once * 1e3:.0f} ms once a fit"
        )


if __name__ == "__main__":
    main()
