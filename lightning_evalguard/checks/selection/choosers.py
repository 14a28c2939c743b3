"""What chooses by a score, and what a trainer is asked about it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from torch import nn

    from lightning_evalguard.confusion.result import ConfusionResult
    from lightning_evalguard.data.loaders import LoggedLoss

Kind = Literal["checkpoint", "stop", "schedule"]
_FIELD = re.compile(r"\{([^{}:!]+)")
_OF_THE_TRAINER = frozenset(("epoch", "step"))


@dataclass(frozen=True)
class Chooser:
    """A callback or scheduler that compares a monitored score with its best one.

    Attributes:
        name: Its class, as the user wrote it.
        kind: ``checkpoint`` keeps weights, ``stop`` ends training, ``schedule`` lowers a rate.
        key: The score that it monitors; None where it monitors none.
        mode: ``min`` or ``max``.
        keeps: How many checkpoints are kept: -1 all, 0 none.
        itself: The object, which holds the best score so far.
    """

    name: str
    kind: Kind
    key: str | None
    mode: str
    keeps: int
    itself: Any

    @property
    def written(self) -> str:
        """How it stands in the user's code."""
        return f'{self.name}(mode="{self.mode}")'

    def with_mode(self, mode: str) -> str:
        """How it should stand there, for scores of which that mode keeps the better one."""
        if self.kind == "schedule":
            return f'{self.name}(optimizer, mode="{mode}")'
        return f'{self.name}(monitor="{self.key}", mode="{mode}")'

    @property
    def best(self) -> float | None:
        """Its best score so far; None before the first one."""
        held = vars(self.itself)
        best = held.get(
            "best_model_score" if self.kind == "checkpoint" else "best_score"
        )
        if self.kind == "schedule":
            best = held.get("best")
        value = number_of(best)
        if value is None or value in (float("inf"), -float("inf")):
            return None
        return value

    @property
    def count(self) -> int:
        """How often it looked at the score: since its best one, or in all for a scheduler."""
        counted = vars(self.itself).get(
            "last_epoch" if self.kind == "schedule" else "wait_count"
        )
        if not isinstance(counted, int):
            return 0
        return counted

    def scored(self, path: str) -> float | None:
        """The score under which it keeps the checkpoint at `path`."""
        kept = vars(self.itself).get("best_k_models")
        if not isinstance(kept, dict):
            return None
        return number_of(kept.get(path))

    def keys_in_names(self) -> list[str]:
        """The scores that the names of its files hold."""
        return [*_keys_in(self._template), *_keys_in(self._template_of_last)]

    def keys_in_name(self, path: str) -> list[str]:
        """The scores that stand in the name of the file at `path`, if this chooser gave it."""
        held = vars(self.itself)
        if path == held.get("best_model_path") or self.scored(path) is not None:
            return _keys_in(self._template)
        if path != held.get("last_model_path"):
            return []
        return _keys_in(self._template_of_last)

    @property
    def _template(self) -> Any:
        return vars(self.itself).get("filename")

    @property
    def _template_of_last(self) -> Any:
        own = vars(self.itself).get("CHECKPOINT_NAME_LAST")
        return own or inspect.getattr_static(
            type(self.itself), "CHECKPOINT_NAME_LAST", None
        )


def _keys_in(template: Any) -> list[str]:
    if not isinstance(template, str):
        return []
    return [key for key in _FIELD.findall(template) if key not in _OF_THE_TRAINER]


def number_of(value: Any) -> float | None:
    """A score as a number; waits for the device."""
    if value is None or isinstance(value, (str, bool)):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        return None


@dataclass(frozen=True)
class LoggedNow:
    """One score among those that the running loop holds.

    Attributes:
        updates: How often it was logged since the loop began anew.
        hook: Where it was logged, e.g. ``training_step``.
        higher_is_better: What the torchmetrics object says that was logged under it.
        metric: The class of that object.
    """

    updates: int
    hook: str
    higher_is_better: bool | None = None
    metric: str = ""


class Desk(Protocol):
    """What the `selection` check asks of the run; `trainer.choosers.Desk` is Lightning's."""

    def fitting(self) -> bool:
        """Whether this run is a fit."""

    def module(self) -> nn.Module:
        """The module that is trained."""

    def step(self) -> int:
        """Optimizer steps taken so far."""

    def choosers(self) -> Iterator[Chooser]:
        """What chooses by a score in this run."""

    def value(self, key: str) -> float | None:
        """What is held under a key; waits for the device."""

    def values(self) -> Mapping[str, float]:
        """Every score that is held; waits for the device."""

    def logged(self) -> Mapping[str, LoggedNow]:
        """The scores that the running loop logged, by each key under which they are held."""

    def minimised(self) -> Mapping[str, LoggedLoss]:
        """The keys under which steps log a loss that training makes small, or its opposite."""

    def trained(self) -> Mapping[str, bool]:
        """The keys under which training logs, and whether each holds the value of a step."""

    def results(self) -> Mapping[str, ConfusionResult]:
        """The confusion matrices of the evaluation that just logged its scores."""

    def owners(self) -> Sequence[Any]:
        """The module and the user's own callbacks, which may choose by a score themselves."""

    def checkpoint(self) -> str | None:
        """The file whose weights this run was asked to load."""

    def listen(self, saved: Callable[[str], None]) -> None:
        """Call `saved` with the path of each checkpoint that is about to be written."""

    def leave(self) -> None:
        """Listen no more."""
