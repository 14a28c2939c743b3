"""What is known of one stage and loader: its streams, its running evaluation, what was reported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from torch import Tensor

from lightning_evalguard.confusion import labels
from lightning_evalguard.confusion.by_batch import Batches
from lightning_evalguard.confusion.layout import Layout
from lightning_evalguard.confusion.matrix import ConfusionMatrix
from lightning_evalguard.confusion.memory import StorageIdentity
from lightning_evalguard.confusion.parts import Choosers
from lightning_evalguard.confusion.result import ConfusionResult
from lightning_evalguard.confusion.sources import Pair
from lightning_evalguard.confusion.stream import Stream, versions_of
from lightning_evalguard.data.batches import tensors
from lightning_evalguard.report import Finding

TENSORS = 16  # of a batch, among which labels are looked for
# scores of an evaluation that are kept where the module names a threshold
_SCORED = 1 << 16


class Patterns(NamedTuple):
    """On how many ranks targets look as if the steps made them, and whether they ever differed."""

    ranks: int = 0
    made: int = 0
    compared: int = 0
    differing: int = 0


class Spare:
    """A pair that is not the chosen one's, kept until the step shows whether it is needed."""

    def __init__(
        self,
        kind: str,
        name: str,
        entry: LoaderCount,
        preds: Tensor,
        target: Tensor,
        pair: Callable[[], Pair],
    ) -> None:
        self.kind, self.name = kind, name
        self._entry = entry
        self._preds = preds
        self._target = target
        self._make = pair
        self._pair: Pair | None = None
        # `_now`, without a call: one is made in most steps
        self._versions: tuple[int, ...] = (
            -1 if preds.is_inference() else preds._version,
            -1 if target.is_inference() else target._version,
        )

    @property
    def pair(self) -> Pair:
        """The pair, described once it is needed."""
        if self._pair is None:
            self._pair = self._make()
        return self._pair

    def keep(self, pair: Pair) -> None:
        """Keep what stands for the pair, and let go of what it was."""
        self._pair = pair
        self._preds = pair.preds
        self._target = pair.target
        self._make = lambda: pair
        self._versions = self._now()

    @property
    def role(self) -> int | None:
        """Which tensor of the batch its target lies in; asked while the step runs."""
        return self._entry.role_of(self.pair.target)

    @property
    def changed(self) -> bool:
        """Whether the step changed it in place since."""
        return self._versions != self._now()

    def _now(self) -> tuple[int, ...]:
        return tuple(versions_of(self._preds, self._target))


@dataclass
class LoaderCount:
    """One stage and loader: what is settled about it, and its running evaluation.

    Attributes:
        key: ``"val"``, ``"val/dataloader_idx_1"``, ...
        names: Of the classes.
        known: Number of classes that the module names.
        layout: Settled on the first batch, or agreed with the other ranks.
        source: Where the counts come from, in words.
        agreed: Whether the ranks agreed on the layout.
        differ: How their layouts differ, so that there is nothing to add up.
        least: Classes there are at least.
        axis: Where the classes of scores stand whose shapes fit both; None until that is decided.
        streams: Seen on the first batch, of which one is chosen before the second.
        chosen: The one that counts.
        others: Says what was not chosen, where that waits for the device; asked at the end.
        refused: Why others were not taken.
        made: Sources whose targets a step was seen to make, so that they are no labels.
        made_targets: Those targets, in the first step.
        labelled: Whether the batches may hold labels, by the first one.
        first_labels: Of the first batch, where nothing of the steps counts yet.
        uses_labels: Whether labels of the batch say in the step which class is meant.
        kinds: What the step calls that is no classification.
        converts_labels: Whether labels of the batch became an array in the first step.
        unverified: Whether nothing but their values will tell that the arrays that count are a
            score.
        choosers: What of the batch may choose some of the answers that the first step shows.
        owned: Samples that this rank owns of those that a DistributedSampler deals out; it repeats
            some so that each rank gets as many. None where nothing is repeated.
        batch: The running step's, until the choice.
        samples: Of the running batch.
        keep: How many of them are this rank's own.
        position: How many of them were passed.
        tensors: Of the running batch, until the step has returned.
        versions: How often each had been written to before the first step.
        spares: Pairs of the running step that are not the chosen one's.
        counted: Whether the running step was counted.
        returned: Whether the running step returned.
        given: Samples that the loader gave in this evaluation; batches where their number is not
            known.
        left_out: How many of them were not counted.
        first: The first batch that was left out, and what it showed.
        partly: Samples that the step itself selected away.
        violated: Whether a target was no share of the classes, on the device.
        differs: Whether a later target was another than the pattern, on the device.
        patterns: What became of them, on all ranks.
        dropped: Samples that no batch holds, in words.
        batches: Of this evaluation.
        untrimmed: Repetitions of a sampler that could not be left out.
        in_doubt: Whether scores were read as probabilities because none lay outside [0, 1].
        failed: Why there is no matrix, for the ranks together.
        trouble: What could not be counted, and why.
        saw: What the last step returned, in words.
        found: Findings for the end of the evaluation.
        warnings: Sentences for the end of the evaluation.
        reported: What was said already.
        keeps_scores: Whether scores of yes-or-no answers are kept, for a module that names
            thresholds.
        scored: Those of the evaluation, with their targets.
        each: What was counted after each batch; None where the layout changed on the way.
    """

    key: str
    names: tuple[str, ...] | None = None
    known: int | None = None
    layout: Layout | None = None
    source: str = ""
    agreed: bool = False
    differ: str = ""
    least: int = 2
    axis: int | None = None
    streams: list[Stream] = field(default_factory=list)
    chosen: Stream | None = None
    others: Callable[[], list[str]] | None = None
    refused: list[str] = field(default_factory=list)
    made: set[str] = field(default_factory=set)
    made_targets: list[StorageIdentity] = field(default_factory=list)
    labelled: bool = True
    first_labels: list[Tensor] = field(default_factory=list)
    uses_labels: bool = False
    kinds: set[str] = field(default_factory=set)
    converts_labels: bool = False
    unverified: bool = False
    choosers: Choosers = field(default_factory=Choosers)
    excluded: set[str] = field(default_factory=set)
    strides: list[tuple[int, int]] = field(default_factory=list)
    owned: int | None = None
    batch: Any = None
    samples: int = 0
    keep: int = 0
    position: int = 0
    tensors: Sequence[Tensor] = ()
    versions: list[int] = field(default_factory=list)
    spares: list[Spare] = field(default_factory=list)
    counted: bool = False
    returned: bool = False
    given: int = 0
    left_out: int = 0
    first: tuple[int, str] | None = None
    partly: int = 0
    violated: Tensor | None = None
    differs: Tensor | None = None
    patterns: Patterns = field(default_factory=Patterns)
    dropped: str = ""
    batches: int = 0
    untrimmed: int = 0
    in_doubt: bool = False
    failed: str = ""
    trouble: str = ""
    saw: str = ""
    found: list[Finding] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    reported: set[str] = field(default_factory=set)
    keeps_scores: bool = False
    scored: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    each: Batches | None = field(default_factory=Batches)
    _leaves: list[int] | None = None

    def begin(self) -> None:
        """An evaluation begins."""
        self.batches = self.untrimmed = self.given = self.left_out = self.partly = 0
        self.first = None
        self.failed = self.differ
        self.trouble = ""
        self.end_step()
        self.differs, self.each = None, Batches()
        self.scored = []
        if self.chosen is not None:
            self.chosen.begin_step()
            self.chosen.state.reset()
            if self.chosen.twin is not None:
                self.chosen.twin.reset()

    def begin_step(self, samples: int, tensors: Sequence[Tensor]) -> None:
        """A step begins on a batch of so many samples."""
        self.batches += 1
        self.samples = self.keep = samples
        if self.owned is not None:
            self.keep = min(samples, self.owned)
            self.owned -= self.keep
        self.position = 0
        self.counted = False
        self.returned = False
        self.tensors, self._leaves = tensors, None
        self.versions = versions_of(*tensors) if self.chosen is None else []
        if self.chosen is None and self.batches == 1:
            self.labelled = labels.may_be_among(tensors, samples)
        if self.batches == 1 and (self.chosen is None or self.chosen.kind == "epoch"):
            self.first_labels = labels.first_of(tensors, samples)
        for stream in self.streams:
            stream.begin_step()
        if self.chosen is not None:
            self.chosen.begin_step()

    def end_step(self) -> None:
        """Let go of everything that belongs to the step."""
        self.spares.clear()
        self.made_targets.clear()
        self.batch = None
        # hooks after the step show pairs too
        if self.chosen is None or self.chosen.late:
            self.leaves()
        self.tensors = ()

    def settle(self, result: ConfusionResult) -> None:
        """What an evaluation has shown for good stays so for the run."""
        assert self.layout is not None
        if self.layout.preds_are == "unknown" and result.preds_are == "logits":
            # For good: one score outside [0, 1] shows it. That none lies there does not show that
            # they are probabilities: those of a model that has hardly learned may all lie inside.
            self.layout = replace(self.layout, preds_are="logits")
            if (source := self.chosen) is not None:
                source.layout = self.layout
                source.state = ConfusionMatrix.of(self.layout).to(source.state.device)
        if not self.layout.exact:
            self.least = max(self.least, result.num_classes)

    @property
    def showed(self) -> str:
        """What the step gave that could not be counted."""
        if not self.saw:
            return "its step showed none"
        return f"its step returned {self.saw}"

    @property
    def is_open(self) -> bool:
        """Whether what is computed at the end of the epoch may be what counts."""
        return self.chosen is None or self.chosen.kind == "epoch" or self.unverified

    @property
    def waits(self) -> bool:
        """Whether nothing was counted yet, or what is counted are arrays of all samples."""
        if self.chosen is None:
            return not self.streams
        return self.chosen.kind == "epoch" and self.chosen.is_array

    def leaves(self) -> list[int]:
        """Storages of the batch's tensors."""
        if self._leaves is None:
            self._leaves = [t.untyped_storage().data_ptr() for t in self.tensors]
        return self._leaves

    def holds(self, target: Tensor, role: int | None) -> bool:
        """Whether a target is that tensor of the batch itself."""
        if role is None or role >= len(self.tensors):
            return False
        return self.tensors[role] is target

    def role_of(self, target: Tensor) -> int | None:
        """Which tensor of the batch `target` lies in."""
        here = target.untyped_storage().data_ptr()
        leaves = self.leaves()
        if here not in leaves:
            return None
        return leaves.index(here)

    def is_turned(self, pair: Pair) -> bool:
        """Whether what is given as predictions of all batches begins as the labels do."""
        if pair.preds.is_floating_point() or pair.preds.shape != pair.target.shape:
            return False
        preds, target = pair.preds, pair.target
        first = self.first_labels
        return labels.begins_with(preds, first) and not labels.begins_with(
            target, first
        )

    def overwritten(self, pair: Pair) -> str:
        """What of a returned pair the step wrote over: ``target``, ``preds`` or nothing.

        A target that stands in the batch is not the batch's any more. Scores that were written to
        and are the same for every class are no answers.
        """
        role = self.role_of(pair.target)
        before = (
            self.versions[role]
            if role is not None and role < len(self.versions)
            else -1
        )
        if before >= 0 and pair.target._version != before:
            return "target"
        preds = pair.preds
        written = (
            preds.is_floating_point()
            and versions_of(preds)[0] > 0
            and preds.numel() > 1
        )
        if written and bool((preds == preds.reshape(-1)[0]).all()):
            return "preds"
        return ""

    def compare(self, pattern: Tensor, target: Tensor) -> None:
        """Whether a later step's target is the first one's, without a wait for the device."""
        if self.batches > 1 and pattern.shape == target.shape:
            differs = (pattern != target).any()
            self.differs = differs if self.differs is None else self.differs | differs

    def patterns_here(self) -> Patterns:
        """Of this rank."""
        if self.chosen is None:
            return Patterns()
        differs = self.differs
        compared = int(differs is not None)
        return Patterns(1, int(self.chosen.structured), compared, int(bool(differs)))

    def leave_out(self, why: str) -> None:
        """The running step is over, and nothing of it was counted."""
        self.left_out += self.keep if self.samples else 1
        if self.first is None:
            self.first = self.batches - 1, why

    def count(self, stream: Stream, arranged: Pair, raw: Pair) -> None:
        """Count a pair of the running step for one of its streams.

        Args:
            stream: The one that shows it.
            arranged: The pair in the shapes that are counted.
            raw: As the step showed it.
        """
        stream.targets.append(StorageIdentity(raw.target))
        if stream is not self.chosen:  # only the choice asks whose scores they are
            stream.scores.append(StorageIdentity(raw.preds))
        stream.samples += len(arranged.target)
        if stream is self.chosen:
            self.counted = True
        if stream.pattern is not None and stream is self.chosen:
            self.compare(stream.pattern, arranged.target)
        preds, target = self.trimmed(arranged.preds, arranged.target)
        take = stream.state.count
        if stream is self.chosen and stream.twin is None:
            take = stream.state.note
        take(preds, target.to(preds.device))
        if self.keeps_scores and stream is self.chosen:
            self.keep_scores(stream, preds, target)
        if stream.twin is not None and raw.preds.shape == raw.target.shape:
            stream.twin.count(raw.preds, raw.target.to(raw.preds.device))
            broken = labels.no_shares(raw.target)
            self.violated = broken if self.violated is None else self.violated | broken

    def keep_scores(self, stream: Stream, preds: Tensor, target: Tensor) -> None:
        """Keep copies of scores that are cut, as long as they are few."""
        labels_in = 1
        if stream.layout.task == "multilabel":
            labels_in = stream.layout.num_classes
        fits = stream.layout.task != "multiclass" and preds.is_floating_point()
        room = _SCORED - sum(p.numel() for p, _ in self.scored)
        if not fits or preds.numel() > room:
            self.keeps_scores = False
            self.scored.clear()
            return
        flat = (
            preds.detach().reshape(-1, labels_in),
            target.detach().reshape(-1, labels_in),
        )
        self.scored.append((flat[0].clone(), flat[1].clone()))

    def is_a_part(self, stream: Stream, arranged: Pair) -> bool:
        """Whether a pair is a further part of the batch, after what the stream showed of it."""
        n = 1
        if arranged.target.ndim:
            n = len(arranged.target)
        if stream.kind == "epoch":
            return False
        return bool(stream.samples) and stream.samples + n <= self.samples

    def trimmed(self, preds: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Without the samples that a DistributedSampler repeats."""
        if self.keep >= self.samples:
            return preds, target
        n = len(target)
        # dim 0 is not the batch: which rows are whose is not known
        if n > self.samples:
            self.untrimmed += self.samples - self.keep
            return preds, target
        kept = max(0, self.keep - self.position)
        self.position += n
        return preds[:kept], target[:kept]


def tensors_of(batch: Any) -> list[Tensor]:
    """The tensors of a batch, in order, up to so many."""
    return tensors(batch)[:TENSORS]
