"""Long runs: does memory grow, does an evaluation slow down?

    python benchmarks/soak.py figures 200        # epochs with a figure each, in TensorBoard
    python benchmarks/soak.py evaluations 10000  # evaluations of a tiny model in one fit

Prints resident memory and the time of an evaluation, at ten points of the run.
"""

from __future__ import annotations

import gc
import logging
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_evalguard import EvalGuard


class Tiny(pl.LightningModule):
    """A linear classifier of points."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.1), nn.Linear(8, 10))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


class Watch(pl.Callback):
    """Memory and the time from the start of a validation to its end, as a fit goes on."""

    def __init__(self, total: int) -> None:
        self.every, self.times, self.rows = (
            max(1, total // 10),
            list[float](),
            list[str](),
        )
        self.memory: list[float] = []
        self.began = 0.0

    def on_validation_start(self, *_: Any) -> None:
        self.began = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.sanity_checking:
            return
        self.times.append(time.perf_counter() - self.began)
        if len(self.times) % self.every == 0:
            gc.collect()
            took = statistics.median(self.times[-self.every :]) * 1e3
            self.memory.append(resident())
            print(
                f"{len(self.times):>7,} {self.memory[-1]:9.1f} MiB {took:9.2f} ms",
                flush=True,
            )


def resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def loader(seed: int, n: int) -> DataLoader[Any]:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 8, generator=draw)
    return DataLoader(
        TensorDataset(x, torch.randint(10, (n,), generator=draw)), batch_size=16
    )


def main(kind: str = "figures", total: str = "200") -> None:
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    watch = Watch(int(total))
    with tempfile.TemporaryDirectory() as folder:
        logger = TensorBoardLogger(folder) if kind == "figures" else False
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=int(total), logger=logger, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
            callbacks=[EvalGuard(), watch], default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(Tiny(), loader(0, 16), loader(1, 32))
    grown = watch.memory[-1] - watch.memory[1]
    print(f"memory after the first fifth: {grown:+.1f} MiB")


if __name__ == "__main__":
    main(*sys.argv[1:])
