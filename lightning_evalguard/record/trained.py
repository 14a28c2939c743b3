"""What did earlier runs on record train with, and did they make these weights?"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from lightning_evalguard.data.portraits import Portrait


@dataclass(frozen=True)
class Trained:
    """What one earlier fit trained with.

    Attributes:
        run: Which fit, as a sentence has it.
        sets: Hashes of its samples.
        certain: Whether it made the weights that are evaluated now.
    """

    run: str
    sets: list[Portrait]
    certain: bool


def trained_before(
    earlier: Iterable[Mapping[str, Any]],
    model: str,
    weights: str | None,
    checkpoint: str | None,
) -> Iterator[Trained]:
    """The fits that made some weights; where none is known to, the only one that could have.

    Args:
        earlier: The runs on record.
        model: The class of the module.
        weights: The hash of the weights.
        checkpoint: The file that they were read from.
    """
    fits = [run for run in earlier if run.get("run") == "fit" and run.get("trained_on")]
    made = [run for run in fits if _made(run, weights, checkpoint)]
    if made:
        yield from _portraits(made, certain=True)
        return
    alike = [run for run in fits if run.get("model") == model]
    # folds and other splits of one set train on what another one evaluates
    if len({repr(run["trained_on"]) for run in alike}) == 1:
        yield from _portraits(alike[:1], certain=False)


def _made(run: Mapping[str, Any], weights: str | None, checkpoint: str | None) -> bool:
    if weights is not None and any(h.get("weights") == weights for h in run["history"]):
        return True
    saved = (run.get("checkpoint") or {}).get("path")
    if saved is None or checkpoint is None:
        return False
    return os.path.abspath(str(saved)) == os.path.abspath(checkpoint)


def _portraits(runs: Iterable[Mapping[str, Any]], certain: bool) -> Iterator[Trained]:
    for run in runs:
        with suppress(ValueError, KeyError, TypeError):  # a record of another version
            sets = [Portrait.of_dict(said) for said in run["trained_on"]]
            yield Trained(f"the fit on record of {run['ended']}", sets, certain)
