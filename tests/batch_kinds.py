"""Eight kinds of batch, and what each of two processes counts of them."""

from __future__ import annotations

import dataclasses
from collections import UserDict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler

from lightning_evalguard.confusion.recorder import Recorder
from lightning_evalguard.ranks import ranks_of
from lightning_evalguard.report import Report


class Encoding(UserDict[str, Any]):
    """A mapping that is no dict, as tokenizers give them."""

    def to(self, device: Any) -> Encoding:
        return Encoding({k: v.to(device) for k, v in self.data.items()})


@dataclasses.dataclass
class Record:
    x: Tensor
    y: Tensor


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


class Tensors:
    """Tensors of one leading shape under names, as tensor dicts hold them."""

    def __init__(self, tensors: dict[str, Tensor], batch_size: torch.Size) -> None:
        self._tensors = tensors
        self.batch_size = batch_size

    def keys(self) -> Any:
        return self._tensors.keys()

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __len__(self) -> int:
        return self.batch_size[0]

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"a guard asked a batch for `{name}`")

    def to(self, device: Any) -> Tensors:
        return Tensors(
            {k: v.to(device) for k, v in self._tensors.items()}, self.batch_size
        )


class Graphs:
    """Graphs in one: two nodes each, with edges between them."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        n = len(x)
        self._store = {
            "nodes": x.repeat_interleave(2, 0),
            "edges": torch.arange(2 * n).reshape(n, 2).T,
            "batch": torch.arange(n).repeat_interleave(2),
            "y": y,
        }
        self._num_graphs = n

    @property
    def num_graphs(self) -> int:
        return self._num_graphs

    def __getattr__(self, name: str) -> Any:
        return self.__dict__["_store"][name]

    def to(self, device: Any) -> Graphs:
        return self


def _encoding(x: Tensor, y: Tensor) -> Any:
    return Encoding(x=x, y=y)


KINDS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tensor": lambda x, y: x,
    "tuple": lambda x, y: (x, y),
    "dict": lambda x, y: {"x": x, "y": y},
    "encoding": _encoding,
    "dataclass": Record,
    "named tuple": Pair,
    "tensor dict": lambda x, y: Tensors({"x": x, "y": y}, torch.Size([len(x)])),
    "graphs": Graphs,
}


def count_on_two_ranks(rank: int, port: int, folder: str) -> None:
    """Count five samples, of which a sampler repeats one, in batches of every kind."""
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    ranks = ranks_of(Report(), rank, 2)
    x, y = (
        torch.randn(5, 4, generator=torch.Generator().manual_seed(0)),
        torch.arange(5) % 3,
    )
    totals = {}
    for kind, make in KINDS.items():
        recorder = Recorder(ranks=ranks)
        sampler = DistributedSampler(range(5), 2, rank, shuffle=False)  # type: ignore[arg-type, var-annotated]
        picked = DataLoader(range(5), 2, sampler=sampler, collate_fn=list)  # type: ignore[arg-type, var-annotated]
        ranks.expect("matrix")
        recorder.start("val", nn.Linear(4, 3), [picked])
        for places in picked:
            batch = make(x[places], y[places])
            recorder.before_step(batch)
            recorder.after_step(
                {"logits": x[places][:, :3], "target": y[places]}, batch
            )
        (result,) = recorder.stop().results.values()
        totals[kind] = result.total
    torch.save(totals, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
