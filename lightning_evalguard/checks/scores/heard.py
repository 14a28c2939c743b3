"""A value that was logged, by whatever way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MOST_KEYS = 32  # of which every value that the steps log is kept


@dataclass(slots=True)
class LogCall:
    """One call that logged one value.

    Attributes:
        key: Its key, with the loader's suffix where it has one.
        name: Its key without it.
        value: A number, a tensor of one element, or a metric object.
        size: The batch size by which ``self.log`` weighs it; None where nothing is averaged.
        loader: Index of the data loader, None where there is one or the key is for all of them.
        by_metric: Whether a metric object was logged, which the loop computes and resets.
        location: ``file:line`` of the call, where known.
        after_step: Whether the hook after a step logged it.
        reduction: What the loop makes of the values where that is no mean: ``max``, ``min`` or
            ``sum``.
        over_ranks: Whether the loop averages it over several ranks.
    """

    key: str
    name: str
    value: Any
    size: int | None = None
    loader: int | None = None
    by_metric: bool = False
    location: str | None = None
    after_step: bool = False
    reduction: str = ""
    over_ranks: bool = False
