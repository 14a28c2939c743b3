"""Is the one sample of both sets a graph, of which masks choose the parts?

A graph that is trained and evaluated as a whole is no leak: `train_mask`, `val_mask` and
`test_mask` say which of its nodes (or edges) are whose. Nodes that two of them choose are one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_evalguard.checks.data.history import Side
from lightning_evalguard.checks.data.loader_facts import EvaluatedSet
from lightning_evalguard.data.batches import plain_attributes
from lightning_evalguard.data.loaders import Fact
from lightning_evalguard.data.samples import undisturbed

_DEPTH = 5
_MANY = 64  # things in one container
_EDGES = ("edge_index", "edge_weight", "edge_attr", "adj", "adj_t", "adjacency")
_SIDES = {"train": ("train",), "val": ("val", "dev"), "test": ("test",)}


def by_masks(one: EvaluatedSet, side: Side, places: Sequence[int]) -> list[Fact] | None:
    """What two masks of one graph both choose; None where the sets are no one graph.

    Args:
        one: The evaluated set.
        side: The one that it should be apart from.
        places: Which samples of its dataset the evaluated set gives.
    """
    if len(places) != 1 or sum(len(part.at) for part in side.parts) != 1:
        return None
    dataset = one.loader.dataset
    try:
        with undisturbed(dataset):
            named = dict(_named(dataset[places[0]], "", _DEPTH))
    except Exception:  # noqa: BLE001 - a dataset that cannot be read so
        return None
    masks = {name: tensor for name, tensor in named.items() if _is_mask(tensor)}
    if not masks and not any(_last(name) in _EDGES for name in named):
        return None
    evaluated = _chosen(masks, one.name.partition("_")[0])
    facts = []
    for mine, theirs in _pairs(evaluated, _chosen(masks, _kind(side))):
        shared = _shared(masks[mine], masks[theirs])
        if shared:
            facts.append(_fact(one, mine, theirs, shared, int(masks[mine].sum())))
    return facts


def _is_mask(tensor: Tensor) -> bool:
    return tensor.dtype == torch.bool and tensor.ndim in (1, 2) and tensor.numel() > 1


def _kind(side: Side) -> str:
    if "training" in side.words:
        return "train"
    return "val"


def _chosen(masks: Mapping[str, Tensor], kind: str) -> list[str]:
    """The masks of one side, by their names."""
    words = _SIDES.get(kind, ())
    return [name for name in masks if _last(name).startswith(words)]


def _pairs(mine: list[str], theirs: list[str]) -> Iterator[tuple[str, str]]:
    """Masks of one and the same thing: there may be several kinds of nodes."""
    for a in mine:
        for b in theirs:
            if a.rpartition(".")[0] == b.rpartition(".")[0]:
                yield a, b


def _shared(mine: Tensor, theirs: Tensor) -> int:
    if mine.shape != theirs.shape:
        return 0
    return int((mine & theirs).sum())


def _fact(one: EvaluatedSet, mine: str, theirs: str, shared: int, of: int) -> Fact:
    return one.fact(
        f"{shared} of the {of} nodes or edges of `{mine}` are in `{theirs}` too, "
        "expected none",
        "Make the masks from one permutation, so that each node or edge is in one of them.",
        certain=False,
    )


def _last(name: str) -> str:
    return name.rpartition(".")[2].lower()


def _named(thing: Any, name: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a sample, by the names of keys and attributes that lead to them."""
    if isinstance(thing, Tensor):
        yield name, thing
        return
    if not depth:
        return
    inside: Mapping[Any, Any]
    if isinstance(thing, Mapping):
        inside = thing
    elif isinstance(thing, (list, tuple)):
        inside = getattr(thing, "_asdict", lambda: dict(enumerate(thing)))()
    else:
        inside = plain_attributes(thing)
    if len(inside) > _MANY:
        return
    for key, part in inside.items():
        below = name
        if isinstance(key, str) and not key.startswith("_"):
            below = f"{name}.{key}".lstrip(".")
        yield from _named(part, below, depth - 1)
