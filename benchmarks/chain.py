"""What `weights`, `data`, `scores` and `selection` cost: an evaluation of 100 batches, and a fit.

Run: ``python benchmarks/chain.py [--pairs 9]``. In one process fits run in turn, under the default
guard with these four checks and without them, with few evaluations and with many. The medians of
the differences in CPU time tell what each evaluation costs, and what a fit costs once.
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

FOUR = ("weights", "data", "scores", "selection")
BATCHES = 100
FEW, MANY = (
    3,
    15,
)  # evaluations of a fit: sets and scores are compared closely in the first two


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


def fit(
    make: Callable[[], tuple[nn.Module, tuple[int, ...]]], on: bool, epochs: int
) -> float:
    """CPU seconds of a whole fit under the default guard, with the four checks or without."""
    torch.manual_seed(0)
    net, shape = make()
    samples = 64 * BATCHES
    val = TensorDataset(torch.randn(samples, *shape), torch.randint(0, 10, (samples,)))
    train = TensorDataset(torch.randn(640, *shape), torch.randint(0, 10, (640,)))
    off = () if on else FOUR
    guard = EvalGuard(record=None, **dict.fromkeys(off, "ignore"))  # type: ignore[arg-type]
    best = ModelCheckpoint("/dev/shm", monitor="val_acc", mode="max", save_top_k=0)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, callbacks=[guard, best],
    )  # fmt: skip
    began = time.process_time()
    trainer.fit(Net(net), DataLoader(train, 64), DataLoader(val, 64))
    return time.process_time() - began


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
    parser.add_argument("--pairs", type=int, default=9)
    pairs = parser.parse_args().pairs
    logging.disable(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for make in (mlp, conv):
        alone = statistics.median(bare(make) for _ in range(5))
        fit(make, True, FEW)
        apart: dict[int, list[float]] = {FEW: [], MANY: []}
        for i in range(pairs):
            for epochs in (FEW, MANY):
                order = (True, False) if i % 2 else (False, True)
                took = {on: fit(make, on, epochs) for on in order}
                apart[epochs].append(took[True] - took[False])
        few, many = (statistics.median(apart[epochs]) for epochs in (FEW, MANY))
        each = (many - few) / (MANY - FEW)
        print(
            f"{make.__name__}: an evaluation of {BATCHES} batches takes {alone:.3f} s; the four "
            f"checks add {each * 1e3:.1f} ms ({each / alone:.1%}) to each, and "
            f"{(few - FEW * each) * 1e3:.0f} ms once a fit"
        )


if __name__ == "__main__":
    main()
