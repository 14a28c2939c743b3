"""What each of two processes does with a Trainer, one scenario after the other.

Run as ``python ranks_in_trainer.py PORT FOLDER [SCENARIO ...]``. What one raises is caught and the
process stays alive for the next: a rank that waits for another would be seen by its time.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.multiprocessing import start_processes
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_evalguard import ConfusionMetrics, EvalGuard, Report
from lightning_evalguard import ranks as _ranks
from lightning_evalguard.audit import Replays, why_not_again
from lightning_evalguard.checks.batch.check import BatchCheck
from lightning_evalguard.checks.check import Check, Moment
from lightning_evalguard.checks.grad import GradCheck
from lightning_evalguard.checks.modes.check import ModesCheck
from lightning_evalguard.checks.state.check import StateCheck
from lightning_evalguard.checks.stochastic.check import StochasticCheck
from lightning_evalguard.confusion import sources
from lightning_evalguard.guard import Guard

CLASSES = 3


def data(n: int = 27) -> TensorDataset:
    g = torch.Generator().manual_seed(n)
    return TensorDataset(
        torch.randn(n, 4, generator=g), torch.randint(0, CLASSES, (n,), generator=g)
    )


class Net(pl.LightningModule):
    """Does `act` at one place on one rank."""

    def __init__(
        self,
        at: str = "",
        batch: int = 0,
        act: Callable[[Net], Any] | None = None,
        rank: int = 1,
    ) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, CLASSES)
        )
        self.planted = (at, batch, rank)
        self.act = act or wake
        self.seen = 0

    def plant(self, at: str, batch: int = 0) -> None:
        if (at, batch, self.global_rank) == self.planted:
            self.act(self)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.plant("training_step", self.seen)
        self.seen += 1
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        stage = "sanity" if self.trainer.sanity_checking else "validation_step"
        self.plant(stage, batch_idx)
        return {"logits": self.net(batch[0]), "target": batch[1]}

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        self.plant("test_step", batch_idx)
        return {"logits": self.net(batch[0]), "target": batch[1]}

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        self.plant("predict_step", batch_idx)
        return self.net(batch[0])

    def on_validation_epoch_end(self) -> None:
        self.plant("on_validation_epoch_end")

    def on_validation_end(self) -> None:
        self.plant("on_validation_end")

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.01)


class NetWithCollectives(Net):
    """Its own logging takes part in a collective at every step."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        outputs = super().validation_step(batch, batch_idx)
        self.log("v", outputs["logits"].mean(), sync_dist=True)
        return outputs


def wake(net: Net) -> None:
    net.net[1].train()


def doze(net: Net) -> None:
    net.net[1].eval()


def write(net: Net) -> None:
    with torch.no_grad():
        net.net[0].weight.add_(1)


def fail(net: Net) -> None:
    raise ValueError("bad target on rank 1 only")


def loader(n: int = 27, batch_size: int = 4) -> DataLoader[Any]:
    return DataLoader(data(n), batch_size)


def trainer(*callbacks: Any, **kwargs: Any) -> pl.Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 2,
        "strategy": DDPStrategy(
            process_group_backend="gloo", timeout=timedelta(seconds=30)
        ),
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": list(callbacks),
    }
    return pl.Trainer(**(settings | kwargs))


SCENARIOS: dict[str, Callable[[EvalGuard], Any]] = {}


def scenario(act: Callable[[EvalGuard], Any]) -> Callable[[EvalGuard], Any]:
    SCENARIOS[act.__name__] = act
    return act


def collectives() -> int:
    """How many collectives this process has started: the process group's own count."""
    return int(
        dist.distributed_c10d._get_default_group()._get_sequence_number_for_group()
    )


@scenario
def clean(guard: EvalGuard) -> Any:
    """Epochs, keys in the store and collectives; those of the bare run apart."""
    started: dict[str, list[int]] = {"bare": [], "guarded": []}
    keys: list[int] = []

    class Count(pl.Callback):
        def __init__(self, into: list[int]) -> None:
            self.into = into

        def on_validation_start(self, *args: Any) -> None:
            self.before = collectives()

        def on_train_epoch_start(self, *args: Any) -> None:
            if hasattr(self, "before"):
                self.into.append(collectives() - self.before)
            store = dist.distributed_c10d._get_default_store()
            keys.append(store.num_keys())

    for name, callbacks in (("bare", []), ("guarded", [guard])):
        made = trainer(*callbacks, Count(started[name]), max_epochs=5)
        made.fit(NetWithCollectives(), loader(16), loader())
    # of the guarded run from its second epoch on, beyond the most that the bare one has
    ours = max(keys[6:]) - max(keys[:5])
    return started, ours, guard.report.confusion["val"].total


def fit(*args: Any, net: type[Net] = Net, **kwargs: Any) -> Callable[[EvalGuard], Any]:
    def act(guard: EvalGuard) -> Any:
        trainer(guard, **kwargs).fit(net(*args), loader(16), loader())

    return act


def alone(name: str, *args: Any) -> Callable[[EvalGuard], Any]:
    def act(guard: EvalGuard) -> Any:
        kwargs = {} if name == "predict" else {"verbose": False}
        n = 28 if name == "predict" else 27  # predict repeats none
        getattr(trainer(guard), name)(Net(*args), loader(n), **kwargs)
        return (
            guard.report.confusion["val"].total
            if "val" in guard.report.confusion
            else None
        )

    return act


SCENARIOS |= {
    "sanity check": fit("sanity", 1),
    "first batch": fit("validation_step", 0, num_sanity_val_steps=0),
    "first batch, own collectives": fit("validation_step", 1, net=NetWithCollectives),
    "last batch": fit("validation_step", 3),
    "after the last batch": fit("on_validation_end", 0, write, num_sanity_val_steps=0),
    "validate, last batch": alone("validate", "validation_step", 3),
    "test, last batch": alone("test", "test_step", 3),
    "predict, last batch": alone("predict", "predict_step", 3),
    "rank 0 alone": alone("validate", "validation_step", 3, wake, 0),
    "first training step": fit("training_step", 0, doze),
    "training step, then validation": fit("training_step", 1, doze),
    "user's exception in a step": alone("validate", "validation_step", 1, fail),
    "user's exception before the reduction": alone(
        "validate", "on_validation_epoch_end", 0, fail
    ),
    "user's exception after the reduction": alone(
        "validate", "on_validation_end", 0, fail
    ),
}


@scenario
def both(guard: EvalGuard) -> Any:
    """The same finding on both ranks, and another on one."""

    class Both(Net):
        def __init__(self) -> None:
            super().__init__()
            self.net.append(nn.Dropout(0.1))

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            self.net[1].train()
            if self.global_rank == 1:
                self.net[3].train()
            return super().validation_step(batch, batch_idx)

    trainer(guard).validate(Both(), loader(), verbose=False)


@scenario
def long_training(guard: EvalGuard) -> Any:
    """A breach in a training without evaluations stops all ranks, a little later."""
    net = Net("training_step", 20, doze)
    try:
        trainer(guard, limit_val_batches=0).fit(net, DataLoader(data(1000), 2))
    finally:
        assert 50 <= net.seen <= 101, net.seen


class Share(IterableDataset[Any]):
    """Rank 0 gets all samples, rank 1 none."""

    def __iter__(self) -> Any:
        return iter(data() if dist.get_rank() == 0 else [])


@scenario
def empty_rank(guard: EvalGuard) -> Any:
    made = trainer(guard)
    for _ in range(2):
        made.validate(Net(), DataLoader(Share(), 4), verbose=False)
    return guard.report.confusion["val"].total


@scenario
def empty_rank_and_a_breach(guard: EvalGuard) -> Any:
    made = trainer(guard)
    made.validate(
        Net("validation_step", 0, wake, 0), DataLoader(Share(), 4), verbose=False
    )


@scenario
def two_guards(guard: EvalGuard) -> Any:
    second = EvalGuard(metrics=ConfusionMetrics(num_classes=CLASSES))
    trainer(guard, second, max_epochs=2).fit(Net(), loader(16), loader(25))
    return [g.report.confusion["val"].total for g in (guard, second)]


@scenario
def one_process_after_several(guard: EvalGuard) -> Any:
    """A Trainer of its own on rank 0, while the process group lives."""
    if dist.get_rank() == 0:
        one = trainer(guard, devices=1, strategy="auto")
        one.validate(Net(), loader(), verbose=False)
        return guard.report.confusion["val"].total
    return 27


@scenario
def our_failure_on_one_rank(guard: EvalGuard) -> Any:
    """The matrix breaks on rank 1 alone, by a fault of ours: no matrix, and nobody waits."""
    right = sources.from_outputs
    if dist.get_rank() == 1:
        sources.from_outputs = None  # type: ignore[assignment]
    try:
        trainer(guard, max_epochs=2).fit(Net(), loader(16), loader())
    finally:
        sources.from_outputs = right
    return guard.report.notes, list(guard.report.confusion)


@scenario
def more_classes_than_a_matrix_holds(guard: EvalGuard) -> Any:
    """Confused pairs are gathered at once; how many collectives that takes."""
    guard = EvalGuard(metrics=ConfusionMetrics(max_full_classes=2))
    before = 0

    class Two(Net):
        def validation_step(
            self, batch: Any, batch_idx: int, dataloader_idx: int = 0
        ) -> Any:
            return super().validation_step(batch, batch_idx)

    class Count(pl.Callback):
        def on_validation_epoch_end(self, *args: Any) -> None:
            nonlocal before
            before = collectives()

        def on_validation_end(self, *args: Any) -> None:
            nonlocal before
            before = collectives() - before

    trainer(guard, Count()).validate(Two(), [loader(), loader(16)], verbose=False)
    results = guard.report.confusion.values()
    return before, [(r.total, [str(p) for p in r.most_confused(9)]) for r in results]


@scenario
def guard_on_rank_0_only(guard: EvalGuard) -> Any:
    _ranks._BRIEFLY = 0.5
    _ranks._PATIENCE |= {"audit": 0.5, "train": 0.5, "close": 0.5}
    callbacks = [guard] if dist.get_rank() == 0 else []
    trainer(*callbacks).fit(Net(), loader(16), loader())
    return guard.report.notes


ASKED: dict[str, Callable[[EvalGuard], Any]] = {}  # run only where named


def fsdp2(breach: Callable[[nn.Module], Any] | None, audit: str = "auto") -> Any:
    """Raw FSDP2, on its shards, under the guard itself: Lightning's strategy refuses the CPU."""
    from torch.distributed.fsdp import fully_shard

    if not dist.is_initialized():
        rank = int(os.environ["RANK"])
        dist.init_process_group("gloo", rank=rank, world_size=2)
    rank = dist.get_rank()
    mesh = dist.init_device_mesh("cpu", (2,))
    net = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)).eval()
    for layer in (net[0], net[2], net):
        fully_shard(layer, mesh=mesh)
    report = Report()
    ranks = _ranks.ranks_of(report, rank, 2)
    checks: list[Check] = [
        ModesCheck(),
        StateCheck(),
        GradCheck(),
        StochasticCheck(),
        BatchCheck(),
    ]
    replays = Replays(audit, why_not=why_not_again)  # type: ignore[arg-type]
    guard = Guard([(c, "error") for c in checks], None, report, replays, ranks)
    now = Moment("validate", rank=rank)
    guard.open(net, now)
    ranks.expect("audit", "end")
    guard.start(now)

    def step(x: torch.Tensor) -> Any:
        if rank == 1 and now.batch == 2 and breach is not None:
            breach(net)
        return net(x)

    with torch.no_grad():
        for now.batch in range(3):
            guard.step(now, step, torch.randn(4, 8))
            ranks.meet("audit")
    guard.stop(now)
    ranks.meet("end")
    guard.close(now)
    return report.notes


def write_shard(net: nn.Module) -> None:
    net.get_parameter("0.weight").to_local().add_(1)  # type: ignore[attr-defined]


ASKED["fsdp2, clean"] = lambda guard: fsdp2(None)
ASKED["fsdp2, full"] = lambda guard: fsdp2(None, "full")
ASKED["fsdp2, mode"] = lambda guard: fsdp2(lambda net: net.get_submodule("1").train())
ASKED["fsdp2, shard"] = lambda guard: fsdp2(write_shard)


def without_a_store(name: str) -> Callable[[EvalGuard], Any]:
    """A scenario on a torch that has taken its private way to the group's store away."""

    def act(guard: EvalGuard) -> Any:
        theirs = dist.distributed_c10d
        taken = theirs._get_default_store
        del theirs._get_default_store
        try:
            return SCENARIOS[name](guard)
        finally:
            theirs._get_default_store = taken

    return act


class Replica(Net):
    """Does `act` on one rank as the model is set up."""

    def __init__(self, act: Callable[[nn.Sequential], Any]) -> None:
        super().__init__()
        self.change = act
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.fill_(0.5)

    def on_validation_start(self) -> None:
        if self.global_rank == 1:
            self.change(self.net)


def replicas(act: Callable[[nn.Sequential], Any]) -> Callable[[EvalGuard], Any]:
    """What is found of the weights, on ranks of which the second does `act` to its model."""

    def run(guard: EvalGuard) -> Any:
        rest = ("modes", "grad", "state", "stochastic", "batch", "data", "sync")
        guard = EvalGuard(metrics=None, **dict.fromkeys(rest, "ignore"))  # type: ignore[arg-type]
        trainer(guard).validate(Replica(act), loader(), verbose=False)
        return [(f.check, f.subject, f.fact) for f in guard.report.findings]

    return run


def other_weights(net: nn.Sequential) -> None:
    with torch.no_grad():
        net[2].weight.add_(1)


def other_statistics(net: nn.Sequential) -> None:
    net[1].running_mean.add_(1)


ASKED |= {
    "replicas, equal": replicas(lambda net: None),
    "replicas, other weights": replicas(other_weights),
    "replicas, other statistics": replicas(other_statistics),
}
ASKED |= {f"without a store, {name}": without_a_store(name) for name in SCENARIOS}


def main(rank: int, port: str, folder: str, *only: str) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "NODE_RANK": "0",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
    }  # fmt: skip
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    happened = {}
    chosen = {name: (SCENARIOS | ASKED)[name] for name in only} or SCENARIOS
    for name, act in chosen.items():
        # the networks of most scenarios are evaluated untrained
        guard, began, value, error = EvalGuard(), time.monotonic(), None, ""
        try:
            value = act(guard)
        except Exception as exception:
            error = f"{type(exception).__name__}: {exception}"
        happened[name] = (
            value,
            error,
            time.monotonic() - began,
            guard.report.to_dict(),
        )
        print(rank, name, f"{happened[name][2]:.1f} s", value, error, flush=True)
    torch.save(happened, f"{folder}/{rank}.pt")


if __name__ == "__main__":
    # forked: what takes long, the imports, is done once
    start_processes(main, tuple(sys.argv[1:]), 2, start_method="fork")
