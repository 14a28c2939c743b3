"""What several ranks log of one evaluation, one case after the other.

Run as ``python ranks_on_scores.py WORLD PORT FOLDER``: rank 0 saves what its guard found.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn
from torch.multiprocessing import start_processes
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torchmetrics.classification import MulticlassF1Score
from torchmetrics.functional.classification import multiclass_f1_score

from lightning_evalguard import EvalGuard
from ranks_on_data import made

_drawn = torch.Generator().manual_seed(0)
X = torch.randn(1400, 8, generator=_drawn)
Y = (X @ torch.randn(8, 3, generator=_drawn)).argmax(1)
Y[::3] = torch.randint(0, 3, (467,), generator=_drawn)
Answers = tuple[torch.Tensor, torch.Tensor]


class Stream(IterableDataset[Any]):
    """Each rank gets twice as much as the one before, which gets `first`."""

    def __init__(self, first: int) -> None:
        self.first = first

    def __iter__(self) -> Iterator[Any]:
        rank = int(os.environ["RANK"])
        begin = 400 + self.first * (2**rank - 1)
        for i in range(begin, begin + self.first * 2**rank):
            yield X[i], Y[i]


def uneven() -> Any:
    return Stream(60)


def odd() -> Any:
    return Stream(15)


def even() -> Any:
    return TensorDataset(X[400:1236], Y[400:1236])


class Net(pl.LightningModule):
    """Logs what `in_step` and `at_end` make of the answers."""

    def __init__(self, in_step: Any, at_end: Any) -> None:
        super().__init__()
        self.net = nn.Linear(8, 3)
        self.in_step, self.at_end = in_step, at_end
        self.f1 = MulticlassF1Score(3, average="macro")
        self.alone = MulticlassF1Score(3, average="macro", sync_on_compute=False)
        self.answers: list[Answers] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        logits = self.net(batch[0])
        self.answers.append((logits, batch[1]))
        if self.in_step is not None:
            self.in_step(self, logits, batch[1])
        return {"logits": logits, "target": batch[1]}

    def on_validation_epoch_end(self) -> None:
        logits, target = map(torch.cat, zip(*self.answers, strict=True))
        self.answers.clear()
        if self.at_end is not None:
            self.at_end(self, logits, target)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def right(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (logits.argmax(1) == y).float()


def f1(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return multiclass_f1_score(logits, y, 3)


def gathered(net: Net, x: torch.Tensor, y: torch.Tensor) -> Answers:
    return net.all_gather(x).flatten(0, 1), net.all_gather(y).flatten(0, 1)


def totals(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    mine = torch.stack([right(x, y).sum(), torch.tensor(float(len(y)))])
    right_ones, all_ones = net.all_gather(mine).sum(0)
    return right_ones / all_ones


def object_in_step(metric: str) -> Callable[[Net, torch.Tensor, torch.Tensor], None]:
    def log(net: Net, x: torch.Tensor, y: torch.Tensor) -> None:
        getattr(net, metric)(x, y)
        net.log("val_f1", getattr(net, metric))

    return log


def seconds(net: Net, x: torch.Tensor, y: torch.Tensor) -> None:
    net.log("val_seconds", torch.tensor(1.0 + net.global_rank), sync_dist=True)


def recall(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return right(x, y)[y == 1].mean()


def under_any_names(net: Net, x: torch.Tensor, y: torch.Tensor) -> None:
    net.log("target", right(x, y).mean(), sync_dist=True)
    net.log("wrong", 1 - right(x, y).mean(), sync_dist=True)
    net.log("best_of_ranks", f1(x, y), sync_dist=True, reduce_fx="max")
    net.log("right", right(x, y).sum(), sync_dist=True, reduce_fx="sum")
    every = gathered(net, x, y)
    net.log("val_recall_1", recall(*every), sync_dist=True)
    net.log("quality", f1(*every), sync_dist=True)


# of each case: the set, what the steps log, what is logged at the end
Case = tuple[Callable[[], Any], Any, Any]
HONEST: dict[str, Case] = {
    "accuracy of equal parts, averaged": (
        even, None, lambda n, x, y: n.log("val_acc", right(x, y).mean(), sync_dist=True)),
    "accuracy by batch": (
        even, lambda n, x, y: n.log("val_acc", right(x, y).mean(), sync_dist=True), None),
    "accuracy by batch, of uneven parts": (
        uneven, lambda n, x, y: n.log("val_acc", right(x, y).mean(), sync_dist=True), None),
    "loss of equal parts, averaged": (
        even, None, lambda n, x, y: n.log("val_loss", F.cross_entropy(x, y), sync_dist=True)),
    "F1 of gathered answers": (
        even, None, lambda n, x, y: n.log("val_f1", f1(*gathered(n, x, y)), rank_zero_only=True)),
    "F1 of gathered answers, averaged": (
        even, None, lambda n, x, y: n.log("val_f1", f1(*gathered(n, x, y)), sync_dist=True)),
    "totals of uneven parts": (
        uneven, None, lambda n, x, y: n.log("val_acc", totals(n, x, y), rank_zero_only=True)),
    "totals of uneven parts, averaged": (
        uneven, None, lambda n, x, y: n.log("val_acc", totals(n, x, y), sync_dist=True)),
    "something else of uneven parts, averaged": (uneven, None, seconds),
    "under any names": (even, None, under_any_names),
    "a metric object": (even, object_in_step("f1"), None),
}  # fmt: skip
LIES: dict[str, Case] = {
    "F1 averaged over ranks": (
        even, None, lambda n, x, y: n.log("val_f1", f1(x, y), sync_dist=True)),
    "accuracy of uneven parts, averaged": (
        uneven, None, lambda n, x, y: n.log("val_acc", right(x, y).mean(), sync_dist=True)),
    "loss of uneven parts, averaged": (
        uneven, lambda n, x, y: n.log("val_loss_by_batch", F.cross_entropy(x, y), sync_dist=True),
        lambda n, x, y: n.log("val_loss", F.cross_entropy(x, y), sync_dist=True)),
    "accuracy by batch, of an odd number": (
        odd, lambda n, x, y: n.log("val_acc", right(x, y).mean(), sync_dist=True), None),
    "F1 averaged over ranks, under any name": (
        even, None, lambda n, x, y: n.log("quality", f1(x, y), sync_dist=True)),
    "a class's recall averaged over ranks": (
        even, None, lambda n, x, y: n.log("val_recall_1", recall(x, y), sync_dist=True)),
    "accuracy of rank 0": (
        even, None, lambda n, x, y: n.log("val_acc", right(x, y).mean(), rank_zero_only=True)),
    "accuracy by batch, of rank 0": (
        even, lambda n, x, y: n.log("val_acc", right(x, y).mean()), None),
    "a metric object of rank 0": (even, object_in_step("alone"), None),
}  # fmt: skip


def main(rank: int, world: str, port: str, folder: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    happened = {}
    for name, (dataset, in_step, at_end) in (HONEST | LIES).items():
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": world, "NODE_RANK": "0",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        }  # fmt: skip
        torch.manual_seed(0)
        guard = EvalGuard(sync="ignore", record=None)
        trainer = made(guard, int(world))
        train = DataLoader(TensorDataset(X[:400], Y[:400]), 40)
        trainer.fit(Net(in_step, at_end), train, DataLoader(dataset(), 20))
        happened[name] = [
            (f.check, str(f.subject), f.fact) for f in guard.report.findings
        ]
    if rank == 0:
        torch.save(happened, f"{folder}/0.pt")


if __name__ == "__main__":
    start_processes(main, tuple(sys.argv[1:]), int(sys.argv[1]), start_method="fork")
