"""What the data check adds to a fit whose validation takes a tenth of the time.

    python benchmarks/data.py [--pairs 9] [--only images]

Whole fits with ``data="warn"`` and with ``data="ignore"``, in turn, every other check off; the
order alternates. Given are the median of the ratios of their seconds of the one thread that does
all the work (a busy machine moves those less than the clock), its range, and beside it the seconds
that the check's own methods took, as a share of the fit: what is left when the noise of two fits
is taken away.
"""

from __future__ import annotations

import argparse
import functools
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_evalguard import EvalGuard
from lightning_evalguard.checks.data.check import DataCheck

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore")
OFF = ("modes", "grad", "state", "stochastic", "batch", "rng", "sync")
METHODS = ("open", "close", "start", "before_step", "after_step", "steps_over", "stop")


class Net(pl.LightningModule):
    """Any net, which logs its loss."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-3)


class Read(Dataset[Any]):
    """Samples that are made when they are read, as from files."""

    def __init__(self, inner: TensorDataset, work: int) -> None:
        self.inner, self.work = inner, work

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, i: int) -> Any:
        x, y = self.inner[i]
        for _ in range(self.work):
            x = x.sin()
        return x, y


def loaders(shape: tuple[int, ...], n: int, size: int, wrap: Callable[[Any], Any]) -> Any:
    """`n` samples to train on, and a third as many to evaluate: about a tenth of the time."""
    made = [wrap(TensorDataset(torch.randn(m, *shape), torch.arange(m) % 10)) for m in (n, n // 3)]
    return {
        "train_dataloaders": DataLoader(made[0], size, shuffle=True),
        "val_dataloaders": DataLoader(made[1], size),
    }


def mlp() -> tuple[Any, Any]:
    """Small steps: 1 ms."""
    net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    return Net(net), loaders((64,), 24_000, 64, lambda d: d)


def images() -> tuple[Any, Any]:
    """A convolutional net on images in memory."""
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3, 2), nn.ReLU(), nn.Conv2d(32, 64, 3, 2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip
    return Net(net), loaders((3, 32, 32), 6_000, 32, lambda d: d)


def files() -> tuple[Any, Any]:
    """The same, each sample 0.3 ms of reading."""
    return images()[0], loaders((3, 32, 32), 4_000, 32, functools.partial(Read, work=30))


def seconds(make: Callable[[], Any], policy: str, epochs: int) -> float:
    torch.manual_seed(0)
    module, data = make()
    guard = EvalGuard(**dict.fromkeys(OFF, "ignore"), data=policy, metrics=None, audit="off")
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[guard],
    )  # fmt: skip
    start = time.thread_time()
    trainer.fit(module, **data)
    return time.thread_time() - start


class Spent:
    """Seconds inside the check's methods."""

    def __init__(self) -> None:
        self.seconds = 0.0
        for name in METHODS:
            setattr(DataCheck, name, self._timed(getattr(DataCheck, name)))

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.thread_time()
            try:
                return method(*args, **kwargs)
            finally:
                self.seconds += time.thread_time() - start

        return timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    torch.set_num_threads(1)
    spent = Spent()
    print("| fit of | seconds without | median ratio | range | inside the check |")
    print("|---|---|---|---|---|")
    for make in (mlp, images, files):
        if given.only not in make.__name__:
            continue
        seconds(make, "warn", 1)
        ratios, without, inside = [], [], []
        for i in range(given.pairs):
            took = {}
            for policy in ("warn", "ignore") if i % 2 else ("ignore", "warn"):
                spent.seconds = 0.0
                took[policy] = seconds(make, policy, given.epochs)
                if policy == "warn":
                    inside.append(spent.seconds / took[policy])
            ratios.append(took["warn"] / took["ignore"])
            without.append(took["ignore"])
        print(
            f"| {make.__name__} | {statistics.median(without):.2f} "
            f"| {statistics.median(ratios):.4f} | {min(ratios):.3f}-{max(ratios):.3f} "
            f"| {statistics.median(inside):.2%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
