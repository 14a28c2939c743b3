"""One evaluation's confusion matrices: fed step by step, reduced across ranks once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from lightning_evalguard.confusion import names, sources
from lightning_evalguard.confusion.arrays import agrees, holds_label
from lightning_evalguard.confusion.by_batch import Batches
from lightning_evalguard.confusion.choice import WEAK
from lightning_evalguard.confusion.choosing import choose, name_others
from lightning_evalguard.confusion.closing import (
    close_epoch,
    is_made_in_the_step,
    settle_shares,
)
from lightning_evalguard.confusion.config import ConfusionMetrics
from lightning_evalguard.confusion.differences import turned_round
from lightning_evalguard.confusion.epoch_arrays import pairs_of_epoch
from lightning_evalguard.confusion.first_step import FirstStep
from lightning_evalguard.confusion.following import Following
from lightning_evalguard.confusion.layout import are_logits, margins, read_state
from lightning_evalguard.confusion.listening import StepTaps
from lightning_evalguard.confusion.loader import TENSORS, LoaderCount
from lightning_evalguard.confusion.outcomes import right
from lightning_evalguard.confusion.parts import choosers_of
from lightning_evalguard.confusion.reduce import agree, reduced
from lightning_evalguard.confusion.result import ConfusionResult
from lightning_evalguard.confusion.sources import Pair
from lightning_evalguard.confusion.thresholds import cuts_of, names_thresholds
from lightning_evalguard.confusion.words import Recorded, report, report_nothing
from lightning_evalguard.data.batches import sized
from lightning_evalguard.data.loaders import left_out, listed, owned
from lightning_evalguard.paths import shown_path
from lightning_evalguard.ranks import Alone

__all__ = ["Recorded", "Recorder"]

_LONG = 60  # characters of an expression


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
        makes_targets: Whether steps read no label of their batch: they make their targets.
        pairs: How many were shown so far.
    """

    _compares = True  # whether it listens to comparisons by itself

    def __init__(
        self,
        config: ConfusionMetrics | None = None,
        ranks: Alone | None = None,
        outcomes: bool = False,
    ) -> None:
        self.ranks = ranks or Alone()
        self.config = config or ConfusionMetrics()
        self.explicit = config is not None
        self.logged: Callable[[], Mapping[str, float]] = dict
        self.makes_targets = False
        self._loaders: dict[str, LoaderCount] = {}
        self._running: dict[int, LoaderCount] = {}  # of the running evaluation
        self._stage: str | None = None
        self._module: nn.Module | None = None
        self._now: LoaderCount | None = None
        self._paused = self._epoch_ends = False
        self._pairs = 0
        self._following = Following(self.config, outcomes)
        self._taps = StepTaps(
            self, self._following.at_once, self.config, self._compares
        )
        self._first = FirstStep(
            self.config, self.explicit, outcomes, self._taps.sigmoids
        )
        self._cuts_itself: bool | None = None  # whether the module names thresholds
        # sources of which one score has shown that they are
        self._logits: set[str] = set()

    # the life of an evaluation

    def start(
        self,
        stage: str,
        module: nn.Module,
        dataloaders: Any = None,
        datamodule: Any = None,
    ) -> None:
        """An evaluation begins: every state of `stage` starts from zero.

        Args:
            stage: ``val`` or ``test``.
            module: The LightningModule.
            dataloaders: The loaders, one or a sequence or a dict of them.
            datamodule: Where ``classes`` may stand.
        """
        self.abort()
        self._running.clear()
        self._stage, self._module = stage, module
        self._first.module = module
        # once a run: every attribute of every module is looked at
        if self._cuts_itself is None:
            self._cuts_itself = self.ranks.world == 1 and names_thresholds(module)
        for i, loader in enumerate(listed(dataloaders)):
            entry = self._loader(i)
            entry.begin()
            entry.dropped = left_out(loader)
            entry.owned = owned(loader)
            entry.keeps_scores = self._cuts_itself
            if not entry.agreed:
                entry.names = self.config.class_names or names.names_of(
                    loader, module, datamodule
                )
                entry.known = names.classes_of(module)

    def before_step(self, batch: Any, dataloader_idx: int = 0) -> None:
        """The step is about to run on `batch`: listen to its metrics and losses."""
        if self._stage is None or self._module is None:
            return
        if self._now is not None:
            self._close_step()
        entry = self._running.get(dataloader_idx) or self._loader(dataloader_idx)
        entry.begin_step(*sized(batch, TENSORS))
        self._now = self._following.entry = entry
        if entry is self._taps.settled:
            self._taps.hear(True)
            return
        if entry.chosen is None:
            entry.batch = batch
        self._taps.before_step(self._module, entry)

    def after_step(self, outputs: Any, batch: Any, dataloader_idx: int = 0) -> None:
        """The step returned `outputs`: count them.

        Raises:
            ValueError: If what the user asked for does not fit, naming the argument.
        """
        entry = self._now
        if entry is not None and entry is self._taps.settled:
            self._taps.hear(False)
            if entry.counted and outputs is None and self.config.source is None:
                # most steps: nothing more is looked for
                entry.returned = True
                entry.end_step()
                return
        else:
            self._taps.after_step(entry)
        if entry is None:
            return
        try:
            if self._taps.reads_outputs and (
                outputs is not None or self.config.source is not None
            ):
                self._see_outputs(entry, outputs, batch)
            self._see_arrays(entry)
            if entry.chosen is None:
                entry.uses_labels |= self._taps.gathers.used
                loss = outputs
                if isinstance(outputs, Mapping):
                    loss = outputs.get("loss")
                for stream in entry.streams:
                    stream.is_returned = stream.gave(loss)
                if len({stream.elements for stream in entry.streams}) > 1:
                    # of some answers, or of some and of all
                    entry.choosers = choosers_of(entry.tensors, entry.streams)
            elif not entry.counted and not entry.chosen.late:
                self._following.fall_back(entry)
        finally:
            self._taps.arrays.close()
            if not entry.counted:
                entry.saw = sources.shown(outputs)
            entry.returned = True
            entry.end_step()
            if entry.chosen is None:
                self._taps.sigmoids.close()

    def steps_over(self) -> None:
        """The last step is over: from now on scores of the whole evaluation may be computed."""
        self._close_step()
        self._epoch_ends = self._stage is not None
        module = None
        if self._epoch_ends:
            module = self._module
        self._taps.steps_over(module, any(e.is_open for e in self._entries()))

    def hear(
        self,
        kind: str,
        name: str,
        preds: Tensor,
        target: Tensor,
        pair: Callable[[], Pair],
    ) -> None:
        """A pair that is described where it is looked at: a comparison."""
        if not self._following.at_once(kind, name, preds, target, pair):
            self.see(kind, name, pair())

    @property
    def has_arrays(self) -> bool:
        """Whether something of the running step became an array."""
        return bool(self._taps.arrays.given)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing that runs meanwhile is counted: a step that is replayed."""
        before, self._paused = self._paused, True
        entry = self._following.entry
        self._following.entry = None
        try:
            yield
        finally:
            self._paused = before
            self._following.entry = entry

    def stop(self, epoch: int | None = None, step: int | None = None) -> Recorded:
        """The evaluation is over: reduce across ranks and read every state.

        Raises:
            EvalGuardError: The same on every rank, where one of them holds a finding.
            ValueError: If what the user asked for does not fit what was seen.
        """
        self._close_step()
        self._see_arrays_of_epoch()
        recorded = Recorded(findings=self._taps.decisions.findings(str(self._stage)))
        self._close_taps()
        for entry in self._entries():
            if entry.chosen is None and entry.streams:
                choose(entry, self.config, self.logged)
            name_others(entry)
            if entry.chosen is not None:
                entry.chosen.state.settle()
            settle_shares(entry)
            close_epoch(entry)
            entry.patterns = entry.patterns_here()
        entries = agree(self.ranks, self._loaders, self._stage, recorded)
        counted = reduced(self.ranks, self._module, entries)
        self._logits |= {
            e.source
            for e, counts, *_ in counted
            if e.layout and are_logits(e.layout, counts)
        }
        for entry, counts, hits, pairs in counted:
            result = self._read(entry, counts, hits, pairs)
            result.epoch, result.step = epoch, step
            if entry.unverified and not self._is_score(result):
                entry.trouble = f"{entry.source} give no score that is logged"
            elif not is_made_in_the_step(entry, result.support):
                self._keep(entry, result, recorded)
        for entry in entries:
            if entry.key not in recorded.results:
                entry.labelled &= not self.makes_targets or entry.converts_labels
                report_nothing(entry, recorded, self.explicit, self.logged)
        self._stage = self._module = self._first.module = self._now = None
        self._following.entry = None
        return recorded

    def _is_score(self, result: ConfusionResult) -> bool:
        """Whether arrays that may be predictions and targets are what is scored."""
        return agrees(result, self.logged())

    def _read(
        self, entry: LoaderCount, counts: Any, hits: Any, pairs: Any
    ) -> ConfusionResult:
        """What was counted of a loader, on all ranks."""
        assert entry.layout is not None
        fits = entry.names is not None and len(entry.names) == entry.layout.num_classes
        result = read_state(
            entry.layout,
            counts,
            hits,
            entry.names if fits else None,
            pairs,
            entry.least,
            self.config.per_class,
            entry.source in self._logits,
        )
        result.source = entry.source
        if "turned round" in entry.reported and result.matrix is not None:
            result.misread += (turned_round(result.matrix),)
        if entry.scored and self._module is not None:
            scored, entry.scored = entry.scored, []
            result.misread += cuts_of(
                scored, entry.layout, result.preds_are, self._module
            )
        return result

    def _keep(
        self, entry: LoaderCount, result: ConfusionResult, recorded: Recorded
    ) -> None:
        """A matrix stands: settle what it has shown, and say what there is to say."""
        assert entry.layout is not None
        if entry.chosen is not None and entry.chosen.state.kept is not None:
            result.right = right(
                entry.layout, entry.chosen.state.kept, result.preds_are
            )
        entry.settle(result)
        recorded.results[entry.key] = result
        each = entry.each or Batches()
        each.close(
            result.task,
            partial(margins, entry.layout, result.num_classes, result.preds_are),
        )
        recorded.batches[entry.key], entry.each = each, Batches()
        report(entry, result, recorded)

    def abort(self) -> None:
        """The evaluation ended in an exception: leave nothing behind."""
        self._close_taps()
        for entry in self._loaders.values():
            entry.streams = []
            entry.end_step()
        self._stage = self._module = self._first.module = self._now = None
        self._following.entry = None

    def _close_taps(self) -> None:
        self._epoch_ends = False
        self._taps.close()

    def _entries(self) -> list[LoaderCount]:
        """The loaders of the running evaluation."""
        return [
            e for key, e in self._loaders.items() if key.split("/")[0] == self._stage
        ]

    def _loader(self, i: int) -> LoaderCount:
        entry = self._running.get(i)
        if entry is None:
            key = f"{self._stage}/dataloader_idx_{i}" if i else str(self._stage)
            if key not in self._loaders:
                self._loaders[key] = LoaderCount(key)
            entry = self._running[i] = self._loaders[key]
        return entry

    # what a step shows

    def see(self, kind: str, name: str, pair: Pair, value: Any = None) -> None:
        """A metric or a loss is called. Whatever goes wrong here, the user's step goes on."""
        entry = self._now
        # A comparison may be what the function around it judges by.
        self._pairs += kind not in ("other", *WEAK)
        if self._epoch_ends:
            entry = self._of_epoch(kind)
            kind = "epoch"
        if entry is None or self._paused or entry.failed:
            return
        try:
            if entry.chosen is not None:
                self._following.follow(entry, kind, name, pair)
            else:
                self._first.consider(entry, kind, name, pair, value)
        except Exception as error:  # noqa: BLE001 - a tensor subclass, a user's type: not ours to judge
            entry.trouble = (
                entry.trouble or f"{pair.source} could not be counted: {error}"
            )

    def memory(self) -> tuple[set[int], set[int]]:
        """Where the tensors of the running batch lie."""
        return set(self._now.leaves()) if self._now is not None else set(), set()

    def is_paused(self) -> bool:
        """Whether nothing counts now."""
        return self._paused

    def stands_in_batch(self, tensor: Tensor) -> bool:
        """Whether a tensor is one of the running batch's."""
        return self._now is not None and self._now.role_of(tensor) is not None

    def compared(self, preds: Tensor, target: Tensor, text: str, place: str) -> None:
        """Two tensors of labels are compared, as those do who count what is right by hand."""

        def pair() -> Pair:
            short = text if len(text) <= _LONG else f"{text[: _LONG - 3]}..."
            return Pair(
                preds,
                target,
                f"the comparison `{short}` at {shown_path(place)}",
                classification=True,
                location=place,
                is_ordered=False,
            )

        self.hear("comparison", place, preds, target, pair)

    @property
    def pairs(self) -> int:
        """How many pairs were shown so far, but for those that others stand for."""
        return self._pairs + self._following.settled

    def _of_epoch(self, kind: str) -> LoaderCount | None:
        """The loader whose whole evaluation a call is about: the only one."""
        entries = [e for e in self._entries() if e.batches]
        if kind == "other" or len(entries) != 1:
            return None
        (entry,) = entries
        if entry.unverified:  # what is asked of the whole evaluation says more
            entry.chosen = None
            entry.unverified = False
        at_steps = entry.chosen is not None and entry.chosen.kind != "epoch"
        if at_steps:
            return None
        return entry

    def _see_arrays(self, entry: LoaderCount) -> None:
        """What the step turned into arrays, which it may compare in numpy."""
        if self._taps.arrays.given:
            given = self._taps.arrays.given
            entry.converts_labels |= any(
                holds_label(entry, array.tensor) for array in given
            )
            for place, pair in self._taps.arrays.pairs(entry):
                self.see("array", place, pair)

    def _see_arrays_of_epoch(self) -> None:
        """What was turned into arrays after the last step, where it says more than they did."""
        entries = [entry for entry in self._entries() if entry.batches and entry.waits]
        if not self._taps.arrays.given or len(entries) != 1 or not entries[0].samples:
            return
        (entry,) = entries
        try:
            pairs = pairs_of_epoch(
                self._taps.arrays.given, entry.first_labels, entry.given
            )
        except (RuntimeError, TypeError):  # tensors of classes of their own
            return
        for place, pair in pairs:
            self.see("array", place, pair)

    def _see_outputs(self, entry: LoaderCount, outputs: Any, batch: Any) -> None:
        if self.config.source is not None:
            pair: Pair | None = sources.from_source(self.config.source, outputs, batch)
        else:
            pair = sources.from_outputs(outputs)
        if pair is None or "outputs" in entry.excluded:
            return
        try:
            if entry.chosen is not None:
                self._following.follow(entry, "outputs", "", pair)
            else:
                self._first.consider(entry, "outputs", "", pair)
        except (ValueError, RuntimeError, TypeError, IndexError) as error:
            if self.explicit:
                raise
            entry.trouble = f"{pair.source} could not be counted: {error}"

    # the end of a step

    def _close_step(self) -> None:
        """The step is over, and the hooks after it: choose, and close the count."""
        entry, self._now = self._now, None
        self._following.entry = None
        if entry is None:
            return
        if entry.chosen is None:
            self._taps.sigmoids.close()
        if entry.chosen is None and entry.streams:
            choose(entry, self.config, self.logged)
        unit = 1
        if entry.samples:
            unit = entry.keep
        entry.given += unit
        chosen = entry.chosen
        if chosen is None or not chosen.samples:
            entry.leave_out(entry.trouble or entry.showed)
        elif chosen.samples < entry.samples:
            entry.partly += entry.samples - chosen.samples
        if chosen is not None and entry.each is not None and self.ranks.rank == 0:
            chosen.state.step_over(entry.each)
        if chosen is None or chosen.late or not entry.returned:
            entry.end_step()
