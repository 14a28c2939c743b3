"""The batches after the first: the chosen stream's pair is found again, or what stands for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from lightning_evalguard.confusion import labels, sources
from lightning_evalguard.confusion.config import ConfusionMetrics
from lightning_evalguard.confusion.loader import LoaderCount, Spare
from lightning_evalguard.confusion.matrix import ConfusionMatrix
from lightning_evalguard.confusion.memory import StorageIdentity, is_known
from lightning_evalguard.confusion.sources import Pair
from lightning_evalguard.confusion.stream import Stream

_HELD = 1 << 20  # elements of a pair that may wait for the end of its step
_NAMED = ("metric", "outputs")  # what the user says is what counts


class Following:
    """Follows the chosen stream of a loader from batch to batch.

    Args:
        config: What the user asked for.
        outcomes: Whether it is kept of each sample whether it is right.

    Attributes:
        entry: The loader whose step runs; None where nothing may be counted now.
        settled: How many pairs were settled at once.
    """

    def __init__(self, config: ConfusionMetrics, outcomes: bool) -> None:
        self._config = config
        self._outcomes = outcomes
        self.entry: LoaderCount | None = None
        self.settled = 0

    def follow(self, entry: LoaderCount, kind: str, name: str, pair: Pair) -> None:
        """The chosen stream's pair is counted at once; another waits for the end of the step."""
        chosen = entry.chosen
        assert chosen is not None
        if kind == chosen.kind and name in chosen.names:
            own = pair
            is_turned = chosen.swapped
            if kind == "epoch":
                is_turned = entry.is_turned(pair)
            if is_turned:
                own = sources.turned(pair)
            if chosen.targets and is_known(StorageIdentity(own.target), chosen.targets):
                # the same samples again: a metric and then its log, two losses of a batch
                return
            named = kind in ("outputs", "metric", "epoch")
            mine = named or entry.role_of(own.target) == chosen.role
            if mine and self._is_its_turn(entry, own):
                arranged = self._arranged(entry, chosen, own, name)
                if arranged is not None:
                    entry.count(chosen, arranged, own)
                    return
        if entry.counted or chosen.late or kind in ("other", "epoch"):
            return
        spare = Spare(kind, name, entry, pair.preds, pair.target, lambda: pair)
        if pair.preds.numel() > _HELD:
            spare.keep(_labels_of(self._fitting(entry, chosen, pair), pair))
        entry.spares.append(spare)

    def at_once(
        self,
        kind: str,
        name: str,
        preds: Tensor,
        target: Tensor,
        pair: Callable[[], Pair],
    ) -> bool:
        """`follow`, where a pair looks like the last one and is the whole batch: most are.

        Returns:
            Whether that was so; else `follow` decides.
        """
        entry = self.entry
        if entry is None or entry.chosen is None or entry.failed:
            return False
        chosen, samples = entry.chosen, entry.samples
        try:
            if entry.counted and chosen.samples >= samples:
                pass  # the step shows nothing more that is counted
            elif kind != chosen.kind or name not in chosen.names:
                if entry.counted or chosen.late or preds.numel() > _HELD:
                    return False
                entry.spares.append(Spare(kind, name, entry, preds, target, pair))
            else:
                look = name, preds.shape, target.shape, preds.dtype, target.dtype
                if chosen.look != look or entry.counted or chosen.samples:
                    return False
                if entry.keeps_scores:  # each evaluation begins to keep them anew
                    return False
                if len(target) != samples or entry.keep != samples:
                    return False
                if kind not in _NAMED and not entry.holds(target, chosen.role):
                    return False
                chosen.state.note(preds, target)
                chosen.samples = samples
                entry.counted = True
        except Exception:  # noqa: BLE001 - `follow` meets it again, and says so
            return False
        self.settled += 1
        return True

    def _arranged(
        self, entry: LoaderCount, chosen: Stream, own: Pair, name: str
    ) -> Pair | None:
        """`_fitting`, asked anew only where the pair looks otherwise than the last one.

        Most pairs are counted as they are shown: where one was, so are those that look like it.
        """
        preds, target = own.preds, own.target
        look = (
            name,
            preds.shape,
            target.shape,
            preds.dtype,
            target.dtype,
            own.task,
            own.preds_are,
            own.axis,
            own.classification,
            own.shares,
            chosen.layout,
        )
        if look == chosen.plain:
            return own
        arranged = self._fitting(entry, chosen, own, is_own=True)
        as_shown = (
            arranged is not None
            and arranged.preds is preds
            and arranged.target is target
        )
        chosen.plain = look if as_shown else None
        is_simple = as_shown and chosen.is_simple
        one_place = preds.device == target.device and target.ndim > 0
        chosen.look = look[:5] if is_simple and one_place else None
        return arranged

    def _is_its_turn(self, entry: LoaderCount, pair: Pair) -> bool:
        """Whether the chosen stream is this one of several of one name in the step."""
        chosen = entry.chosen
        assert chosen is not None
        if chosen.samples:
            return entry.is_a_part(chosen, pair)
        if not chosen.place:
            return True
        before = [
            s for s in entry.spares if s.name in chosen.names and s.role == chosen.role
        ]
        return len(before) >= chosen.place

    def _fitting(
        self, entry: LoaderCount, chosen: Stream, pair: Pair, is_own: bool = False
    ) -> Pair | None:
        """`pair` as the chosen stream counts it; None where it does not fit."""
        if chosen.smoothed and pair.target.is_floating_point():
            pair = replace(pair, target=labels.sharpened(pair.target))
        if chosen.shares:
            pair = replace(pair, shares=True, classification=True)
        if chosen.layout.task != "multiclass" and not pair.classification:
            pair = replace(pair, classification=True)
        arranged = sources.arrange(pair, self._config, chosen.layout, entry.axis or 1)
        if arranged is None:
            return None
        layout = chosen.layout
        if arranged.task != layout.task:
            return None
        scored = arranged.preds.ndim == arranged.target.ndim + 1
        if (
            layout.task == "multiclass"
            and scored
            and arranged.preds.shape[1] != layout.num_classes
        ):
            if is_own and self._regrown(entry, chosen, arranged):
                return arranged
            return None
        if layout.task == "multilabel" and arranged.preds.shape[1:2] != (
            layout.num_classes,
        ):
            return self._flattened(entry, chosen, arranged)
        return arranged

    def _regrown(self, entry: LoaderCount, chosen: Stream, arranged: Pair) -> bool:
        """Whether the matrix got another size: an evaluation begins with other scores."""
        fresh = entry.given == entry.left_out and not chosen.samples
        asked = self._config.num_classes is not None
        if not fresh or asked or not chosen.layout.exact:
            return False
        before = chosen.layout.num_classes
        width = arranged.preds.shape[1]
        full = width <= self._config.max_full_classes
        chosen.layout = replace(chosen.layout, num_classes=width, full=full)
        chosen.state = ConfusionMatrix.of(chosen.layout).to(arranged.preds.device)
        chosen.state.kept = [] if self._outcomes else None
        entry.layout = chosen.layout
        entry.agreed = False
        entry.reported.discard("source")
        chosen.said += f" (which had {before} classes before)"
        entry.source = chosen.said
        return True

    def _flattened(
        self, entry: LoaderCount, chosen: Stream, arranged: Pair
    ) -> Pair | None:
        """So many labels, and then another number: they are positions, and one question."""
        if chosen.layout.task != "multilabel" or self._config.task == "multilabel":
            return None
        if chosen.kind == "metric":
            return None
        layout = replace(chosen.layout, task="binary", num_classes=2)
        state = ConfusionMatrix.of(layout).to(arranged.preds.device)
        chosen.state.into(state)
        chosen.layout = layout
        chosen.state = state
        entry.each = None
        return replace(arranged, task="binary")

    def fall_back(self, entry: LoaderCount) -> None:
        """The step did not show the chosen stream: count what fits it best."""
        chosen = entry.chosen
        assert chosen is not None
        order = {
            "outputs": 0,
            "metric": 1,
            "loss": 2,
            "function": 3,
            "comparison": 4,
            "array": 5,
        }
        fitting = [s for s in entry.spares if s.role == chosen.role and s.kind in order]
        fitting.reverse()  # the last loss of the step first
        fitting.sort(key=lambda s: order[s.kind])
        for spare in fitting:
            arranged = None
            if not spare.changed:
                arranged = self._fitting(entry, chosen, spare.pair)
            if arranged is not None:
                entry.count(chosen, arranged, spare.pair)
                return
        self._begin_anew(entry, chosen)

    def _begin_anew(self, entry: LoaderCount, chosen: Stream) -> None:
        """The chosen stream is given other targets, or more classes, from this evaluation on."""
        own = [
            s for s in entry.spares if s.kind == chosen.kind and s.name in chosen.names
        ]
        if entry.given > entry.left_out or not own or own[-1].changed:
            return
        arranged = self._fitting(entry, chosen, own[-1].pair, is_own=True)
        if arranged is not None:
            chosen.role = own[-1].role
            entry.count(chosen, arranged, own[-1].pair)


def _labels_of(arranged: Pair | None, pair: Pair) -> Pair:
    """A pair of many scores as labels, which are fewer."""
    if (
        arranged is None
        or arranged.task != "multiclass"
        or not arranged.preds.is_floating_point()
    ):
        return pair
    if arranged.preds.ndim != arranged.target.ndim + 1:
        return pair
    return replace(arranged, preds=arranged.preds.argmax(1), shares=False)
