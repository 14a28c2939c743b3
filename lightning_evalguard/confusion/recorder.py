"""One evaluation's confusion matrices: fed step by step, reduced across ranks once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_evalguard.confusion import labels, sources
from lightning_evalguard.confusion.by_batch import Batches
from lightning_evalguard.confusion.choice import (
    Evidence,
    Unread,
    counted_of,
    main_of,
    questions_of,
    returned_of,
)
from lightning_evalguard.confusion.config import ConfusionMetrics
from lightning_evalguard.confusion.functions import FunctionTap, SigmoidTap
from lightning_evalguard.confusion.layout import are_logits, margins, read
from lightning_evalguard.confusion.loader import (
    Identity,
    LoaderCount,
    Spare,
    Stream,
    is_known,
    tensors_of,
    versions_of,
)
from lightning_evalguard.confusion.matrix import ConfusionMatrix
from lightning_evalguard.confusion.outcomes import right
from lightning_evalguard.confusion.reduce import agree, reduced
from lightning_evalguard.confusion.sources import Pair
from lightning_evalguard.confusion.taps import LossTap, MetricTap, metrics_of
from lightning_evalguard.confusion.words import (
    Recorded,
    ambiguous,
    changed_in_place,
    overwritten,
    report,
    report_nothing,
    sigmoid_twice,
    swapped_order,
)
from lightning_evalguard.data.batches import sample_count
from lightning_evalguard.data.loaders import left_out, listed, owned
from lightning_evalguard.ranks import Alone

__all__ = ["Recorded", "Recorder"]

_HELD = 1 << 20  # elements of a pair that may wait for the end of its step
_KINDS = {"loss": {"loss"}, "metric": {"metric", "epoch"}}  # that an explicit source may be


class Recorder:
    """Counts what the steps of each evaluation predict.

    Args:
        config: What the user asked for; None to infer everything and to stay silent where there
            is nothing to count.
        ranks: The processes that count together, by default this one alone.
        outcomes: Whether results say of each sample whether it is right.

    Attributes:
        logged: What the running step logged so far, by key; asked where a step shows several
            answers.
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
        self.logged: Callable[[], Mapping[str, float]] = dict
        self._loaders: dict[str, LoaderCount] = {}
        self._stage: str | None = None
        self._module: nn.Module | None = None
        self._now: LoaderCount | None = None
        self._paused = self._epoch_ends = False
        source = str(self.config.source) if isinstance(self.config.source, str) else ""
        only = source.partition(":")[2] if source.startswith("metric:") else None
        self._reads_outputs = self.config.source is None or not (only or source == "loss")
        self._metrics = MetricTap(self._see, only)
        self._losses = LossTap(self._see)
        self._pairs = 0
        self._functions = FunctionTap(self._see, lambda: self._pairs)
        self._sigmoids = SigmoidTap()
        self._taps_metrics = self.config.source is None or only is not None
        self._taps_losses = self.config.source is None or source == "loss"
        self._logits: set[str] = set()  # sources of which one score has shown that they are

    # the life of an evaluation

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
            entry.begin()
            entry.dropped = left_out(loader)
            entry.owned = owned(loader)
            if not entry.agreed:
                entry.names = self.config.class_names or sources.names_of(
                    loader, module, datamodule
                )
                entry.known = sources.classes_of(module)

    def before_step(self, batch: Any, dataloader_idx: int = 0) -> None:
        """The step is about to run on `batch`: listen to its metrics and losses."""
        if self._stage is None or self._module is None:
            return
        self._close_step()
        entry = self._now = self._loader(dataloader_idx)
        entry.begin_step(sample_count(batch) or 0, tensors_of(batch))
        if entry.chosen is None:
            entry.batch = batch
        try:
            self._open_taps(self._module, entry)
        except BaseException:
            self._close_taps()
            raise

    def _open_taps(self, module: nn.Module, entry: LoaderCount) -> None:
        if entry.chosen is None:
            self._sigmoids.open(module)
        # Not at the start of the evaluation: hooks that run after it may still replace a metric.
        if entry.batches == 1 and self._taps_metrics:
            self._metrics.open(module)
        if self._taps_losses:
            self._losses.locates = self._functions.locates = entry.chosen is None
            self._losses.open()
            self._functions.open(module)

    def after_step(self, outputs: Any, batch: Any, dataloader_idx: int = 0) -> None:
        """The step returned `outputs`: count them.

        Raises:
            ValueError: If what the user asked for does not fit, naming the argument.
        """
        self._losses.close()
        entry = self._now
        if entry is None or entry.chosen is None:
            self._functions.close()  # who looks closely at hooks sees the functions as they are
        else:
            self._functions.pause()
        if entry is None:
            return
        try:
            if self._reads_outputs:
                self._see_outputs(entry, outputs, batch)
            if entry.chosen is None:
                loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
                for stream in entry.streams:
                    stream.is_returned = stream.gave(loss)
            elif not entry.counted and not entry.chosen.late:
                self._fall_back(entry)
        finally:
            entry.returned = True
            entry.end_step()
            self._sigmoids.close()

    def steps_over(self) -> None:
        """The last step is over: from now on scores of the whole evaluation may be computed."""
        self._close_step()
        self._epoch_ends = self._stage is not None
        if self._epoch_ends and self._module is not None and self._taps_losses:
            self._functions.open(self._module)

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
        self._close_step()
        self._close_taps()
        recorded = Recorded()
        for entry in self._entries():
            if entry.chosen is None and entry.streams:
                self._choose(entry)
            _name_others(entry)
            if entry.chosen is not None:
                entry.chosen.state.settle()
            _settle_shares(entry)
            _close_epoch(entry)
            entry.patterns = entry.patterns_here()
        entries = agree(self.ranks, self._loaders, self._stage, recorded)
        counted = reduced(self.ranks, self._module, entries)
        self._logits |= {
            e.source for e, counts, *_ in counted if e.layout and are_logits(e.layout, counts)
        }
        for entry, counts, hits, pairs in counted:
            assert entry.layout is not None
            fits = entry.names is not None and len(entry.names) == entry.layout.num_classes
            result = read(
                entry.layout, counts, hits, entry.names if fits else None,
                pairs, entry.least, self.config.per_class, entry.source in self._logits,
            )  # fmt: skip
            result.source, result.epoch, result.step = entry.source, epoch, step
            if _is_made_in_the_step(entry, result.support):
                continue
            if entry.chosen is not None and entry.chosen.state.kept is not None:
                kept = entry.chosen.state.kept
                result.right = right(entry.layout, kept, result.preds_are)
            self._settle(entry, result)
            recorded.results[entry.key] = result
            each = entry.each or Batches()
            each.close(
                result.task, partial(margins, entry.layout, result.num_classes, result.preds_are)
            )
            recorded.batches[entry.key], entry.each = each, Batches()
            report(entry, result, recorded)
        for entry in entries:
            if entry.key not in recorded.results:
                report_nothing(entry, recorded, self.explicit, self.logged)
        self._stage = self._module = self._now = None
        return recorded

    def abort(self) -> None:
        """The evaluation ended in an exception: leave nothing behind."""
        self._close_taps()
        for entry in self._loaders.values():
            entry.streams = []
            entry.end_step()
        self._stage = self._module = self._now = None

    def _close_taps(self) -> None:
        self._epoch_ends = False
        for tap in (self._metrics, self._losses, self._functions, self._sigmoids):
            tap.close()

    def _entries(self) -> list[LoaderCount]:
        """The loaders of the running evaluation."""
        return [e for key, e in self._loaders.items() if key.split("/")[0] == self._stage]

    def _loader(self, i: int) -> LoaderCount:
        key = f"{self._stage}/dataloader_idx_{i}" if i else str(self._stage)
        return self._loaders.setdefault(key, LoaderCount(key))

    # what a step shows

    def _see(self, kind: str, name: str, pair: Pair, value: Any = None) -> None:
        """A metric or a loss is called. Whatever goes wrong here, the user's step goes on."""
        entry = self._now
        self._pairs += kind != "other"
        if self._epoch_ends:
            entry, kind = self._of_epoch(kind), "epoch"
        if entry is None or self._paused or entry.failed:
            return
        try:
            if entry.chosen is not None:
                self._follow(entry, kind, name, pair)
            else:
                self._consider(entry, kind, name, pair, value)
        except Exception as error:  # noqa: BLE001 - a tensor subclass, a user's type: not ours to judge
            entry.trouble = entry.trouble or f"{pair.source} could not be counted: {error}"

    def _of_epoch(self, kind: str) -> LoaderCount | None:
        """The loader whose whole evaluation a call is about: the only one."""
        entries = [e for e in self._entries() if e.batches]
        if kind == "other" or len(entries) != 1:
            return None
        (entry,) = entries
        at_steps = entry.chosen is not None and entry.chosen.kind != "epoch"
        return None if at_steps else entry

    def _see_outputs(self, entry: LoaderCount, outputs: Any, batch: Any) -> None:
        entry.saw = sources.shown(outputs)
        if self.config.source is not None:
            pair: Pair | None = sources.from_source(self.config.source, outputs, batch)
        else:
            pair = sources.from_outputs(outputs)
        if pair is None or "outputs" in entry.excluded:
            return
        try:
            if entry.chosen is not None:
                self._follow(entry, "outputs", "", pair)
            else:
                self._consider(entry, "outputs", "", pair, None)
        except (ValueError, RuntimeError, TypeError, IndexError) as error:
            if self.explicit:
                raise
            entry.trouble = f"{pair.source} could not be counted: {error}"

    def _consider(self, entry: LoaderCount, kind: str, name: str, pair: Pair, value: Any) -> None:
        """On the first batch every source counts for itself."""
        if kind == "other":
            entry.kinds.add(name)
            return
        leaves = tensors_of(entry.batch)
        role = entry.role_of(pair.target)
        swapped = kind != "epoch" and role is None and _stands_in(entry, pair.preds, pair.target)
        if swapped:
            pair = replace(pair, preds=pair.target, target=pair.preds)
            role = entry.role_of(pair.target)
        from_batch = role is not None or labels.equals_one_of(pair.target, leaves)
        pair = self._informed(entry, kind, pair)
        arranged = sources.arrange(pair, self.config, None, entry.axis or 1)
        if arranged is None:
            if self.config.source is not None and kind == "outputs":
                raise ValueError(
                    f"source gave preds {tuple(pair.preds.shape)} {pair.preds.dtype} and target "
                    f"{tuple(pair.target.shape)} {pair.target.dtype}, which fit no task"
                )
            return
        if kind != "outputs" or self.config.source is None:
            why = labels.refusal(arranged, from_batch, leaves[0] if leaves else None)
            if why:
                entry.refused.append(f"{pair.source}: {why}")
                return
        stream = self._stream(entry, kind, name, role, pair, arranged)
        if stream is None:
            return
        if isinstance(value, Tensor) and stream.value is None:
            stream.value = value.detach()
        stream.swapped, stream.from_batch = swapped, from_batch
        stream.versions = versions_of(pair.preds, pair.target)
        stream.structured = not from_batch and labels.has_pattern(arranged.target)
        if stream.structured:
            stream.pattern = arranged.target.detach().clone()
        preds = labels.answers(arranged, stream.layout.preds_are, stream.layout.threshold)
        stream.keep_answers(preds, arranged.target.long())
        self._count(entry, stream, arranged, pair)
        if kind == "loss":
            _corroborate(entry.streams, stream)
        if kind == "outputs":
            _note_writes(entry, stream, pair)

    def _informed(self, entry: LoaderCount, kind: str, pair: Pair) -> Pair:
        """`pair` with what the rest of the step says about it."""
        preds = Identity(pair.preds)
        of_logits = kind == "loss" and pair.task is None and pair.preds_are == "logits"
        if of_logits and self._sigmoids.gave(pair.preds):
            pair = replace(pair, preds_are="probs")
            if "sigmoid twice" not in entry.reported:
                entry.reported.add("sigmoid twice")
                entry.found.append(sigmoid_twice(entry, pair))
        if kind == "loss" and pair.preds.ndim > 1:
            entry.strides.append((pair.preds.untyped_storage().data_ptr(), pair.preds.stride(1)))
        undecided = kind == "outputs" and entry.axis is None
        if undecided and sources.is_ambiguous(pair.preds, pair.target):
            entry.axis = sources.axis_of(self._module, pair, entry.strides)
        same = [s for s in entry.streams if is_known(preds, s.scores)]
        if kind == "outputs":
            target = Identity(pair.target)
            for stream in same:
                if not is_known(target, stream.targets):
                    continue
                if stream.layout.ignore_index != -100 and pair.ignore_index is None:
                    pair = replace(pair, ignore_index=stream.layout.ignore_index)
                if stream.kind == "metric" and pair.threshold is None:
                    pair = replace(pair, threshold=stream.layout.threshold)
        kinds = {s.layout.preds_are for s in same if s.kind == "loss"}
        if pair.preds_are is None and len(kinds) == 1:
            pair = replace(pair, preds_are=kinds.pop())
        if not pair.classification and any(s.layout.task != "multiclass" for s in same):
            pair = replace(pair, classification=True)
        zero_or_one = kind == "outputs" and not pair.classification and _is_yes_or_no(pair)
        if zero_or_one and not entry.kinds:
            pair = replace(pair, classification=True)
        if labels.are_shares(pair.preds, pair.target):
            pair = replace(pair, shares=pair.task != "multilabel", classification=True)
        return pair

    def _stream(
        self, entry: LoaderCount, kind: str, name: str, role: int | None, pair: Pair, arranged: Pair
    ) -> Stream | None:
        """The stream that a pair of the first batch belongs to; None where it is known already."""
        target, preds = Identity(pair.target), Identity(pair.preds)
        like = [s for s in entry.streams if s.kind == kind]
        for stream in like:
            if is_known(target, stream.targets) and is_known(preds, stream.scores):
                stream.names.add(name)  # another metric of a collection, given the same tensors
                return None
        like = [s for s in like if name in s.names and s.role == role]
        for stream in like:
            if kind == "metric" and is_known(target, stream.targets):
                return None  # a metric and then its log
            if _is_a_part(entry, stream, arranged):
                return stream
        try:
            layout = self._layout(entry, arranged)
        except ValueError as error:
            if kind == "outputs" and self.explicit:
                raise
            entry.refused.append(str(error))
            return None
        state = ConfusionMatrix.of(layout).to(arranged.preds.device)
        state.kept = [] if self._outcomes else None
        stream = Stream(kind, {name}, len(like), role, layout, state, pair.source, pair.location)
        stream.late, stream.shares = entry.returned, pair.shares
        if pair.shares and arranged.task == "multiclass" and kind != "metric":
            stream.twin = self._twin(entry, pair)
        entry.streams.append(stream)
        return stream

    def _twin(self, entry: LoaderCount, pair: Pair) -> ConfusionMatrix | None:
        """The state that counts one-hot targets as so many labels, should they be that."""
        as_labels = replace(pair, shares=False, task="multilabel")
        layout = self._layout(entry, sources._as(as_labels, pair.preds, pair.target, "multilabel"))
        return ConfusionMatrix.of(layout).to(pair.preds.device)

    def _layout(self, entry: LoaderCount, arranged: Pair) -> Any:
        if entry.layout is not None:
            return entry.layout
        known = len(entry.names) if entry.names else entry.known
        layout = sources.layout_of(arranged, self.config, known)
        if layout.preds_are in ("logits", "unknown") and layout.task != "multiclass":
            guesses = self._module is not None and any(metrics_of(self._module))
            layout = replace(layout, by_batch=guesses)
        return layout

    # the batches after the first

    def _follow(self, entry: LoaderCount, kind: str, name: str, pair: Pair) -> None:
        """The chosen stream's pair is counted at once; another waits for the end of the step."""
        chosen = entry.chosen
        assert chosen is not None
        if kind == chosen.kind and name in chosen.names:
            own = pair
            if chosen.swapped:
                own = replace(pair, preds=pair.target, target=pair.preds)
            if is_known(Identity(own.target), chosen.targets):
                return  # the same samples again: a metric and then its log, two losses of a batch
            named = kind in ("outputs", "metric", "epoch")
            mine = named or entry.role_of(own.target) == chosen.role
            if mine and self._is_its_turn(entry, own):
                arranged = self._fitting(entry, chosen, own, is_own=True)
                if arranged is not None:
                    self._count(entry, chosen, arranged, own)
                    return
        if entry.counted or chosen.late or kind in ("other", "epoch"):
            return
        spare = Spare(kind, name, entry.role_of(pair.target), pair)
        if pair.preds.numel() > _HELD:
            spare.pair = _labels_of(self._fitting(entry, chosen, pair), pair)
        entry.spares.append(spare)

    def _is_its_turn(self, entry: LoaderCount, pair: Pair) -> bool:
        """Whether the chosen stream is this one of several of one name in the step."""
        chosen = entry.chosen
        assert chosen is not None
        if chosen.samples:
            return _is_a_part(entry, chosen, pair)
        before = [s for s in entry.spares if s.name in chosen.names and s.role == chosen.role]
        return len(before) >= chosen.place

    def _fitting(
        self, entry: LoaderCount, chosen: Stream, pair: Pair, is_own: bool = False
    ) -> Pair | None:
        """`pair` as the chosen stream counts it; None where it does not fit."""
        if chosen.shares:
            pair = replace(pair, shares=True, classification=True)
        if chosen.layout.task != "multiclass" and not pair.classification:
            pair = replace(pair, classification=True)
        arranged = sources.arrange(pair, self.config, chosen.layout, entry.axis or 1)
        if arranged is None:
            return None
        layout = chosen.layout
        if arranged.task != layout.task:
            return None
        scored = arranged.preds.ndim == arranged.target.ndim + 1
        if layout.task == "multiclass" and scored and arranged.preds.shape[1] != layout.num_classes:
            return arranged if is_own and self._regrown(entry, chosen, arranged) else None
        if layout.task == "multilabel" and arranged.preds.shape[1:2] != (layout.num_classes,):
            return self._flattened(entry, chosen, arranged)
        return arranged

    def _regrown(self, entry: LoaderCount, chosen: Stream, arranged: Pair) -> bool:
        """Whether the matrix got another size: an evaluation begins with other scores."""
        fresh = entry.given == entry.left_out and not chosen.samples
        asked = self.config.num_classes is not None
        if not fresh or asked or not chosen.layout.exact:
            return False
        before = chosen.layout.num_classes
        width = arranged.preds.shape[1]
        full = width <= self.config.max_full_classes
        chosen.layout = replace(chosen.layout, num_classes=width, full=full)
        chosen.state = ConfusionMatrix.of(chosen.layout).to(arranged.preds.device)
        chosen.state.kept = [] if self._outcomes else None
        entry.layout, entry.agreed = chosen.layout, False
        entry.reported.discard("source")
        chosen.said += f" (which had {before} classes before)"
        entry.source = chosen.said
        return True

    def _flattened(self, entry: LoaderCount, chosen: Stream, arranged: Pair) -> Pair | None:
        """So many labels, and then another number: they are positions, and one question."""
        if chosen.layout.task != "multilabel" or self.config.task == "multilabel":
            return None
        if chosen.kind == "metric":
            return None
        layout = replace(chosen.layout, task="binary", num_classes=2)
        state = ConfusionMatrix.of(layout).to(arranged.preds.device)
        chosen.state.into(state)
        chosen.layout, chosen.state, entry.each = layout, state, None
        return replace(arranged, task="binary")

    def _fall_back(self, entry: LoaderCount) -> None:
        """The step did not show the chosen stream: count what fits it best."""
        chosen = entry.chosen
        assert chosen is not None
        order = {"outputs": 0, "metric": 1, "loss": 2, "function": 3, "comparison": 4}
        fitting = [s for s in entry.spares if s.role == chosen.role and s.kind in order]
        fitting.reverse()  # the last loss of the step first
        fitting.sort(key=lambda s: order[s.kind])
        for spare in fitting:
            arranged = None if spare.changed else self._fitting(entry, chosen, spare.pair)
            if arranged is not None:
                self._count(entry, chosen, arranged, spare.pair)
                return
        self._begin_anew(entry, chosen)

    def _begin_anew(self, entry: LoaderCount, chosen: Stream) -> None:
        """The chosen stream is given other targets, or more classes, from this evaluation on."""
        own = [s for s in entry.spares if s.kind == chosen.kind and s.name in chosen.names]
        if entry.given > entry.left_out or not own or own[-1].changed:
            return
        arranged = self._fitting(entry, chosen, own[-1].pair, is_own=True)
        if arranged is not None:
            chosen.role = own[-1].role
            self._count(entry, chosen, arranged, own[-1].pair)

    def _count(self, entry: LoaderCount, stream: Stream, arranged: Pair, raw: Pair) -> None:
        stream.targets.append(Identity(raw.target))
        stream.scores.append(Identity(raw.preds))
        stream.samples += len(arranged.target)
        if stream is entry.chosen:
            entry.counted = True
        if stream.pattern is not None and stream is entry.chosen:
            entry.compare(stream.pattern, arranged.target)
        preds, target = entry.trimmed(arranged.preds, arranged.target)
        take = stream.state.count
        if stream is entry.chosen and stream.twin is None:
            take = stream.state.note
        take(preds, target.to(preds.device))
        if stream.twin is not None and raw.preds.shape == raw.target.shape:
            stream.twin.count(raw.preds, raw.target.to(raw.preds.device))
            broken = labels.no_shares(raw.target)
            entry.violated = broken if entry.violated is None else entry.violated | broken

    # the end of a step

    def _close_step(self) -> None:
        """The step is over, and the hooks after it: choose, and close the count."""
        entry, self._now = self._now, None
        self._sigmoids.close()
        if entry is None:
            return
        if entry.chosen is None and entry.streams:
            self._choose(entry)
        unit = entry.keep if entry.samples else 1
        entry.given += unit
        chosen = entry.chosen
        if chosen is None or not chosen.samples:
            entry.leave_out(entry.trouble or _shown_by(entry))
        elif chosen.samples < entry.samples:
            entry.partly += entry.samples - chosen.samples
        if chosen is not None and entry.each is not None and self.ranks.world == 1:
            chosen.state.step_over(entry.each)
        entry.end_step()

    def _choose(self, entry: LoaderCount) -> None:
        """The first batch is over: one of its streams counts from now on."""
        streams = [s for s in _the_right_way_round(entry) if not s.is_changed]
        told = [s for s in streams if s.kind != "comparison"]
        streams_told = told or streams  # labels that were compared tell least
        evidence = Evidence(samples=entry.samples, top_k=bool(self.config.top_k))
        returned = returned_of(streams_told, evidence)
        if returned is not None:
            if len(streams_told) > 1:
                entry.others = Unread(streams_told, returned).others
            _take(entry, returned)
            return
        questions = questions_of(streams_told)
        if len(questions) > 1:
            evidence.logged = self.logged()
        main, is_told = main_of(questions, evidence)
        others = [question for question in questions if question is not main]
        chosen = counted_of(main, others)
        if chosen.kind != "outputs":
            entry.excluded |= {s.kind for s in streams if s.kind == "outputs"}
        said = [q.streams[-1].said for q in others if chosen not in q.streams]
        if not is_told:
            entry.warnings.append(ambiguous(entry.key, chosen.said, said))
        elif said:
            chosen.said += _not_from(said)
        _take(entry, chosen)

    def _settle(self, entry: LoaderCount, result: Any) -> None:
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


def _take(entry: LoaderCount, chosen: Stream) -> None:
    """This stream counts from now on."""
    for stream in entry.streams:
        stream.forget_step()
    entry.chosen, entry.streams = chosen, []
    entry.strides.clear()
    entry.counted = bool(chosen.samples)


def _not_from(said: Sequence[str]) -> str:
    return f" (not from {', '.join(dict.fromkeys(said))})"


def _name_others(entry: LoaderCount) -> None:
    """The evaluation is over, its counts are read anyway: say what else the step showed."""
    ask, entry.others = entry.others, None
    others = ask() if ask is not None else []
    if others and entry.chosen is not None:
        entry.chosen.said += _not_from(others)


def _corroborate(streams: list[Stream], loss: Stream) -> None:
    """What a loss takes its scores for holds of a metric that is given the same ones."""
    for one in streams:
        unknown = one.kind == "metric" and one.layout.preds_are == "unknown" and one.layout.by_batch
        if unknown and any(x.is_of(y) for x in one.scores for y in loss.scores):
            one.layout = replace(one.layout, preds_are=loss.layout.preds_are)
            if one.elements == loss.elements:
                one.preds = loss.preds


def _is_a_part(entry: LoaderCount, stream: Stream, arranged: Pair) -> bool:
    """Whether a pair is a further part of the batch, after what the stream showed of it."""
    n = len(arranged.target) if arranged.target.ndim else 1
    if stream.kind == "epoch":
        return False
    return bool(stream.samples) and stream.samples + n <= entry.samples


def _stands_in(entry: LoaderCount, preds: Tensor, target: Tensor) -> bool:
    """Whether the batch holds the predictions, as labels: they are the targets."""
    if entry.role_of(preds) is None or preds.is_complex():
        return False
    if not preds.is_floating_point():
        return preds.ndim > 0
    return preds.shape == target.shape and bool(((preds == 0) | (preds == 1)).all())


def _is_yes_or_no(pair: Pair) -> bool:
    """Whether floating-point targets are all 0 and 1, and both occur."""
    target = pair.target
    if not target.is_floating_point() or target.numel() < 2:
        return False
    zero, one = target == 0, target == 1
    return bool((zero | one).all() & zero.any() & one.any())


def _the_right_way_round(entry: LoaderCount) -> list[Stream]:
    """The streams of the first step without those that another one shows to be turned round."""
    turned = [s for s in entry.streams if any(_is_turned(s, other) for other in entry.streams)]
    for stream in entry.streams:
        if stream.swapped or stream in turned:
            entry.found.append(swapped_order(entry, stream))
    return [s for s in entry.streams if s not in turned]


def _note_writes(entry: LoaderCount, returned: Stream, pair: Pair) -> None:
    """What the step changed in place before it returned it."""
    given = [s for s in entry.streams if s.kind in ("loss", "metric")]
    earlier = next((s for s in given if s.was_before(returned)), None)
    if earlier is not None:
        returned.is_changed = True
        entry.found.append(changed_in_place(entry, returned, earlier))
    elif which := entry.overwritten(pair):
        entry.found.append(overwritten(entry, returned, which))


def _is_turned(one: Stream, other: Stream) -> bool:
    """Whether `one` takes for predictions what `other` takes for targets, and the reverse."""
    if one is other or one.from_batch:
        return False
    if not (other.from_batch or (other.kind == "loss" and one.kind != "loss")):
        return False
    if one.preds is None or one.target is None or other.preds is None or other.target is None:
        return False
    if one.preds.numel() != other.preds.numel():
        return False
    crossed = torch.equal(one.preds, other.target) and torch.equal(one.target, other.preds)
    return crossed and not torch.equal(one.preds, one.target)


def _labels_of(arranged: Pair | None, pair: Pair) -> Pair:
    """A pair of many scores as labels, which are fewer."""
    if arranged is None or arranged.task != "multiclass" or not arranged.preds.is_floating_point():
        return pair
    if arranged.preds.ndim != arranged.target.ndim + 1:
        return pair
    return replace(arranged, preds=arranged.preds.argmax(1), shares=False)


def _settle_shares(entry: LoaderCount) -> None:
    """Decide, once an evaluation is over, whether targets are shares of classes or many labels."""
    chosen = entry.chosen
    if chosen is None or chosen.twin is None or entry.violated is None:
        return
    if bool(entry.violated):
        chosen.state, chosen.shares, entry.each = chosen.twin, False, None
        chosen.layout = chosen.state.layout
        entry.layout = chosen.layout if entry.layout is not None else None
    chosen.twin = None


def _is_made_in_the_step(entry: LoaderCount, support: Tensor) -> bool:
    """Whether the targets turned out to be no labels: one pattern, made in each step."""
    patterns = entry.patterns
    if not patterns.made or patterns.made < patterns.ranks or not int(support.sum()):
        return False
    one_class = int((support > 0).sum()) == 1
    always = patterns.compared > 0 and not patterns.differing
    if one_class or always:
        entry.refused.append(f"{entry.source}: its targets are a pattern that the step makes")
        return True
    if (chosen := entry.chosen) is not None:
        chosen.structured, chosen.pattern = False, None
    return False


def _close_epoch(entry: LoaderCount) -> None:
    """Where all was shown at the end of the epoch, the steps left nothing out."""
    chosen = entry.chosen
    if chosen is not None and chosen.kind == "epoch":
        entry.left_out = max(0, entry.given - chosen.samples) if entry.samples else 0
        entry.first = (
            (entry.batches - 1, "the hook after the last step") if entry.left_out else None
        )


def _shown_by(entry: LoaderCount) -> str:
    return f"its step returned {entry.saw}" if entry.saw else "its step showed none"
