"""What each of several processes does, in a module that a spawned one is quick to import."""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing import start_processes
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_evalguard.confusion.matrix import ConfusionMetrics
from lightning_evalguard.confusion.recorder import Recorder
from lightning_evalguard.ranks import ranks_of
from lightning_evalguard.report import Report

CLASSES = 5


def data(n: int = 101, classes: int = CLASSES, seed: int = 0) -> TensorDataset:
    g = torch.Generator().manual_seed(seed)
    return TensorDataset(
        torch.randn(n, 8, generator=g), torch.randint(0, classes, (n,), generator=g)
    )


class Counted(TensorDataset):
    classes = ("ant", "bee", "cat", "dog", "eel")


def rank_of_two(rank: int, port: int, folder: str) -> None:
    """Count on one of two gloo ranks, and save what was found."""
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    calls: list[str] = []
    for name in ("all_reduce", "all_gather_object"):
        original = getattr(dist, name)
        setattr(
            dist,
            name,
            lambda *a, _f=original, _n=name, **k: (calls.append(_n), _f(*a, **k)),
        )

    dataset, net = Counted(*data(33).tensors), nn.Linear(8, CLASSES)
    for parameter in net.parameters():
        nn.init.constant_(parameter, 0.1)
    ranks = ranks_of(Report(), rank, 2)
    recorder, said = Recorder(ranks=ranks), {}
    loaders = [
        DataLoader(
            dataset, 4, sampler=DistributedSampler(dataset, 2, rank, shuffle=shuffle)
        )
        for shuffle in (False, True)
    ]
    # Of the third loader, rank 1 gets no batch; the fourth has binary scores of unknown kind.
    loaders += [DataLoader(dataset, 4), DataLoader(dataset, 4)]
    for epoch in range(2):
        calls.clear()
        ranks.expect("matrix", "end")
        recorder.start("val", net, loaders)
        for i, one in enumerate(loaders):
            for x, y in [] if (i, rank) == (2, 1) else one:
                recorder.before_step((x, y), i)
                out: dict[str, Any] = {"logits": x[:, :CLASSES], "target": y}
                # as torchmetrics would guess: probabilities on rank 0, logits on rank 1
                if i == 3:
                    out = {
                        "preds": x[:, 0].sigmoid() if rank == 0 else x[:, 0] * 9,
                        "target": y % 2,
                    }
                recorder.after_step(out, (x, y), i)
        recorded = recorder.stop(epoch)
        said[epoch] = (
            list(calls),
            {
                k: (r.matrix.tolist(), r.class_names, r.preds_are)
                for k, r in recorded.results.items()
            },
            recorded.notes,
            recorded.warnings,
        )
    many = Recorder(ConfusionMetrics(max_full_classes=2), ranks)
    ranks.expect("matrix")
    many.start("val", net, DataLoader(dataset, 4))
    many.before_step(dataset.tensors)
    x, y = dataset.tensors
    many.after_step({"logits": x[:, :CLASSES], "target": y}, dataset.tensors)
    pairs = many.stop().results["val"].most_confused(100)
    torch.save((said, pairs), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def counted(recorder: Recorder, net: nn.Module, loader: Any) -> tuple[Any, ...]:
    """Total, matrix and scores of one evaluation."""
    recorder.start("val", net, loader)
    for x, y in loader:
        recorder.before_step((x, y))
        recorder.after_step({"logits": x[:, :CLASSES], "target": y}, (x, y))
    recorded = recorder.stop()
    result = recorded.results["val"]
    names = ("accuracy", "f1_macro", "mcc")
    return (
        result.total,
        result.matrix.tolist(),
        *(repr(result.scores[n]) for n in names),
    )


def leaving_a_remainder(samples: int) -> list[int]:
    return [size for size in range(2, samples + 2) if samples % size]


def sweep(rank: int, world: int, port: str, folder: str, *sizes: str) -> None:
    """Compare totals and scores over all ranks with those of one process, for each size."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world
    )
    net, compared = nn.Linear(8, CLASSES), 0
    for n in map(int, sizes):
        dataset = data(n, seed=n)
        once = counted(Recorder(), net, DataLoader(dataset, 16))
        ranks = ranks_of(Report(), rank, world)
        recorder = Recorder(ranks=ranks)
        for shuffle in (False, True):
            sampler = DistributedSampler(dataset, world, rank, shuffle)
            for size in leaving_a_remainder(len(sampler)):
                sampler.set_epoch(size)
                ranks.expect("matrix", "end")
                together = counted(
                    recorder, net, DataLoader(dataset, size, sampler=sampler)
                )
                ranks.meet("end")
                assert together == once, (n, shuffle, size, together, once)
                compared += 1
        ranks.expect("close")
        ranks.meet("close")
    store = dist.distributed_c10d._get_default_store()
    torch.save((compared, store.num_keys()), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":  # WORLD PORT FOLDER SIZE ...
    # forked: what takes long, the imports, is done once
    world, *rest = sys.argv[1:]
    start_processes(sweep, (int(world), *rest), int(world), start_method="fork")
