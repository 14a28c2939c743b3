"""The confusion matrix of one block of `evaluating`, over all ranks of an accelerator if any."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from types import FrameType
from typing import Any

from torch import Tensor, nn

from lightning_evalguard.confusion.comparisons import ComparisonTap
from lightning_evalguard.confusion.sources import Pair
from lightning_evalguard.plain.frames import path_of, user_frame
from lightning_evalguard.plain.gathered import Gathers
from lightning_evalguard.plain.matrix import PlainScores
from lightning_evalguard.plain.measures import MeasureTap
from lightning_evalguard.plain.scored import CodePlace
from lightning_evalguard.plain.scored import scores as compares
from lightning_evalguard.plain.tensors import memory_of, size_of
from lightning_evalguard.ranks import Alone
from lightning_evalguard.report import Report, broke


class BlockCounts:
    """Counts what a block scores: each sample once, whatever accelerate pads the last batch with.

    Args:
        report: Where the matrix stands, under ``"evaluate"``.
        ranks: The processes of the accelerator.
        accelerator: The accelerator, or None.
    """

    def __init__(self, report: Report, ranks: Alone, accelerator: Any) -> None:
        self._report = report
        self._ranks = ranks
        self._accelerator = accelerator
        self._scores = PlainScores(
            report, self._hear, nullcontext, ranks, self._is_foreign
        )
        self._comparisons = ComparisonTap(
            self._compared, lambda: self._inside, self._memory
        )
        self._measures = MeasureTap(self._hear)
        self._gathers: Gathers | None = None
        if accelerator is not None:
            self._gathers = Gathers(accelerator, self._gathered, self._memory)
        self._path: tuple[CodePlace, ...] = ()  # of the first call
        self._inside = self._is_open = self._scored = self._off = False
        self._inputs: set[int] = set()
        self._frame: FrameType | None = None
        self._samples: int | None = None

    def open(self, frame: FrameType) -> None:
        """The block begins."""
        self._frame = frame
        if self._gathers is not None:
            self._gathers.open()
        self._comparisons.open()
        self._measures.start()
        self._measures.open()

    def begin(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """The model is called: a new batch, unless nothing of the last one was scored yet."""
        self._inside = True
        if self._off:
            return
        try:
            self._begin(model, args, kwargs)
        except Exception as error:  # noqa: BLE001 - our own bug must not stop a script
            self._off = True
            self._scores.abort()
            broke(self._report, "the confusion matrix", "its evaluation", error)

    def _begin(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        frame, self._frame = self._frame, None
        loader = self._loader()
        if frame is not None:
            user = user_frame(sys._getframe(3))
            self._path = path_of(user) if user is not None else ()
            self._scores.start("evaluate", [model], frame, loader)
            self._is_open = True
        elif not (self._scored or self._scores.has_arrays):
            self._inputs |= memory_of((args, kwargs))
            return
        self._scored = False
        if self._gathers is not None:
            self._gathers.forget()
        self._inputs = memory_of((args, kwargs))
        batch = args if args else kwargs
        self._samples = size_of(batch)
        self._scores.before(batch, self._own(loader))

    def end(self) -> None:
        """The model returned."""
        self._inside = False

    def close(self, failed: bool) -> None:
        """The block is over: add up over all ranks, unless an exception ended it."""
        self._comparisons.close()
        self._measures.stop()
        if self._gathers is not None:
            self._gathers.close()
        self._frame = None
        if failed or self._off or not self._is_open:
            self._scores.abort()
            self._ranks.skip("matrix")
            return
        self._scores.stop("evaluate", compares(self._path))

    def _loader(self) -> Any:
        if self._accelerator is None:
            return None
        return self._accelerator.gradient_state.active_dataloader

    def _own(self, loader: Any) -> int | None:
        """How many samples of a batch that the main process deals out are this rank's own."""
        if loader is None:
            return None
        state = self._accelerator.gradient_state
        size = self._samples
        deals = type(loader).__name__ == "DataLoaderDispatcher"
        if not deals or size is None:
            return None
        if not state.end_of_dataloader or state.remainder <= 0:
            return size
        left = int(state.remainder) - self._ranks.rank * size
        return min(max(left, 0), size)

    def _hear(self, *given: Any) -> None:
        self._scored = True

    def _compared(self, preds: Tensor, target: Tensor, text: str, place: str) -> None:
        self._scores.compared(preds, target, text, place)

    def _gathered(self, preds: Tensor, target: Tensor, text: str, place: str) -> None:
        self._scores.compared(preds, target, text, place, "pair of")

    def _is_foreign(self, pair: Pair) -> bool:
        """Whether it holds what other ranks gave, also where it was computed from that since."""
        gathered = self._gathers.returned if self._gathers is not None else ()
        if not gathered:
            return False
        given = pair.preds, pair.target
        return (
            not memory_of(given).isdisjoint(gathered)
            or len(pair.target) != self._samples
        )

    def _memory(self) -> tuple[set[int], set[int]]:
        return set(), self._inputs
