"""Which tensors are looked at, and how."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from lightning_evalguard.checks.check import Moment
from lightning_evalguard.model.hashes import Prints
from lightning_evalguard.model.tensors import Held, Inventory

# elements of buffers on the CPU whose contents are looked at then
AT_EACH_BATCH = 1 << 16


def glance_at(
    held: Held,
) -> tuple[Callable[[], Any], tuple[Callable[[], object], Callable[[], object]]]:
    """What to look at in a tensor line by line, and how to undo what the look does to it."""
    tensor = held.tensor
    own = held.tensor.detach().clone()

    def value() -> Any:
        return tensor.data_ptr(), Prints({"": tensor}).values()

    def undo() -> None:
        if tensor.shape == own.shape:
            tensor.data.copy_(own)
        else:
            tensor.data = own

    return value, (lambda: None, undo)


def some(held: Mapping[str, Held], names: Iterable[str]) -> dict[str, Held]:
    """Those of `names` that are held."""
    return {n: held[n] for n in names if n in held}


def buffers(inventory: Inventory) -> frozenset[str]:
    """The names of all buffers."""
    return frozenset(n for n, h in inventory.held.items() if h.kind == "buffer")


def small_buffers(inventory: Inventory) -> list[str]:
    """Buffers on the host, where looking at their contents waits for nothing."""
    names, size = [], 0
    for name, held in inventory.held.items():
        if held.kind == "buffer" and not held.lazy and held.tensor.device.type == "cpu":
            size += held.tensor.numel()
            if size > AT_EACH_BATCH:
                return []
            names.append(name)
    return names


def is_sharded(inventory: Inventory) -> bool:
    """Whether parameters are sharded over the ranks."""
    return any(
        type(m).__name__ == "FullyShardedDataParallel"
        for m in inventory.modules.values()
    ) or any(
        h.kind == "parameter" and hasattr(h.tensor, "to_local")
        for h in inventory.held.values()
    )


def broadcasts_buffers(now: Moment) -> bool:
    """Whether another rank's buffers are written over this one's."""
    return (
        now.rank > 0
        and torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    )


def is_statistic(held: Held) -> bool:
    """Whether it is a running statistic of a batch norm that is in eval mode."""
    is_norm = isinstance(held.module, nn.modules.batchnorm._NormBase)
    return is_norm and held.kind == "buffer" and not held.module.training
