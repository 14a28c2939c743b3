"""One evaluation's confusion matrices: fed step by step, reduced across ranks once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DistributedSampler

from lightning_evalguard import sources
from lightning_evalguard.confusion import (
    ConfusionMatrix,
    ConfusionMetrics,
    Layout,
    read,
)
from lightning_evalguard.result import ConfusionResult
from lightning_evalguard.sources import Pair


@dataclass
class Recorded:
    """What one evaluation gave.

    Attributes:
        results: By stage and loader: ``"val"``, ``"val/dataloader_idx_1"``, ...
        notes: Sentences for the report: what was inferred, or why there is no matrix.
        warnings: Sentences that the user should see.
    """

    results: dict[str, ConfusionResult] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass
class _Loader:
    """The state of one stage and loader, and what is settled about it."""

    key: str
    names: tuple[str, ...] | None = None
    known: int | None = None
    layout: Layout | None = None
    state: ConfusionMatrix | None = None
    source: str = ""
    least: int = 2
    agreed: bool = False
    announced: bool = False
    failed: str = ""
    saw: str = ""
    # Samples that this rank owns of those that a DistributedSampler deals out; it repeats some so
    # that each rank gets as many. None where nothing is repeated.
    owned: int | None = None
    batches: int = 0
    untrimmed: int = 0
    warned: set[str] = field(default_factory=set)


class Recorder:
    """Counts what the steps of each evaluation predict.

    Args:
        config: What the user asked for; None to infer everything and to stay silent where there
            is nothing to count.
    """

    def __init__(self, config: ConfusionMetrics | None = None) -> None:
        self.config = config or ConfusionMetrics()
        self.explicit = config is not None
        self._loaders: dict[str, _Loader] = {}
        self._stage: str | None = None
        self._module: nn.Module | None = None

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
        self._stage, self._module = stage, module
        for i, loader in enumerate(_listed(dataloaders)):
            entry = self._loader(i)
            entry.batches, entry.untrimmed, entry.failed = 0, 0, ""
            entry.owned = _owned(loader)
            if entry.state is not None:
                entry.state.reset()
            if not entry.agreed:
                entry.names = self.config.class_names or sources.names_of(
                    loader, module, datamodule
                )
                entry.known = sources.classes_of(module)

    def before_step(self, batch: Any, dataloader_idx: int = 0) -> None:
        """The step is about to run on `batch`."""

    def after_step(self, outputs: Any, batch: Any, dataloader_idx: int = 0) -> None:
        """The step returned `outputs`: count them.

        Raises:
            ValueError: If what the user asked for does not fit, naming the argument.
        """
        entry = self._loader(dataloader_idx)
        entry.batches += 1
        if entry.failed:
            return
        source = self.config.source
        if source is not None and source != "loss" and not str(source).startswith("metric:"):
            pair: Pair | None = sources.from_source(source, outputs, batch)
        else:
            pair = sources.from_outputs(outputs)
        entry.saw = sources.shown(outputs)
        if pair is not None:
            self._count(entry, pair, _samples(batch))

    def stop(self, epoch: int | None = None, step: int | None = None) -> Recorded:
        """The evaluation is over: reduce across ranks and read every state."""
        recorded = Recorded()
        entries = [e for key, e in self._loaders.items() if key.split("/")[0] == self._stage]
        self._agree(entries, recorded)
        for entry, counts, hits, pairs, failed in self._reduced(entries):
            if failed or entry.layout is None:
                continue
            result = read(
                entry.layout, counts, hits, self._fitting_names(entry, counts),
                pairs, entry.least, self.config.per_class,
            )  # fmt: skip
            result.source, result.epoch, result.step = entry.source, epoch, step
            self._settle(entry, result)
            recorded.results[entry.key] = result
            self._tell(entry, result, recorded)
        for entry in entries:
            if entry.key not in recorded.results:
                self._tell_nothing(entry, recorded)
        self._stage = self._module = None
        return recorded

    def abort(self) -> None:
        """The evaluation ended in an exception: leave nothing behind."""
        self._stage = self._module = None

    def _loader(self, i: int) -> _Loader:
        key = f"{self._stage}/dataloader_idx_{i}" if i else str(self._stage)
        return self._loaders.setdefault(key, _Loader(key))

    def _count(self, entry: _Loader, pair: Pair, samples: int | None) -> None:
        arranged = sources.arrange(pair, self.config.task)
        if arranged is None:
            if self.explicit and self.config.source is not None:
                raise ValueError(
                    f"source gave preds {tuple(pair.preds.shape)} {pair.preds.dtype} and target "
                    f"{tuple(pair.target.shape)} {pair.target.dtype}, which fit no task"
                )
            return
        if entry.layout is None:
            known = len(entry.names) if entry.names else entry.known
            entry.layout = sources.layout_of(arranged, self.config, known)
            entry.source = arranged.source
        if entry.state is None:
            entry.state = ConfusionMatrix.of(entry.layout).to(arranged.preds.device)
        preds, target = self._owned_part(entry, arranged, samples)
        try:
            entry.state.update(preds, target.to(preds.device))
        except ValueError as error:
            if self.explicit:
                raise
            entry.failed = str(error)

    def _owned_part(self, entry: _Loader, pair: Pair, samples: int | None) -> tuple[Tensor, Tensor]:
        preds, target = pair.preds, pair.target
        if entry.owned is None:
            return preds, target
        n = samples if samples is not None else len(target)
        keep = min(n, entry.owned)
        entry.owned -= keep
        if keep == n:
            return preds, target
        if len(target) != n:  # not samples in dim 0: which of them belong to which is not known
            entry.untrimmed += n - keep
            return preds, target
        return preds[:keep], target[:keep]

    def _agree(self, entries: Sequence[_Loader], recorded: Recorded) -> None:
        """Once a run: the same layout on every rank, also on one that got no batch."""
        if all(entry.agreed for entry in entries):
            return
        mine = {e.key: (e.layout, e.source, e.names, e.batches) for e in entries}
        everyone = _gathered(mine)
        for entry in entries:
            said = [x[entry.key] for x in everyone if entry.key in x]
            layouts = {layout for layout, *_ in said if layout is not None}
            if len(layouts) > 1:
                entry.failed = f"the ranks saw {len(layouts)} different layouts"
                recorded.warnings.append(
                    f"{entry.key}: no confusion matrix, because {entry.failed}. "
                    "Pass ConfusionMetrics(num_classes=..., task=..., source=...)"
                )
            for layout, source, names, _ in said:
                if layout is not None:
                    entry.layout, entry.source, entry.names = layout, source, names
                    break
            entry.agreed = any(batches for *_, batches in said)

    def _reduced(
        self, entries: Sequence[_Loader]
    ) -> list[tuple[_Loader, Tensor, Tensor, Any, bool]]:
        """Every state summed over all ranks, in one reduction, and copied to the host."""
        with_layout = [e for e in entries if e.layout is not None]
        if not with_layout:
            return []
        device = next((e.state.counts.device for e in with_layout if e.state is not None), None)
        parts = []
        for entry in with_layout:
            state = entry.state
            if state is None:
                state = ConfusionMatrix.of(entry.layout)  # type: ignore[arg-type]
                state = entry.state = state.to(device or _device(self._module))
            failed = torch.tensor([int(bool(entry.failed)), entry.untrimmed])
            parts += [state.counts, state.hits, failed.to(state.counts.device)]
        flat = torch.cat([part.to(parts[0].device) for part in parts])
        if _world() > 1:
            flat = flat.to(_device(self._module))
            dist.all_reduce(flat)
        split = list(flat.cpu().split([len(part) for part in parts]))  # type: ignore[no-untyped-call]
        reduced = []
        for i, entry in enumerate(with_layout):
            counts, hits, flags = split[3 * i : 3 * i + 3]
            entry.untrimmed = int(flags[1])
            pairs = entry.state._pairs.counted() if entry.state and entry.state._pairs else None
            if pairs is not None and _world() > 1:
                pairs = _merged(_gathered(pairs))
            reduced.append((entry, counts, hits, pairs, bool(flags[0])))
        return reduced

    def _fitting_names(self, entry: _Loader, counts: Tensor) -> tuple[str, ...] | None:
        layout = entry.layout
        if entry.names is None or layout is None or len(entry.names) != layout.num_classes:
            return None
        return entry.names

    def _settle(self, entry: _Loader, result: ConfusionResult) -> None:
        """What the first evaluation showed stays so for the run."""
        assert entry.layout is not None
        if entry.layout.preds_are == "unknown" and result.total:
            entry.layout = replace(entry.layout, preds_are=result.preds_are)
            entry.state = None
        if not entry.layout.exact:
            entry.least = max(entry.least, result.num_classes)

    def _tell(self, entry: _Loader, result: ConfusionResult, recorded: Recorded) -> None:
        layout = entry.layout
        assert layout is not None
        if not entry.announced:
            entry.announced = True
            recorded.notes.append(f"{entry.key}: {_inferred(result, layout)}")
        if not result.total and "empty" not in entry.warned:
            entry.warned.add("empty")
            recorded.warnings.append(f"{entry.key}: no sample was counted, so every score is NaN")
        if (problems := result.problems()) and "left out" not in entry.warned:
            entry.warned.add("left out")
            recorded.warnings.append(f"{entry.key}: left out of the confusion matrix: "
                                     f"{'; '.join(problems)}")  # fmt: skip
        if entry.untrimmed:
            recorded.notes.append(
                f"{entry.key}: {entry.untrimmed} samples that DistributedSampler repeats are "
                "counted twice, because dim 0 of the target is not the batch"
            )

    def _tell_nothing(self, entry: _Loader, recorded: Recorded) -> None:
        if entry.announced or not entry.batches:
            return
        entry.announced = True
        why = entry.failed or f"the step returned {entry.saw}"
        text = (
            f"{entry.key}: no confusion matrix, because {why}. "
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


def _listed(dataloaders: Any) -> list[Any]:
    if isinstance(dataloaders, dict):
        return list(dataloaders.values())
    if isinstance(dataloaders, (list, tuple)):
        return list(dataloaders)
    return [dataloaders]


def _owned(loader: Any) -> int | None:
    sampler = getattr(loader, "sampler", None)
    batch_sampler = getattr(loader, "batch_sampler", None)
    if not isinstance(sampler, DistributedSampler):
        sampler = getattr(batch_sampler, "sampler", None)
    if not isinstance(sampler, DistributedSampler) or sampler.drop_last:
        return None
    return len(range(sampler.rank, len(sampler.dataset), sampler.num_replicas))  # type: ignore[arg-type]


def _samples(batch: Any) -> int | None:
    """Length of the first tensor in `batch`, depth first."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else None
    items = batch.values() if isinstance(batch, dict) else batch
    if isinstance(batch, (dict, list, tuple)):
        for item in items:
            if (n := _samples(item)) is not None:
                return n
    return None


def _device(module: nn.Module | None) -> torch.device:
    first = next(module.parameters(), None) if module is not None else None
    return first.device if first is not None else torch.device("cpu")


def _world() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _gathered(value: Any) -> list[Any]:
    if _world() == 1:
        return [value]
    everyone: list[Any] = [None] * _world()
    dist.all_gather_object(everyone, value)
    return everyone


def _merged(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    keys, place = torch.cat([k for k, _ in pairs]).unique(return_inverse=True)  # type: ignore[no-untyped-call]
    counts = torch.zeros_like(keys).scatter_add_(0, place, torch.cat([n for _, n in pairs]))
    return keys, counts
