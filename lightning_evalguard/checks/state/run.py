"""What a window of the `state` check asks of the run that it lies in."""

from __future__ import annotations

from typing import Protocol

from lightning_evalguard.checks.state.change import Change
from lightning_evalguard.checks.state.optimization import Optimization
from lightning_evalguard.instruments.source import Site


class RunFacts(Protocol):
    """What a window asks of the run that it lies in.

    Attributes:
        restless: Tensors that moved and whose contents did not, as far as a piece of them shows.
        calibrated: Statistics that were reported as estimated anew.
        assigned: The lines that registered a tensor or a module in this evaluation.
        pending: Changes that no finding was made of yet.
    """

    restless: set[str]
    calibrated: set[str]
    assigned: dict[str, Site | None]
    pending: list[Change]

    def note(self, sentence: str) -> None:
        """Say what could not be checked."""

    def optimization(self) -> Optimization:
        """The optimizers and schedulers as they are now."""

    def accumulates(self) -> bool:
        """Whether gradients that stand when an evaluation begins are still needed."""
