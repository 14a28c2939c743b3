"""Which samples and whose weights several ranks evaluate, one case after the other.

Run as ``python ranks_on_data.py WORLD PORT FOLDER [CASE ...]``: each rank saves what its guard
found.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.multiprocessing import start_processes
from torch.nn import functional as F
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    IterableDataset,
    TensorDataset,
    get_worker_info,
)

from lightning_evalguard import EvalGuard

_drawn = torch.Generator().manual_seed(0)
X, Y = (
    torch.randn(700, 8, generator=_drawn),
    torch.randint(0, 3, (700,), generator=_drawn),
)
TRAIN, VAL = range(400), range(400, 520)


class Net(pl.LightningModule):
    """On rank `odd` the weights are others."""

    def __init__(self, odd: int | None = None) -> None:
        super().__init__()
        self.net = nn.Linear(8, 3)
        self.odd = odd

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(
        self, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> Any:
        return {"logits": self.net(batch[0]), "target": batch[1]}

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        return self.validation_step(batch, batch_idx)

    def on_validation_start(self) -> None:
        self._shift(1)

    def on_validation_end(self) -> None:
        self._shift(-1)

    def _shift(self, by: int) -> None:
        if self.global_rank == self.odd:
            with torch.no_grad():
                self.net.weight.add_(by)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


class Stream(IterableDataset[Any]):
    """Samples in a stream, shared out to ranks and workers or not."""

    def __init__(self, places: range, shared: bool) -> None:
        self.places, self.shared = places, shared

    def __iter__(self) -> Iterator[Any]:
        first, every = 0, 1
        if self.shared:
            first, every = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            worker = get_worker_info()
            if worker is not None:
                first = first * worker.num_workers + worker.id
                every *= worker.num_workers
        for i in self.places[first::every]:
            yield X[i], Y[i]


def rows(places: range) -> TensorDataset:
    return TensorDataset(X[places.start : places.stop], Y[places.start : places.stop])


def batches(dataset: Any, **kwargs: Any) -> DataLoader[Any]:
    return DataLoader(dataset, 16, **kwargs)


Act = Callable[[pl.Trainer, Path], Any]
CASES: dict[str, Act] = {}


def fitted(val: Any, train: Any = None, net: Callable[[], Net] = Net) -> Act:
    def act(trainer: pl.Trainer, folder: Path) -> None:
        trainer.fit(
            net(), batches(rows(TRAIN)) if train is None else batches(train), val()
        )

    return act


def seen_in_training(trainer: pl.Trainer, folder: Path) -> None:
    net = Net()
    trainer.fit(net, batches(rows(TRAIN)), batches(rows(VAL)))
    trainer.test(net, batches(rows(TRAIN)), verbose=False)


CASES |= {
    "apart": fitted(lambda: batches(rows(VAL))),
    "apart, with a padded tail": fitted(lambda: batches(rows(range(400, 517)))),
    "apart, in streams": fitted(
        lambda: batches(Stream(VAL, True)), Stream(TRAIN, True)
    ),
    "apart, by workers": fitted(lambda: batches(Stream(VAL, True), num_workers=2)),
    "a stream by every rank": fitted(lambda: batches(Stream(VAL, False))),
    "a stream by every worker": fitted(
        lambda: batches(Stream(VAL, False), num_workers=2)
    ),
    "not dealt out": fitted(lambda: batches(rows(VAL))),
    "a set twice": fitted(lambda: batches(ConcatDataset([rows(VAL)] * 2))),
    "a leak": fitted(lambda: batches(rows(range(300, 420)))),
    "a leak of streams": fitted(
        lambda: batches(Stream(range(100, 220), True)), Stream(TRAIN, True)
    ),
    "tested on the training set": seen_in_training,
    "training watched beside": fitted(
        lambda: [batches(rows(VAL)), batches(rows(TRAIN))]
    ),
    "replicas": fitted(lambda: batches(rows(VAL)), net=lambda: Net(odd=1)),
    "outcomes": fitted(lambda: batches(rows(range(400, 517)))),
}


def made(guard: EvalGuard, world: int, **kwargs: Any) -> pl.Trainer:
    gloo = DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=60))
    return pl.Trainer(
        accelerator="cpu", devices=world, strategy=gloo if world > 1 else "auto", max_epochs=1,
        logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[guard], num_sanity_val_steps=0, **kwargs,
    )  # fmt: skip


def main(rank: int, world: str, port: str, folder: str, *only: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    happened = {}
    for name in only or CASES:
        # a trainer that is done takes them away
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": world, "NODE_RANK": "0",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        }  # fmt: skip
        torch.manual_seed(0)
        keeps = name == "outcomes"
        guard = EvalGuard(
            sync="ignore",
            state="ignore",
            outcomes=keeps,
            record=folder if keeps else None,
        )
        trainer = made(
            guard, int(world), use_distributed_sampler=name != "not dealt out"
        )
        CASES[name](trainer, Path(folder))
        result = guard.report.confusion["val"]
        found = [(f.check, str(f.subject), f.fact) for f in guard.report.findings]
        happened[name] = (found, result.total, list(guard.report.notes))
    torch.save(happened, f"{folder}/{rank}.pt")


if __name__ == "__main__":
    # forked: what takes long, the imports, is done once
    start_processes(main, tuple(sys.argv[1:]), int(sys.argv[1]), start_method="fork")
