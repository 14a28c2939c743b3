"""What a data loader says of itself: which samples it gives, in which order, and how many a batch.

Nothing here reads a sample, starts an iterator or draws a number.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from lightning_evalguard.instruments.source import owner_of

Order = Literal["fixed", "shuffled", "drawn", "unknown"]
_NESTED = 8  # a Subset of a Subset of ...


@dataclass
class Evaluated:
    """What the loop says of the evaluation that runs.

    Attributes:
        loaders: The data loaders of this evaluation.
        mode: How several are combined: ``sequential``, ``min_size``, ``max_size``, ...
        limits: Batches that are taken of each, ``inf`` where no limit is known.
        setting: The Trainer's keyword that limits them, with its value: ``("limit_val_batches",
            0.5)``.
        training: The data loaders of the training around or before it.
        debugging: Whether the run is meant to see little: ``fast_dev_run``, ``overfit_batches``.
        first: Number of the first loader, where a host evaluates one after the other.
        names: How the user calls them, where that is known.
        order_matters: Whether an evaluation that shuffles is worth a word.
    """

    loaders: Sequence[Any] = ()
    mode: str = "sequential"
    limits: Sequence[float] = ()
    setting: tuple[str, float] | None = None
    training: Sequence[Any] = ()
    debugging: bool = False
    first: int = 0
    names: Sequence[str] = ()
    order_matters: bool = True

    def holds(self, number: int) -> bool:
        """Whether the loader of this number is one of this evaluation's."""
        return 0 <= number - self.first < max(1, len(self.loaders))


@dataclass
class Logged:
    """What the steps of an evaluation logged under one key.

    Attributes:
        name: The key, without the loader's suffix.
        dataloader: Index of the loader, None where there is one.
        metric: The torchmetrics object, where one was logged.
        averaged: Whether values are averaged over the batches.
        updates: How many values were logged.
        weight: Sum of the batch sizes they were weighed by.
    """

    name: str
    dataloader: int | None = None
    metric: Any = field(default=None, repr=False)
    averaged: bool = False
    updates: int = 0
    weight: int | None = None


class LoggedLoss(NamedTuple):
    """A loss that steps log as it is, or with the other sign.

    Attributes:
        kind: As torch calls it: ``nll_loss``, of cross entropy too.
        text: The expression that computes it.
        sign: -1 where its opposite is logged, else 1.
    """

    kind: str
    text: str
    sign: int


class Fact(NamedTuple):
    """What is so, and the fix: a finding without its moment.

    Attributes:
        fact: See `report.Finding`.
        remedy: See `report.Finding`.
        subject: The loader, the logged key, the metric or the attribute.
        subject_type: The class of its dataset, of its metric.
        location: ``file:line``.
        certain: False for a suspicion.
    """

    fact: str
    remedy: str
    subject: str | None = None
    subject_type: str | None = None
    location: str | None = None
    certain: bool = True


def listed(dataloaders: Any) -> list[Any]:
    """The loaders of an evaluation, given as one, as a sequence or as a dict of them."""
    if isinstance(dataloaders, dict):
        return list(dataloaders.values())
    if isinstance(dataloaders, (list, tuple)):
        return list(dataloaders)
    return [dataloaders]


def flat(loaders: Any) -> Iterator[Any]:
    """The single loaders of a sequence or a dict of them, also nested."""
    if isinstance(loaders, (list, tuple, dict)):
        for loader in loaders.values() if isinstance(loaders, dict) else loaders:
            yield from flat(loader)
    elif loaders is not None:
        yield loaders


def length(thing: Any) -> int | None:
    """``len(thing)``, or None where it has none."""
    try:
        return len(thing)
    except (TypeError, NotImplementedError, AttributeError):
        return None


def is_iterable_style(loader: Any) -> bool:
    """Whether samples come in a stream: no index, no second look."""
    dataset = getattr(loader, "dataset", None)
    return isinstance(dataset, IterableDataset) or dataset is None


def sampler_of(loader: Any) -> Any:
    """The sampler that gives single indices, where the loader has one."""
    batches: Any = getattr(loader, "batch_sampler", None)
    if _deals_batches(batches):
        batches = batches.batch_sampler
    inner = getattr(batches, "sampler", None)
    if inner is not None:
        return inner
    return getattr(loader, "sampler", None)


def order(loader: Any) -> Order:
    """In which order the samples come: the same each time, shuffled, or others drawn each time."""
    sampler = sampler_of(loader)
    if is_iterable_style(loader):
        return "unknown"
    if isinstance(sampler, SequentialSampler):
        return "fixed"
    if isinstance(sampler, DistributedSampler):
        if sampler.shuffle:
            return "shuffled"
        return "fixed"
    if isinstance(sampler, WeightedRandomSampler):
        return "drawn"
    if isinstance(sampler, RandomSampler):
        some = sampler.num_samples != length(sampler.data_source)
        if sampler.replacement or some:
            return "drawn"
        return "shuffled"
    if isinstance(sampler, SubsetRandomSampler):
        return "shuffled"
    return "unknown"


def _batching(loader: Any) -> tuple[int, int, bool] | None:
    """Samples, samples a batch, and whether the rest is dropped; None where it is not known."""
    batches = getattr(loader, "batch_sampler", None)
    if not isinstance(batches, BatchSampler) or is_iterable_style(loader):
        return None
    if type(batches).__iter__ is not BatchSampler.__iter__ and not _of_lightning(
        batches
    ):
        return None
    n = length(batches.sampler)
    size = batches.batch_size
    if n is not None and size:
        return (n, size, bool(batches.drop_last))
    return None


def _of_lightning(thing: Any) -> bool:
    return type(thing).__module__.partition(".")[0] in (
        "lightning",
        "pytorch_lightning",
    )


def batch_sizes(loader: Any, batches: int) -> list[int] | None:
    """How many samples the first `batches` batches have, where the loader says."""
    known = _batching(loader)
    if known is None:
        return None
    n, size, drops = known
    if drops:
        n -= n % size
    sizes = [min(size, n - at) for at in range(0, n, size)][:batches]
    if len(sizes) != batches:
        return None
    return sizes


def dropped(loader: Any) -> tuple[int, int]:
    """How many samples ``drop_last`` leaves out, and of how many."""
    known = _batching(loader)
    if known is None or not known[2]:
        return 0, 0
    return known[0] % known[1], known[0]


# --- what a DistributedSampler deals out --------------------------------------------------------


def distributed(loader: Any) -> DistributedSampler[Any] | None:
    """The sampler that deals a loader's samples out to several ranks, where one does."""
    sampler = sampler_of(loader)
    if not isinstance(sampler, DistributedSampler):
        return None
    return sampler


def shares(sampler: DistributedSampler[Any]) -> list[int]:
    """How many samples are each rank's own: not those repeated so that all have as many.

    Rank r of R gets every R-th sample from r on; what is repeated comes last.
    """
    n, ranks = len(sampler.dataset), sampler.num_replicas  # type: ignore[arg-type]
    return [
        min(sampler.num_samples, len(range(rank, n, ranks))) for rank in range(ranks)
    ]


def owned(loader: Any) -> int | None:
    """How many of a loader's samples are this rank's own; None where its sampler repeats none."""
    batches = getattr(loader, "batch_sampler", None)
    if _deals_batches(batches):
        return _owned_batches(batches)
    sampler = distributed(loader)
    if sampler is None or sampler.drop_last:
        return None
    return shares(sampler)[sampler.rank]


def _deals_batches(batches: Any) -> bool:
    """Whether whole batches, or pieces of them, are dealt out to the ranks, as accelerate does."""
    known = (
        "num_processes",
        "process_index",
        "split_batches",
        "even_batches",
        "batch_sampler",
    )
    return isinstance(batches, BatchSampler) and all(
        name in vars(batches) for name in known
    )


def _owned_batches(batches: Any) -> int | None:
    """How many samples are this rank's own; what completes the last round comes after them."""
    size = batches.batch_size
    ranks = batches.num_processes
    n = length(getattr(batches.batch_sampler, "sampler", None))
    if not size or n is None or batches.drop_last or not batches.even_batches:
        return None
    one_round = size
    if not batches.split_batches:
        one_round = size * ranks
    each = one_round // ranks
    last = min(max(n % one_round - batches.process_index * each, 0), each)
    return int(n // one_round * each + last)


def repeated(loader: Any) -> tuple[int, int, int]:
    """How many samples a DistributedSampler repeats, of how many, for how many ranks."""
    sampler = distributed(loader)
    n = None
    if sampler is not None:
        n = length(sampler.dataset)
    if sampler is None or sampler.drop_last or not n:
        return 0, 0, 0
    return sampler.total_size - n, n, sampler.num_replicas


def left_out(loader: Any) -> str:
    """How many samples no batch of an evaluation holds, and why; empty where none is left out."""
    batches = getattr(loader, "batch_sampler", None)
    size = getattr(batches, "batch_size", None)
    by_loader = bool(size) and getattr(batches, "drop_last", False) is True
    why = ["the DataLoader"] if by_loader else []
    sampler = sampler_of(loader)
    dealt = distributed(loader)
    try:
        if dealt is not None:
            n, each, own = len(dealt.dataset), dealt.num_samples, shares(dealt)  # type: ignore[arg-type]
            if dealt.drop_last and n > each * dealt.num_replicas:
                why.append("DistributedSampler")
        else:
            n = each = len(sampler)
            own = [n]
    except (TypeError, NotImplementedError):  # an IterableDataset's sampler has no end
        return ""
    if by_loader:
        kept = each // int(size or 1) * int(size or 1)
        own = [min(k, kept) for k in own]
    left = n - sum(own)
    if left > 0:
        return f"{left:,} of {n:,} samples: drop_last=True of {' and '.join(why)}"
    return ""


# --- which samples ------------------------------------------------------------------------------


class Part(NamedTuple):
    """Some samples of one dataset that is no view of another.

    Attributes:
        root: The dataset.
        indices: Which of its samples, ``(N,)`` int64.
        at: Where each stands in the loader's own dataset, ``(N,)`` int64.
    """

    root: Any
    indices: Tensor
    at: Tensor


def parts(loader: Any) -> list[Part]:
    """The samples of a map-style loader, through Subset, ConcatDataset and transparent wrappers."""
    dataset = getattr(loader, "dataset", None)
    n = length(dataset)
    if is_iterable_style(loader) or n is None:
        return []
    at = picked(loader)
    if at is None:
        return []
    return list(_unwrapped(dataset, at, at, 0))


def picked(loader: Any) -> Tensor | None:
    """The places in its dataset from which a map-style loader takes samples.

    None where a sampler takes some of them and does not say which.
    """
    n = length(loader.dataset) or 0
    batches: Any = getattr(loader, "batch_sampler", None)
    if type(batches) in (list, tuple) and all(map(_is_listed, batches)):
        return _integers([place for batch in batches for place in batch])
    sampler: Any = sampler_of(loader)
    if isinstance(sampler, DistributedSampler) and _of_lightning(sampler.dataset):
        # it deals out what another sampler gives
        sampler = getattr(sampler.dataset, "_sampler", sampler)
    named = vars(sampler).get("indices") if isinstance(sampler, Sampler) else sampler
    if _is_listed(named) and length(named) == length(sampler):
        return _integers(named)
    if type(sampler).__module__.startswith("torch.") or batches is None:
        return torch.arange(n)
    number = length(sampler)
    if number is not None and number < n:
        return None
    return torch.arange(n)


def _is_listed(places: Any) -> bool:
    """Whether places stand in a container: what the user iterates may draw, or run out."""
    kinds = (list, tuple, range, Tensor)
    return isinstance(places, kinds) or type(places).__module__ == "numpy"


def _integers(places: Any) -> Tensor | None:
    """``(N,)`` int64; None of what is no sequence of whole numbers."""
    try:
        return torch.as_tensor(
            places if isinstance(places, Tensor) else list(places), dtype=torch.int64
        )
    except (TypeError, ValueError, RuntimeError):
        return None


def parts_at(loader: Any, given: Tensor) -> list[Part]:
    """The samples that stand at some indices of a map-style loader's dataset, as `parts` has them.

    Args:
        loader: The loader.
        given: ``(N,)`` int64; one may stand there several times.
    """
    return list(_unwrapped(loader.dataset, given, given, 0))


def _unwrapped(dataset: Any, indices: Tensor, at: Tensor, depth: int) -> Iterator[Part]:
    inner = _wrapped(dataset)
    if depth == _NESTED:
        yield Part(dataset, indices, at)
    elif isinstance(dataset, Subset):
        picked = torch.as_tensor(dataset.indices, dtype=torch.int64)[indices]
        yield from _unwrapped(dataset.dataset, picked, at, depth + 1)
    elif isinstance(dataset, ConcatDataset):
        start = 0
        for one, end in zip(dataset.datasets, dataset.cumulative_sizes, strict=True):
            mine = (indices >= start) & (indices < end)
            yield from _unwrapped(one, indices[mine] - start, at[mine], depth + 1)
            start = end
    elif inner is not None:
        yield from _unwrapped(inner, indices, at, depth + 1)
    else:
        yield Part(dataset, indices, at)


def _wrapped(dataset: Any) -> Any:
    """The one dataset of the same length that a dataset holds: it transforms that one's samples."""
    if type(dataset).__module__.partition(".")[0] == "torch":
        return None
    held = [
        v
        for v in getattr(dataset, "__dict__", {}).values()
        if isinstance(v, Dataset) and not isinstance(v, IterableDataset)
    ]
    same = len(held) == 1 and length(held[0]) == length(dataset)
    if not same:
        return None
    return held[0]


def shared(a: Part, b: Part) -> Tensor:
    """Places in `a`'s loader of the samples that stand in `b` too, where both are of one root."""
    n = length(a.root)
    if a.root is not b.root or n is None:
        return a.at[:0]
    there = torch.zeros(n, dtype=torch.bool)
    there[b.indices] = True
    return a.at[there[a.indices]]


# --- where in the code --------------------------------------------------------------------------


def source_of(function: Any) -> str | None:
    """``file:line`` of a function of the user's own; None of a library's."""
    code = None
    if function is not None:
        code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None or owner_of(code.co_filename) != "user":
        return None
    return f"{code.co_filename}:{code.co_firstlineno}"


def dataset_source(dataset: Any) -> str | None:
    """``file:line`` at which the user's own dataset gives a sample; through wrappers."""
    for _ in range(_NESTED):
        for method in ("__getitem__", "__getitems__", "__iter__"):
            if (said := source_of(getattr(type(dataset), method, None))) is not None:
                return said
        held = getattr(dataset, "datasets", None)
        dataset = (
            held[0]
            if isinstance(held, list) and held
            else getattr(dataset, "dataset", None)
        )
        if dataset is None:
            return None
    return None
