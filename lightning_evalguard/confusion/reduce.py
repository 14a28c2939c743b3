"""The counts of all ranks: what they agree on, and one reduction an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_evalguard.confusion.layout import Layout
from lightning_evalguard.confusion.loader import LoaderCount, Patterns
from lightning_evalguard.confusion.matrix import ConfusionMatrix
from lightning_evalguard.confusion.words import Recorded
from lightning_evalguard.ranks import Alone


def agree(
    ranks: Alone, loaders: dict[str, LoaderCount], stage: str | None, recorded: Recorded
) -> list[LoaderCount]:
    """The loaders of this evaluation, equal on every rank, also on one that got no batch."""
    entries = [e for key, e in loaders.items() if key.split("/")[0] == stage]
    for entry in entries:
        if entry.chosen is not None and entry.layout is None:
            entry.layout = entry.chosen.layout
            entry.source = entry.chosen.said
    unsaid = {}
    for entry in entries:
        if entry.failed or not entry.agreed:
            unsaid[entry.key] = (
                entry.layout,
                entry.source,
                entry.names,
                entry.batches,
                entry.failed,
            )
    everyone = ranks.meet("matrix", unsaid or None)
    if everyone is None:
        for entry in entries:
            entry.failed = "not every rank takes part"
            if "apart" not in entry.reported:
                entry.reported.add("apart")
                recorded.notes.append(
                    f"{entry.key}: no confusion matrix in an evaluation, because not every "
                    "rank took part in it to the end"
                )
        return []
    by_key: dict[str, dict[int, Any]] = {}
    for rank, theirs in sorted(everyone.items()):
        for key, said in (theirs or {}).items():
            by_key.setdefault(key, {})[rank] = said
    for key, said in by_key.items():
        if key not in loaders:
            entries.append(loaders.setdefault(key, LoaderCount(key)))
        _settle_with(ranks, loaders[key], said, recorded)
    return sorted(entries, key=lambda e: _index(e.key))


def _settle_with(
    ranks: Alone, entry: LoaderCount, said: Mapping[int, Any], recorded: Recorded
) -> None:
    """Take what the ranks say of one loader, in the order of their numbers."""
    failed = {rank: why for rank, (*_, why) in said.items() if why}
    if failed:
        rank, why = next(iter(failed.items()))
        alone = ranks.world == 1 or entry.differ
        entry.failed = why if alone else f"on rank {rank} {why}"
    if entry.agreed and not any(
        layout not in (None, entry.layout) for layout, *_ in said.values()
    ):
        return
    layouts = {layout for layout, *_ in said.values() if layout is not None}
    common = _common(layouts)
    if common is None and layouts:
        entry.failed = entry.differ = f"the ranks saw {len(layouts)} different layouts"
        recorded.warnings.append(
            f"{entry.key}: no confusion matrix, because {entry.failed}. "
            "Pass ConfusionMetrics(num_classes=..., task=..., source=...)"
        )
    for layout, source, names, *_ in said.values():
        if layout is not None:
            entry.layout = common or layout
            entry.source = source
            entry.names = names
            break
    entry.agreed = any(batches for _, _, _, batches, _ in said.values())
    entry.batches = entry.batches or sum(
        batches for _, _, _, batches, _ in said.values()
    )


def _common(layouts: set[Layout]) -> Layout | None:
    """The layout in which the counts of all of these can be added up, if there is one."""
    if len(layouts) <= 1:
        return next(iter(layouts), None)
    one = next(iter(layouts))
    if all(layout.task == "multiclass" for layout in layouts):
        widest = max(layouts, key=lambda layout: layout.num_classes)
        alike = {
            replace(x, num_classes=widest.num_classes, full=widest.full)
            for x in layouts
        }
        if len(alike) == 1 and widest.full:
            return widest
        return None
    binary = {replace(x, task="binary", num_classes=2) for x in layouts}
    if len(binary) != 1:
        return None
    return replace(one, task="binary", num_classes=2)


def reduced(
    ranks: Alone, module: nn.Module | None, entries: Sequence[LoaderCount]
) -> list[tuple[LoaderCount, Tensor, Tensor, tuple[Tensor, Tensor] | None]]:
    """Every state summed over all ranks, in one reduction, and copied to the host."""
    counted = [e for e in entries if e.layout is not None and not e.failed]
    if not counted:
        return []
    world = ranks.world
    rank = ranks.rank
    states = [_state(e, e.layout) for e in counted if e.layout is not None]
    pairs = [state.pairs() for state in states]
    home = _device(module) if world > 1 else states[0].counts.device
    parts = []
    for entry, state in zip(counted, states, strict=True):
        numbers = [
            entry.untrimmed,
            entry.given,
            entry.left_out,
            entry.partly,
            *entry.patterns,
        ]
        parts += [state.counts, state.hits, torch.tensor(numbers)]
    rows = torch.zeros(world, dtype=torch.long)  # of each rank's confused pairs
    rows[rank] = sum(len(p[0]) for p in pairs if p is not None)
    parts.append(rows)
    flat = torch.cat([part.to(home) for part in parts])
    if world > 1:
        dist.all_reduce(flat)
    split = list(flat.cpu().split([len(part) for part in parts]))  # type: ignore[no-untyped-call]
    if world > 1 and any(p is not None for p in pairs):
        pairs = _exchanged(pairs, split[-1].tolist(), home)
    summed = []
    for i, entry in enumerate(counted):
        counts, hits, numbers = split[3 * i : 3 * i + 3]
        entry.untrimmed, entry.given, entry.left_out, entry.partly, *rest = (
            numbers.tolist()
        )
        entry.patterns = Patterns(*rest)
        summed.append((entry, counts, hits, pairs[i]))
    return summed


def _state(entry: LoaderCount, layout: Layout) -> ConfusionMatrix:
    chosen = entry.chosen
    if chosen is not None and chosen.layout == layout:
        return chosen.state
    state = ConfusionMatrix.of(layout)
    if chosen is not None:  # another rank saw more classes
        state = state.to(chosen.state.counts.device)
        if chosen.state.into(state):
            chosen.layout = layout
            chosen.state = state
    return state  # empty where this rank saw nothing


def _device(module: nn.Module | None) -> torch.device:
    first = None
    if module is not None:
        first = next(module.parameters(), None)
    if first is not None:
        return first.device
    return torch.device("cpu")


def _index(key: str) -> int:
    """Number of the loader in the key of a result."""
    if "/" not in key:
        return 0
    return int(key.rpartition("_")[2])


def _exchanged(
    pairs: Sequence[tuple[Tensor, Tensor] | None],
    rows: Sequence[int],
    home: torch.device,
) -> list[tuple[Tensor, Tensor] | None]:
    """The confused pairs of all ranks, merged: which state, key and count of each, one gather.

    Args:
        pairs: This rank's keys and counts by state, None where the matrix itself is kept.
        rows: How many each rank has.
        home: Where collectives run.
    """
    mine = []
    for state, pair in enumerate(pairs):
        if pair is not None:
            keys, counts = pair
            mine.append(torch.stack((torch.full_like(keys, state), keys, counts)))
    padded = torch.zeros(3, max(rows), dtype=torch.long, device=home)
    flat = torch.cat(mine, 1)
    padded[:, : flat.shape[1]] = flat
    gathered = [torch.empty_like(padded) for _ in rows]
    if max(rows):
        dist.all_gather(gathered, padded)
    everyone = torch.cat(
        [g[:, :n] for g, n in zip(gathered, rows, strict=True)], 1
    ).cpu()
    merged: list[tuple[Tensor, Tensor] | None] = []
    for i, pair in enumerate(pairs):
        if pair is None:
            merged.append(None)
            continue
        of_it = everyone[1:, everyone[0] == i]
        keys, place = of_it[0].unique(return_inverse=True)  # type: ignore[no-untyped-call]
        merged.append((keys, torch.zeros_like(keys).scatter_add_(0, place, of_it[1])))
    return merged
