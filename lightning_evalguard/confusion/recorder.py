"""One evaluation's confusion matrices: fed step by step, reduced across ranks once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from lightning_evalguard.confusion import sources
from lightning_evalguard.confusion.by_batch import Batches
from lightning_evalguard.confusion.matrix import (
    ROOM,
    ConfusionMatrix,
    ConfusionMetrics,
    Layout,
    are_logits,
    margins,
    read,
)
from lightning_evalguard.confusion.outcomes import right
from lightning_evalguard.confusion.result import ConfusionResult
from lightning_evalguard.confusion.sources import Pair
from lightning_evalguard.confusion.taps import LossTap, MetricTap, metrics_of, refusal
from lightning_evalguard.data.batches import sample_count
from lightning_evalguard.data.loaders import left_out, listed, owned
from lightning_evalguard.ranks import Alone

# Metrics come before losses; labels that were compared tell least.
_AFTER = {"loss": 1, "comparison": 2}


@dataclass
class Recorded:
    """What one evaluation gave.

    Attributes:
        results: By stage and loader: ``"val"``, ``"val/dataloader_idx_1"``, ...
        notes: Sentences for the report: what was inferred, or why there is no matrix.
        warnings: Sentences that the user should see.
        batches: What each batch of a result counted, on one process alone.
    """

    results: dict[str, ConfusionResult] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    batches: dict[str, Batches] = field(default_factory=dict)


class _Identity:
    """Which elements of which storage a tensor is, without keeping it alive."""

    def __init__(self, tensor: Tensor) -> None:
        self._storage = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
        self._where = (tensor.storage_offset(), tensor.shape, tensor.stride())

    def is_of(self, other: _Identity) -> bool:
        """Whether both are the same, of a storage that still lives: memory is used again."""
        return (
            self._where == other._where
            and not self._storage.expired()  # type: ignore[no-untyped-call]
            and self._storage.cdata == other._storage.cdata
        )


def _known(tensor: Tensor, seen: Sequence[_Identity]) -> bool:
    this = _Identity(tensor)
    return any(one.is_of(this) for one in seen)


@dataclass
class _Source:
    """One place that predictions and targets were seen at, and what was counted of it."""

    kind: str
    names: set[str]
    layout: Layout
    state: ConfusionMatrix
    said: str
    seen: int = 0
    # What the state counted in the running step, so that nothing is counted twice.
    targets: list[_Identity] = field(default_factory=list)
    preds: list[_Identity] = field(default_factory=list)
    position: int = 0


def _corroborate(candidates: Sequence[_Source]) -> None:
    """What a loss takes its scores for holds of a metric that is given the same ones."""
    for one in candidates:
        if one.kind != "metric" or one.layout.preds_are != "unknown" or not one.layout.by_batch:
            continue
        for other in candidates:
            if other.kind == "loss" and any(x.is_of(y) for x in one.preds for y in other.preds):
                one.layout = replace(one.layout, preds_are=other.layout.preds_are)


def _asks_other(one: _Source, chosen: _Source) -> bool:
    """Whether two sources of a step are two questions, and not one that was put twice."""
    a, b = one.layout, chosen.layout
    return (a.task == "multilabel", a.num_classes) != (b.task == "multilabel", b.num_classes) or (
        one.kind == chosen.kind and not any(x.is_of(y) for x in one.targets for y in chosen.targets)
    )


@dataclass
class _Loader:
    """One stage and loader: what is settled about it, and its running evaluation."""

    key: str
    names: tuple[str, ...] | None = None
    known: int | None = None
    # Settled on the first batch, or agreed with the other ranks after the first evaluation.
    layout: Layout | None = None
    source: str = ""
    agreed: bool = False
    differ: str = ""  # how the ranks' layouts differ, so that there is nothing to add up
    least: int = 2
    # Seen on the first batch, of which one is chosen before the second.
    candidates: list[_Source] = field(default_factory=list)
    chosen: _Source | None = None
    refused: list[str] = field(default_factory=list)
    # Samples that this rank owns of those that a DistributedSampler deals out; it repeats some so
    # that each rank gets as many. None where nothing is repeated.
    owned: int | None = None
    batch: Any = None
    samples: int = 0
    keep: int = 0
    dropped: str = ""
    batches: int = 0
    untrimmed: int = 0
    in_doubt: bool = False  # an evaluation's scores were read as probabilities: none lay outside
    failed: str = ""
    saw: str = ""
    told: set[str] = field(default_factory=set)
    each: Batches = field(default_factory=Batches)  # what was counted after each batch

    def batch_over(self) -> None:
        """What the batch counted stands apart, now that the next one is about to run."""
        if self.batches and self.chosen is not None:
            self.each.take(self.chosen.state.counts)


class Recorder:
    """Counts what the steps of each evaluation predict.

    Args:
        config: What the user asked for; None to infer everything and to stay silent where there
            is nothing to count.
        ranks: The processes that count together, by default this one alone.
        outcomes: Whether results say of each sample whether it is right.
    """

    def __init__(
        self,
        config: ConfusionMetrics | None = None,
        ranks: Alone | None = None,
        outcomes: bool = False,
    ) -> None:
        self.ranks = ranks or Alone()
        self._outcomes = outcomes
        self.config = config or ConfusionMetrics()
        self.explicit = config is not None
        self._loaders: dict[str, _Loader] = {}
        self._stage: str | None = None
        self._module: nn.Module | None = None
        self._now: _Loader | None = None
        self._paused = False
        source = str(self.config.source) if isinstance(self.config.source, str) else ""
        only = source.partition(":")[2] if source.startswith("metric:") else None
        self._reads_outputs = self.config.source is None or not (only or source == "loss")
        self._metrics = MetricTap(self._see, only)
        self._losses = LossTap(self._see)
        self._taps_metrics = self.config.source is None or only is not None
        self._taps_losses = self.config.source is None or source == "loss"
        self._found = False
        self._logits: set[str] = set()  # sources of which one score has shown that they are

    def start(
        self, stage: str, module: nn.Module, dataloaders: Any = None, datamodule: Any = None
    ) -> None:
        """An evaluation begins: every state of `stage` starts from zero.

        Args:
            stage: ``val`` or ``test``.
            module: The LightningModule.
            dataloaders: The loaders, one or a sequence or a dict of them.
            datamodule: Where ``classes`` may stand.
        """
        self.abort()
        self._stage, self._module = stage, module
        for i, loader in enumerate(listed(dataloaders)):
            entry = self._loader(i)
            entry.batches, entry.untrimmed, entry.failed = 0, 0, entry.differ
            entry.each = Batches()
            entry.dropped = left_out(loader)
            entry.owned = owned(loader)
            if entry.chosen is not None:
                entry.chosen.state.reset()
            if not entry.agreed:
                entry.names = self.config.class_names or sources.names_of(
                    loader, module, datamodule
                )
                entry.known = sources.classes_of(module)

    def before_step(self, batch: Any, dataloader_idx: int = 0) -> None:
        """The step is about to run on `batch`: listen to its metrics and losses."""
        if self._stage is None or self._module is None:
            return
        self._batch_over()
        entry = self._now = self._loader(dataloader_idx)
        entry.batches += 1
        entry.samples = sample_count(batch) or 0
        entry.keep = entry.samples
        if entry.owned is not None:
            entry.keep = min(entry.samples, entry.owned)
            entry.owned -= entry.keep
        for source in (*entry.candidates, entry.chosen):
            if source is not None:
                source.targets.clear()
                source.preds.clear()
                source.position = 0
        if entry.chosen is None:
            entry.batch = batch
        # Not at the start of the evaluation: hooks that run after it may still replace a metric.
        reads_outputs = entry.chosen is not None and entry.chosen.kind == "outputs"
        if entry.batches == 1 and self._taps_metrics and not reads_outputs:
            self._metrics.open(self._module)
        if self._taps_losses:
            self._losses.listens = entry.chosen is None or entry.chosen.kind == "loss"
            if not self._found:
                self._losses.find(self._module)
                self._found = True
            self._losses.open()

    def after_step(self, outputs: Any, batch: Any, dataloader_idx: int = 0) -> None:
        """The step returned `outputs`: count them.

        Raises:
            ValueError: If what the user asked for does not fit, naming the argument.
        """
        self._losses.close()
        entry = self._now
        if entry is None:
            return
        entry.batch = None
        if not self._reads_outputs:
            return
        if entry.chosen is not None and entry.chosen.kind != "outputs":
            return
        entry.saw = sources.shown(outputs)
        if self.config.source is not None:
            pair: Pair | None = sources.from_source(self.config.source, outputs, batch)
        else:
            pair = sources.from_outputs(outputs)
        if pair is None:
            return
        arranged = sources.arrange(pair, self.config)
        if arranged is None:
            if self.config.source is not None:
                raise ValueError(
                    f"source gave preds {tuple(pair.preds.shape)} {pair.preds.dtype} and target "
                    f"{tuple(pair.target.shape)} {pair.target.dtype}, which fit no task"
                )
            return
        if entry.chosen is None:
            if entry.layout is None and arranged.preds_are is None:
                said = {c.layout.preds_are for c in entry.candidates
                        if c.kind == "loss" and _known(arranged.preds, c.preds)}  # fmt: skip
                arranged = replace(arranged, preds_are=said.pop() if len(said) == 1 else None)
            entry.candidates = []
            entry.chosen = self._new(entry, "outputs", "", arranged)
        try:
            self._count(entry, entry.chosen, arranged)
        except ValueError as error:
            if self.explicit:
                raise
            entry.failed = str(error)

    def hear(self, kind: str, name: str, pair: Pair) -> None:
        """A pair that no tap of this recorder heard: a comparison in a plain script."""
        self._see(kind, name, pair)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing that runs meanwhile is counted: a step that is replayed."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def stop(self, epoch: int | None = None, step: int | None = None) -> Recorded:
        """The evaluation is over: reduce across ranks and read every state.

        Raises:
            EvalGuardError: The same on every rank, where one of them holds a finding.
            ValueError: If what the user asked for does not fit what was seen.
        """
        self._batch_over()
        self._metrics.close()
        self._losses.close()
        recorded = Recorded()
        entries = self._agree(recorded)
        reduced = self._reduced(entries)
        self._logits |= {
            e.source for e, counts, *_ in reduced if e.layout and are_logits(e.layout, counts)
        }
        for entry, counts, hits, pairs in reduced:
            assert entry.layout is not None
            fits = entry.names is not None and len(entry.names) == entry.layout.num_classes
            result = read(
                entry.layout, counts, hits, entry.names if fits else None,
                pairs, entry.least, self.config.per_class, entry.source in self._logits,
            )  # fmt: skip
            result.source, result.epoch, result.step = entry.source, epoch, step
            if entry.chosen is not None and entry.chosen.state.kept is not None:
                kept = entry.chosen.state.kept
                result.right = right(entry.layout, kept, result.preds_are)
            self._settle(entry, result)
            recorded.results[entry.key] = result
            entry.each.close(
                result.task, partial(margins, entry.layout, result.num_classes, result.preds_are)
            )
            recorded.batches[entry.key], entry.each = entry.each, Batches()
            self._tell(entry, result, recorded)
        for entry in entries:
            if entry.key not in recorded.results:
                self._tell_nothing(entry, recorded)
        self._stage = self._module = self._now = None
        return recorded

    def abort(self) -> None:
        """The evaluation ended in an exception: leave nothing behind."""
        self._metrics.close()
        self._losses.close()
        for entry in self._loaders.values():
            entry.candidates = []
            entry.batch = None
        self._stage = self._module = self._now = None

    def _loader(self, i: int) -> _Loader:
        key = f"{self._stage}/dataloader_idx_{i}" if i else str(self._stage)
        return self._loaders.setdefault(key, _Loader(key))

    def _new(self, entry: _Loader, kind: str, name: str, pair: Pair) -> _Source:
        layout = entry.layout
        if layout is None:
            known = len(entry.names) if entry.names else entry.known
            layout = sources.layout_of(pair, self.config, known)
            if layout.preds_are in ("logits", "unknown") and layout.task != "multiclass":
                guesses = self._module is not None and any(metrics_of(self._module))
                layout = replace(layout, by_batch=guesses)
        state = ConfusionMatrix.of(layout).to(pair.preds.device)
        state.kept = [] if self._outcomes else None
        return _Source(kind, {name}, layout, state, pair.source)

    def _see(self, kind: str, name: str, pair: Pair) -> None:
        """A metric or a loss is called. Whatever goes wrong here, the user's step goes on."""
        entry = self._now
        if entry is None or self._paused or entry.failed:
            return
        try:
            if entry.chosen is not None:
                if entry.chosen.kind == kind and name in entry.chosen.names:
                    arranged = sources.arrange(pair, self.config)
                    if arranged is not None:
                        self._count(entry, entry.chosen, arranged)
            else:
                self._consider(entry, kind, name, pair)
        except Exception as error:  # noqa: BLE001 - a tensor subclass, a vmap: not ours to judge
            entry.failed = f"{pair.source} could not be counted: {error}"

    def _consider(self, entry: _Loader, kind: str, name: str, pair: Pair) -> None:
        """On the first batch every source counts for itself."""
        known = next((c for c in entry.candidates if c.kind == kind and name in c.names), None)
        arranged = sources.arrange(pair, self.config)
        if arranged is None:
            return
        if known is None:
            same = [c for c in entry.candidates if c.kind == kind
                    and _known(pair.target, c.targets) and _known(pair.preds, c.preds)]  # fmt: skip
            if same:  # another metric of a collection, updated with the same tensors
                same[0].names.add(name)
                return
            why = refusal(arranged, entry.batch) if kind == "loss" else ""
            if not why:
                try:
                    known = self._new(entry, kind, name, arranged)
                except ValueError as error:
                    why = str(error)
            if known is None:
                entry.refused.append(f"{pair.source}: {why}" if kind == "loss" else why)
                return
            entry.candidates.append(known)
        self._count(entry, known, arranged)
        _corroborate(entry.candidates)

    def _choose(self) -> None:
        """The first batch is over: metrics come before losses, then what saw the most."""
        entry, self._now = self._now, None
        if entry is None or entry.chosen is not None:
            return
        entry.batch = None
        asked = bool(self.config.top_k)
        ranked = sorted(
            entry.candidates,
            key=lambda c: (asked and not c.layout.top_k, _AFTER.get(c.kind, 0), -c.seen),
        )
        if not ranked:
            if self.explicit and entry.refused and self.config.num_classes is not None:
                raise ValueError(entry.refused[0])
            return
        entry.chosen = ranked[0]
        others = [c.said for c in ranked[1:]
                  if c.kind != "comparison" and _asks_other(c, ranked[0])]  # fmt: skip
        if others:
            entry.chosen.said += f" (not from {', '.join(dict.fromkeys(others))})"
        entry.candidates = []

    def _batch_over(self) -> None:
        entry = self._now
        self._choose()
        if entry is not None and self.ranks.world == 1:
            entry.batch_over()

    def _count(self, entry: _Loader, source: _Source, pair: Pair) -> None:
        if source.kind != "outputs":
            if _known(pair.target, source.targets):
                return  # the same samples again: a metric and then its log, two losses of a batch
            source.targets.append(_Identity(pair.target))
            source.preds.append(_Identity(pair.preds))
        n = len(pair.target)
        preds, target = pair.preds, pair.target
        source.seen += target.numel()
        if entry.keep < entry.samples:
            if n > entry.samples:  # dim 0 is not the batch: which rows are whose is not known
                entry.untrimmed += entry.samples - entry.keep
            else:
                keep = max(0, entry.keep - source.position)
                preds, target = preds[:keep], target[:keep]
            source.position += n
        source.state.count(preds, target.to(preds.device))

    def _agree(self, recorded: Recorded) -> list[_Loader]:
        """The loaders of this evaluation, equal on every rank, also on one that got no batch."""
        entries = [e for key, e in self._loaders.items() if key.split("/")[0] == self._stage]
        for entry in entries:
            if entry.chosen is not None and entry.layout is None:
                entry.layout, entry.source = entry.chosen.layout, entry.chosen.said
        unsaid = {
            e.key: (e.layout, e.source, e.names, e.batches, e.failed)
            for e in entries
            if e.failed or not e.agreed
        }
        everyone = self.ranks.meet("matrix", unsaid or None)
        if everyone is None:
            for entry in entries:
                entry.failed = "not every rank takes part"
                if "apart" not in entry.told:
                    entry.told.add("apart")
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
            if key not in self._loaders:
                entries.append(self._loaders.setdefault(key, _Loader(key)))
            self._settle_with(self._loaders[key], said, recorded)
        return sorted(entries, key=lambda e: _index(e.key))

    def _settle_with(self, entry: _Loader, said: Mapping[int, Any], recorded: Recorded) -> None:
        """Take what the ranks say of one loader, in the order of their numbers."""
        failed = {rank: why for rank, (*_, why) in said.items() if why}
        if failed:
            rank, why = next(iter(failed.items()))
            alone = self.ranks.world == 1 or entry.differ
            entry.failed = why if alone else f"on rank {rank} {why}"
        if entry.agreed:
            return
        layouts = {layout for layout, *_ in said.values() if layout is not None}
        if len(layouts) > 1:
            entry.failed = entry.differ = f"the ranks saw {len(layouts)} different layouts"
            recorded.warnings.append(
                f"{entry.key}: no confusion matrix, because {entry.failed}. "
                "Pass ConfusionMetrics(num_classes=..., task=..., source=...)"
            )
        for layout, source, names, *_ in said.values():
            if layout is not None:
                entry.layout, entry.source, entry.names = layout, source, names
                break
        entry.agreed = any(batches for _, _, _, batches, _ in said.values())
        entry.batches = entry.batches or sum(batches for _, _, _, batches, _ in said.values())

    def _reduced(
        self, entries: Sequence[_Loader]
    ) -> list[tuple[_Loader, Tensor, Tensor, tuple[Tensor, Tensor] | None]]:
        """Every state summed over all ranks, in one reduction, and copied to the host."""
        counted = [e for e in entries if e.layout is not None and not e.failed]
        if not counted:
            return []
        world, rank = self.ranks.world, self.ranks.rank
        states = [self._state(e, e.layout) for e in counted if e.layout is not None]
        pairs = [state.pairs() for state in states]
        home = _device(self._module) if world > 1 else states[0].counts.device
        parts = []
        for entry, state in zip(counted, states, strict=True):
            parts += [state.counts, state.hits, torch.tensor([entry.untrimmed])]
        rows = torch.zeros(world, dtype=torch.long)  # of each rank's confused pairs
        rows[rank] = sum(len(p[0]) for p in pairs if p is not None)
        parts.append(rows)
        flat = torch.cat([part.to(home) for part in parts])
        if world > 1:
            dist.all_reduce(flat)
        split = list(flat.cpu().split([len(part) for part in parts]))  # type: ignore[no-untyped-call]
        if world > 1 and any(p is not None for p in pairs):
            pairs = _exchanged(pairs, split[-1].tolist(), home)
        reduced = []
        for i, entry in enumerate(counted):
            counts, hits, untrimmed = split[3 * i : 3 * i + 3]
            entry.untrimmed = int(untrimmed)
            reduced.append((entry, counts, hits, pairs[i]))
        return reduced

    def _state(self, entry: _Loader, layout: Layout) -> ConfusionMatrix:
        if entry.chosen is not None and entry.chosen.layout == layout:
            return entry.chosen.state
        return ConfusionMatrix.of(layout)  # this rank saw nothing

    def _settle(self, entry: _Loader, result: ConfusionResult) -> None:
        """What an evaluation has shown for good stays so for the run."""
        assert entry.layout is not None
        if entry.layout.preds_are == "unknown" and result.preds_are == "logits":
            # For good: one score outside [0, 1] shows it. That none lies there does not show that
            # they are probabilities: those of a model that has hardly learned may all lie inside.
            entry.layout = replace(entry.layout, preds_are="logits")
            if (source := entry.chosen) is not None:
                source.layout = entry.layout
                source.state = ConfusionMatrix.of(entry.layout).to(source.state.device)
        if not entry.layout.exact:
            entry.least = max(entry.least, result.num_classes)

    def _tell(self, entry: _Loader, result: ConfusionResult, recorded: Recorded) -> None:
        layout = entry.layout
        assert layout is not None
        if "source" not in entry.told:
            entry.told.add("source")
            recorded.notes.append(f"{entry.key}: {_inferred(result, layout)}")
        if layout.preds_are == "unknown" and result.total:
            entry.in_doubt = True
        elif entry.in_doubt and result.preds_are == "logits":
            entry.in_doubt = False
            recorded.warnings.append(
                f"{entry.key}: the scores are logits, for some lie outside [0, 1]; until now "
                "none did, so they were taken for probabilities. "
                'Pass ConfusionMetrics(preds_are="logits")'
            )
        if not result.total and "empty" not in entry.told:
            entry.told.add("empty")
            recorded.warnings.append(f"{entry.key}: no sample was counted, so every score is NaN")
        if (problems := result.problems()) and "left out" not in entry.told:
            entry.told.add("left out")
            text = f"{entry.key}: left out of the confusion matrix: {'; '.join(problems)}"
            if not layout.exact and (result.out_of_range or result.unusable_preds):
                text += (
                    f". Labels tell up to {ROOM} classes: pass ConfusionMetrics(num_classes=...)"
                )
            recorded.warnings.append(text)
        if entry.dropped and "dropped" not in entry.told:
            entry.told.add("dropped")
            recorded.notes.append(f"{entry.key}: left out of each evaluation are {entry.dropped}")
        if entry.untrimmed and "untrimmed" not in entry.told:
            entry.told.add("untrimmed")
            recorded.notes.append(
                f"{entry.key}: {entry.untrimmed:,} of the samples counted are DistributedSampler's "
                "repetitions, because dim 0 of the target is not the batch"
            )

    def _tell_nothing(self, entry: _Loader, recorded: Recorded) -> None:
        if "nothing" in entry.told or not entry.batches:
            return
        entry.told.add("nothing")
        why = entry.failed or f"the step returned {entry.saw or 'nothing that is asked for'}"
        seen = f" and called {'; '.join(dict.fromkeys(entry.refused))}" if entry.refused else ""
        text = (
            f"{entry.key}: no confusion matrix, because {why}{seen}. "
            'Return {"preds": ..., "target": ...}, or pass ConfusionMetrics(source=...)'
        )
        (recorded.warnings if self.explicit else recorded.notes).append(text)


def _inferred(result: ConfusionResult, layout: Layout) -> str:
    what = "labels" if result.task == "multilabel" else "classes"
    said = [f"{result.task}, {result.num_classes:,} {what}, from {result.source}"]
    if result.task != "multiclass" and result.preds_are != "labels":
        said.append(f"{result.preds_are} cut at probability {layout.threshold:g}")
    if result.ignored:
        said.append(f"targets of {layout.ignore_index} ignored")
    return "; ".join(said)


def _device(module: nn.Module | None) -> torch.device:
    first = next(module.parameters(), None) if module is not None else None
    return first.device if first is not None else torch.device("cpu")


def _index(key: str) -> int:
    """Number of the loader in the key of a result."""
    return int(key.rpartition("_")[2]) if "/" in key else 0


def _exchanged(
    pairs: Sequence[tuple[Tensor, Tensor] | None], rows: Sequence[int], home: torch.device
) -> list[tuple[Tensor, Tensor] | None]:
    """The confused pairs of all ranks, merged: which state, key and count of each, one gather.

    Args:
        pairs: This rank's keys and counts by state, None where the matrix itself is kept.
        rows: How many each rank has.
        home: Where collectives run.
    """
    mine = [
        torch.stack((torch.full_like(keys, i), keys, counts))
        for i, (keys, counts) in ((i, p) for i, p in enumerate(pairs) if p is not None)
    ]
    padded = torch.zeros(3, max(rows), dtype=torch.long, device=home)
    flat = torch.cat(mine, 1)
    padded[:, : flat.shape[1]] = flat
    gathered = [torch.empty_like(padded) for _ in rows]
    if max(rows):
        dist.all_gather(gathered, padded)
    everyone = torch.cat([g[:, :n] for g, n in zip(gathered, rows, strict=True)], 1).cpu()
    merged: list[tuple[Tensor, Tensor] | None] = []
    for i, pair in enumerate(pairs):
        if pair is None:
            merged.append(None)
            continue
        of_it = everyone[1:, everyone[0] == i]
        keys, place = of_it[0].unique(return_inverse=True)  # type: ignore[no-untyped-call]
        merged.append((keys, torch.zeros_like(keys).scatter_add_(0, place, of_it[1])))
    return merged
