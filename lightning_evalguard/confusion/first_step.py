"""The first batch of a loader: every pair that its step shows counts for itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_evalguard.confusion import labels, sources
from lightning_evalguard.confusion.config import ConfusionMetrics
from lightning_evalguard.confusion.functions import SigmoidTap
from lightning_evalguard.confusion.layout import Layout
from lightning_evalguard.confusion.loader import LoaderCount, tensors_of
from lightning_evalguard.confusion.matrix import ConfusionMatrix
from lightning_evalguard.confusion.memory import (
    StorageIdentity,
    any_is_known,
    is_known,
)
from lightning_evalguard.confusion.sources import Pair
from lightning_evalguard.confusion.stream import Stream, versions_of
from lightning_evalguard.confusion.taps import classification_metrics_of
from lightning_evalguard.confusion.words import (
    changed_in_place,
    overwritten,
    sigmoid_twice,
    softmax_twice,
)

_ROWS = 8  # of scores, which do not sum to one by chance


class FirstStep:
    """Considers what the first step on a loader shows.

    Args:
        config: What the user asked for.
        explicit: Whether they asked at all, so that what does not fit is an error.
        outcomes: Whether it is kept of each sample whether it is right.
        sigmoids: Knows what came out of a sigmoid.

    Attributes:
        module: The model, while an evaluation runs.
    """

    def __init__(
        self,
        config: ConfusionMetrics,
        explicit: bool,
        outcomes: bool,
        sigmoids: SigmoidTap,
    ) -> None:
        self._config = config
        self._explicit = explicit
        self._outcomes = outcomes
        self._sigmoids = sigmoids
        self.module: nn.Module | None = None

    def consider(
        self, entry: LoaderCount, kind: str, name: str, pair: Pair, value: Any = None
    ) -> None:
        """On the first batch every source counts for itself."""
        if kind == "other":
            entry.kinds.add(name)
            return
        leaves = tensors_of(entry.batch)
        swapped = _is_swapped(entry, kind, pair)
        if swapped:
            pair = sources.turned(pair)
        role = None
        if kind != "epoch":
            role = entry.role_of(pair.target)
        smoothed = kind == "loss" and labels.are_smoothed(pair.target, leaves)
        if smoothed:
            pair = replace(pair, target=labels.sharpened(pair.target))
        from_batch = role is not None or _is_of_batch(entry, kind, pair.target, leaves)
        pair = self._informed(entry, kind, name, pair)
        arranged = sources.arrange(pair, self._config, None, entry.axis or 1)
        if arranged is None:
            if self._config.source is not None and kind == "outputs":
                raise ValueError(
                    f"source gave preds {tuple(pair.preds.shape)} {pair.preds.dtype} and target "
                    f"{tuple(pair.target.shape)} {pair.target.dtype}, which fit no task"
                )
            return
        if labels.are_only_ranked(arranged):
            entry.refused.append(f"{pair.source}: nothing says which scores mean yes")
            return
        asked = kind == "outputs" and self._config.source is not None
        if not asked and _is_refused(entry, arranged, pair, role, from_batch, leaves):
            return
        stream = self._stream(entry, kind, name, role, pair, arranged)
        if stream is None:
            return
        if isinstance(value, Tensor) and stream.value is None:
            stream.value = value.detach()
        stream.swapped = swapped
        stream.smoothed = smoothed
        stream.from_batch = from_batch
        stream.is_whole_tensor = from_batch and _is_whole(
            pair.target, role, entry.tensors
        )
        stream.versions = versions_of(pair.preds, pair.target)
        twice = not from_batch and labels.counts_up_twice(arranged.target)
        stream.structured = role is None and (
            twice or labels.has_pattern(arranged.target)
        )
        if stream.structured:
            stream.pattern = arranged.target.detach().clone()
        preds = labels.answers(
            arranged, stream.layout.preds_are, stream.layout.threshold
        )
        stream.keep_answers(preds, arranged.target.long())
        stream.keep_scores(arranged.preds)
        entry.count(stream, arranged, pair)
        if kind == "loss":
            _corroborate(entry.streams, stream)
        if kind == "outputs":
            _note_writes(entry, stream, pair)

    def _informed(self, entry: LoaderCount, kind: str, name: str, pair: Pair) -> Pair:
        """`pair` with what the rest of the step says about it."""
        preds = StorageIdentity(pair.preds)
        of_logits = kind == "loss" and pair.task is None and pair.preds_are == "logits"
        if of_logits and self._sigmoids.gave(pair.preds):
            pair = replace(pair, preds_are="probs")
            if "sigmoid twice" not in entry.reported:
                entry.reported.add("sigmoid twice")
                entry.found.append(sigmoid_twice(entry, pair))
        of_softmax = kind == "loss" and name in ("cross_entropy", "nll_loss")
        if (
            of_softmax
            and "softmax twice" not in entry.reported
            and _sum_to_one(pair.preds)
        ):
            entry.reported.add("softmax twice")
            entry.found.append(softmax_twice(entry, pair))
        if kind == "loss" and pair.preds.ndim > 1:
            entry.strides.append(
                (pair.preds.untyped_storage().data_ptr(), pair.preds.stride(1))
            )
        undecided = kind == "outputs" and entry.axis is None
        if undecided and sources.is_ambiguous(pair.preds, pair.target):
            entry.axis = sources.axis_of(self.module, pair, entry.strides)
        same = [s for s in entry.streams if is_known(preds, s.scores)]
        if kind == "outputs":
            target = StorageIdentity(pair.target)
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
        zero_or_one = (
            kind == "outputs" and not pair.classification and _is_yes_or_no(pair)
        )
        if zero_or_one and not entry.kinds:
            pair = replace(pair, classification=True)
        if labels.are_shares(pair.preds, pair.target):
            pair = replace(pair, shares=pair.task != "multilabel", classification=True)
        return pair

    def _stream(
        self,
        entry: LoaderCount,
        kind: str,
        name: str,
        role: int | None,
        pair: Pair,
        arranged: Pair,
    ) -> Stream | None:
        """The stream that a pair of the first batch belongs to; None where it is known already."""
        target = StorageIdentity(pair.target)
        preds = StorageIdentity(pair.preds)
        like = [s for s in entry.streams if s.kind == kind]
        for stream in like:
            if is_known(target, stream.targets) and is_known(preds, stream.scores):
                # another metric of a collection, given the same tensors
                stream.names.add(name)
                return None
        like = [s for s in like if name in s.names and s.role == role]
        for stream in like:
            if kind == "metric" and is_known(target, stream.targets):
                return None  # a metric and then its log
            if entry.is_a_part(stream, arranged):
                return stream
        try:
            layout = self._layout(entry, arranged)
        except ValueError as error:
            if kind == "outputs" and self._explicit:
                raise
            entry.refused.append(str(error))
            return None
        state = ConfusionMatrix.of(layout).to(arranged.preds.device)
        state.kept = [] if self._outcomes else None
        stream = Stream(
            kind, {name}, len(like), role, layout, state, pair.source, pair.location
        )
        stream.late = entry.returned
        stream.shares = pair.shares
        stream.judges = pair.judges
        stream.cuts = pair.cuts
        stream.is_array = pair.is_array
        stream.is_ordered = pair.is_ordered
        if pair.shares and arranged.task == "multiclass" and kind != "metric":
            stream.twin = self._twin(entry, pair)
        entry.streams.append(stream)
        return stream

    def _twin(self, entry: LoaderCount, pair: Pair) -> ConfusionMatrix | None:
        """The state that counts one-hot targets as so many labels, should they be that."""
        as_labels = replace(pair, shares=False, task="multilabel")
        layout = self._layout(
            entry, sources._as(as_labels, pair.preds, pair.target, "multilabel")
        )
        return ConfusionMatrix.of(layout).to(pair.preds.device)

    def _layout(self, entry: LoaderCount, arranged: Pair) -> Layout:
        if entry.layout is not None:
            return entry.layout
        known = len(entry.names) if entry.names else entry.known
        layout = sources.layout_of(arranged, self._config, known)
        if layout.preds_are in ("logits", "unknown") and layout.task != "multiclass":
            guesses = self.module is not None and any(
                classification_metrics_of(self.module)
            )
            layout = replace(layout, by_batch=guesses)
        return layout


def _is_refused(
    entry: LoaderCount,
    arranged: Pair,
    pair: Pair,
    role: int | None,
    from_batch: bool,
    leaves: Sequence[Tensor],
) -> bool:
    """Whether its targets are no labels; noted with the reason."""
    why = labels.refusal(arranged, from_batch, leaves)
    target = StorageIdentity(pair.target)
    if not why and not from_batch and is_known(target, entry.made_targets):
        why = "its targets are made in the step"
    if not why and (role is not None or pair.source not in entry.made):
        return False
    entry.made_targets.append(target)
    entry.made.add(pair.source)
    entry.refused.append(f"{pair.source}: {why}")
    return True


def _corroborate(streams: list[Stream], loss: Stream) -> None:
    """What a loss takes its scores for holds of a metric that is given the same ones."""
    for one in streams:
        unknown = (
            one.kind == "metric"
            and one.layout.preds_are == "unknown"
            and one.layout.by_batch
        )
        if unknown and any_is_known(one.scores, loss.scores):
            one.layout = replace(one.layout, preds_are=loss.layout.preds_are)
            if one.elements == loss.elements:
                one.preds = loss.preds


def _is_swapped(entry: LoaderCount, kind: str, pair: Pair) -> bool:
    """Whether what is given as predictions are the targets."""
    if kind == "epoch":
        return entry.is_turned(pair)
    if kind in ("comparison", "array") or entry.role_of(pair.target) is not None:
        return False
    return _stands_in(entry, pair.preds, pair.target)


def _is_of_batch(
    entry: LoaderCount, kind: str, target: Tensor, leaves: Sequence[Tensor]
) -> bool:
    """Whether targets that lie elsewhere are those of the batch, or of all batches."""
    if kind == "epoch":
        return labels.begins_with(target, entry.first_labels)
    return labels.equals_one_of(target, leaves)


def _stands_in(entry: LoaderCount, preds: Tensor, target: Tensor) -> bool:
    """Whether the batch holds the predictions, as labels: they are the targets."""
    if entry.role_of(preds) is None or preds.is_complex():
        return False
    if not preds.is_floating_point():
        return preds.ndim > 0
    return preds.shape == target.shape and bool(((preds == 0) | (preds == 1)).all())


def _is_whole(target: Tensor, role: int | None, tensors: Sequence[Tensor]) -> bool:
    """Whether a target of the batch is a tensor of it with all of its elements, or a copy."""
    return role is None or (
        role < len(tensors) and tensors[role].numel() == target.numel()
    )


def _is_yes_or_no(pair: Pair) -> bool:
    """Whether floating-point targets are all 0 and 1, and both occur."""
    target = pair.target
    if not target.is_floating_point() or target.numel() < 2:
        return False
    zero = target == 0
    one = target == 1
    return bool((zero | one).all() & zero.any() & one.any())


def _sum_to_one(preds: Tensor) -> bool:
    """Whether each of several rows of scores, classes in dim 1, is a distribution."""
    if (
        not preds.is_floating_point()
        or preds.ndim < 2
        or preds.numel() < _ROWS * preds.shape[1]
    ):
        return False
    scores = preds.detach().float()
    apart = (scores.sum(1) - 1).abs().max()
    rounding = 1e-2
    if preds.dtype in (torch.float32, torch.float64):
        rounding = 1e-4
    return bool((scores.min() >= 0) & (apart < rounding))


def _note_writes(entry: LoaderCount, returned: Stream, pair: Pair) -> None:
    """What the step changed in place before it returned it."""
    given = [s for s in entry.streams if s.kind in ("loss", "metric")]
    earlier = next((s for s in given if s.was_before(returned)), None)
    if earlier is not None:
        returned.is_changed = True
        entry.found.append(changed_in_place(entry, returned, earlier))
    elif which := entry.overwritten(pair):
        entry.found.append(overwritten(entry, returned, which))
