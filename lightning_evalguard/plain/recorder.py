"""The recorder of a plain evaluation: as in Lightning, and it tells that something is scored."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from lightning_evalguard.confusion.recorder import Recorder
from lightning_evalguard.confusion.result import ConfusionResult
from lightning_evalguard.confusion.sources import Pair
from lightning_evalguard.ranks import Alone

# What outputs are also compared by within a step that scores nothing.
_NO_SCORE = ("cosine_similarity",)


class PlainRecorder(Recorder):
    """Counts without a graph, for a script may evaluate with gradients on.

    Args:
        scored: Is told of each loss, metric and comparison, and given its tensors.
        quietly: Makes a context in which nothing that is read counts as the script's.
        ranks: The processes whose counts are added up.
        is_foreign: Whether a pair holds samples of other ranks, which count them themselves.

    Attributes:
        compares: Whether the source compares what a model returned with something else.
    """

    _compares = False  # the session hears them, and hands them on

    def __init__(
        self,
        scored: Callable[..., None],
        quietly: Callable[[], AbstractContextManager[None]],
        ranks: Alone | None = None,
        is_foreign: Callable[[Pair], bool] | None = None,
    ) -> None:
        self._scored = scored
        self._quietly = quietly
        self._is_foreign = is_foreign
        self.compares = False
        super().__init__(ranks=ranks)

    def own(self, samples: int) -> None:
        """So many samples of the step that begins are this rank's own."""
        self._loader(0).owned = samples

    def _is_score(self, result: ConfusionResult) -> bool:
        return self.compares  # nothing is logged

    def see(self, kind: str, name: str, pair: Pair, value: Any = None) -> None:
        """A metric, a loss or a comparison is called; not counted where others count it."""
        if self._is_foreign is not None and self._is_foreign(pair):
            return
        if kind != "other" or name not in _NO_SCORE:
            self._scored(pair.preds, pair.target)
        with torch.no_grad(), self._quietly():
            super().see(kind, name, pair, value)
