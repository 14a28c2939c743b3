"""Where a step is listened to: its metrics, losses, functions, comparisons, gathers and arrays."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn

from lightning_evalguard.confusion.arrays import ArrayTap
from lightning_evalguard.confusion.bincounts import COUNTED, BincountTap
from lightning_evalguard.confusion.by_hand import GatherTap
from lightning_evalguard.confusion.comparisons import ComparisonTap
from lightning_evalguard.confusion.config import ConfusionMetrics
from lightning_evalguard.confusion.functions import FunctionTap, SigmoidTap
from lightning_evalguard.confusion.loader import LoaderCount
from lightning_evalguard.confusion.losses import AtOnce, LossTap
from lightning_evalguard.confusion.sources import Pair
from lightning_evalguard.confusion.stream import Stream
from lightning_evalguard.confusion.taps import MetricTap
from lightning_evalguard.instruments.dispatch import compiles
from lightning_evalguard.instruments.source import LIBRARIES


class Hears(Protocol):
    """What the taps ask and tell: the recorder."""

    @property
    def pairs(self) -> int:
        """How many pairs were shown so far."""

    def see(self, kind: str, name: str, pair: Pair, value: Any = None) -> None:
        """A metric or a loss is called."""

    def compared(self, preds: Tensor, target: Tensor, text: str, place: str) -> None:
        """Two tensors of labels are compared."""

    def stands_in_batch(self, tensor: Tensor) -> bool:
        """Whether a tensor is one of the batch's."""

    def memory(self) -> tuple[set[int], set[int]]:
        """Where the tensors of the running batch lie."""

    def is_paused(self) -> bool:
        """Whether nothing counts now."""


class StepTaps:
    """All taps of one recorder.

    Args:
        heard: Whom they tell.
        at_once: Is asked first, and settles most calls.
        config: What the user asked for.
        compares: Whether comparisons are listened to.

    Attributes:
        settled: The loader of which the pair of every step is known, and all stands that hears of
            it there: for its steps, `hear` is enough.
    """

    def __init__(
        self,
        heard: Hears,
        at_once: AtOnce,
        config: ConfusionMetrics,
        compares: bool = True,
    ) -> None:
        self.settled: LoaderCount | None = None
        asked = ""
        if isinstance(config.source, str):
            asked = str(config.source)
        only = None
        if asked.startswith("metric:"):
            only = asked.partition(":")[2]
        infers = config.source is None
        self.reads_outputs = infers or not (only or asked == "loss")
        self._of_metrics = infers or only is not None
        self._of_losses = infers or asked == "loss"
        self._compares = compares
        self._of_comparisons = compares and infers
        self._metrics = MetricTap(heard.see, only, at_once)
        self._losses = LossTap(heard.see, at_once)
        self._functions = FunctionTap(heard.see, lambda: heard.pairs)
        self.decisions = self._functions.decisions
        self.sigmoids = SigmoidTap()
        self.gathers = GatherTap(heard.see, heard.stands_in_batch)
        self._bincounts = BincountTap(heard.see)
        self._comparisons = ComparisonTap(
            heard.compared, heard.is_paused, heard.memory, frozenset(), LIBRARIES
        )
        self.arrays = ArrayTap(heard.is_paused)

    def before_step(self, module: nn.Module, entry: LoaderCount) -> None:
        """A step is about to run."""
        try:
            self._open(module, entry)
        except BaseException:
            self.close()
            raise

    def _open(self, module: nn.Module, entry: LoaderCount) -> None:
        looks = entry.chosen is None
        if looks:
            self.sigmoids.open(module)
        if entry.chosen is None or entry.chosen.kind == "comparison":
            self._comparisons.reads = looks
            self._open_comparisons(module)
        is_asked = self._of_losses and not compiles(module)
        if is_asked and (entry.chosen is None or entry.chosen.kind == "array"):
            self.arrays.open()
        if self._of_losses and _may_gather(entry.chosen):
            self.gathers.reads = looks
            self.gathers.open(module)
            if self._compares:
                self._bincounts.open(module, entry)
        # Not at the start of the evaluation: hooks that run after it may still replace a metric.
        if entry.batches == 1 and self._of_metrics:
            self._metrics.open(module)
        if self._of_losses:
            self._losses.locates = self._functions.locates = looks
            self._losses.open()
            self._functions.open(module)
        self.settled = entry
        if _may_gather(entry.chosen) or self.arrays.is_open:
            self.settled = None

    def hear(self, hears: bool) -> None:
        """Begin or end to hear a step of which the place is known: nothing is put up for it."""
        self._losses.hears = self._functions.hears = hears and self._of_losses
        self._losses.diverged = 0
        chosen = None
        if self.settled is not None:
            chosen = self.settled.chosen
        if chosen is not None and chosen.kind == "comparison":
            self._comparisons.hears = hears

    def _open_comparisons(self, module: nn.Module) -> None:
        if self._of_comparisons and not compiles(module):
            self._comparisons.open()

    def after_step(self, entry: LoaderCount | None) -> None:
        """The step is over, and the hooks after it begin."""
        self.gathers.close()
        self._bincounts.close()
        chosen = None
        if entry is not None:
            chosen = entry.chosen
        if chosen is not None and chosen.kind == "comparison":
            self._comparisons.pause()
        else:
            self._comparisons.close()
        if chosen is None:
            # who looks closely at hooks sees the functions as they are
            self._losses.close()
            self._functions.close()
        else:
            self._losses.pause()
            self._functions.pause()

    def steps_over(self, module: nn.Module | None, is_open: bool) -> None:
        """The last step is over: scores of the whole evaluation may be computed.

        Args:
            module: The user's, while an evaluation runs.
            is_open: Whether one of them may be what counts.
        """
        self.settled = None
        self._losses.close()
        self._comparisons.close()
        if module is None or not self._of_losses:
            return
        self._functions.open(module)
        if is_open:
            self._comparisons.reads = True
            self._open_comparisons(module)
            if self._compares and not compiles(module):
                self.arrays.open(of_epoch=True)

    def close(self) -> None:
        """Nothing is listened to."""
        self.settled = None
        self.decisions.clear()
        for tap in (
            self._metrics,
            self._losses,
            self._functions,
            self.sigmoids,
            self._comparisons,
            self.gathers,
            self._bincounts,
            self.arrays,
        ):
            tap.close()


def _may_gather(chosen: Stream | None) -> bool:
    """Whether the pair to be counted may be one that is gathered, or counted by the step."""
    if chosen is None:
        return True
    return chosen.kind == "function" and bool(chosen.names & {"gather", COUNTED})


__all__ = ["StepTaps"]
