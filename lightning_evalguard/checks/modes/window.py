"""The modes that an evaluation found, and what stands in another one after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from lightning_evalguard.checks.modes.callers import calls
from lightning_evalguard.checks.modes.effect import effect_of
from lightning_evalguard.checks.modes.plans import planned
from lightning_evalguard.model.tensors import is_metric
from lightning_evalguard.model.tree import Modes


@dataclass
class Unrestored:
    """What an evaluation left in another mode than it should: name -> (module, right mode).

    Attributes:
        stage: Of the evaluation.
        wrong: What has another mode than before.
        undone: What was frozen in the evaluation, and then put back into train mode by the loop.
    """

    stage: str
    wrong: dict[str, tuple[nn.Module, bool]]
    undone: dict[str, nn.Module] = field(default_factory=dict)


class ModesWindow:
    """The modes that an evaluation found, to be found again after it."""

    def __init__(self, stage: str, modes: Modes) -> None:
        self.stage = stage
        flags = modes.read()
        self._captured = list(zip(modes.modules, flags, strict=True))
        self._by_id = {id(m): flag for m, flag in self._captured}
        self._by_name = dict(zip(modes.names, flags, strict=True))
        self._number = calls.number

    def knows(self, module: nn.Module) -> bool:
        """Whether `module` was there when the evaluation began."""
        return id(module) in self._by_id

    def wrong(
        self, modes: Modes, expected: Sequence[tuple[str, bool]]
    ) -> dict[str, tuple[nn.Module, bool]]:
        """The modules whose mode differs from before, with the mode they had.

        A module that replaced another one under its name is expected in that one's mode.
        """
        modes.refresh(force=True)
        wrong = {}
        for name, module in zip(modes.names, modes.modules, strict=True):
            before = self._by_id.get(id(module), self._by_name.get(name))
            if before is None or module.training == before or is_metric(module):
                continue
            if planned(expected, name) is None:
                wrong[name] = (module, before)
        return wrong

    def undone(self, modes: Modes) -> dict[str, nn.Module]:
        """The modules that the user's code froze in the evaluation and that are awake again."""
        undone = {}
        for name, module in zip(modes.names, modes.modules, strict=True):
            call = calls.last(module)
            if (
                call is None
                or call.mode
                or call.code is None
                or call.number <= self._number
            ):
                continue
            if not module.training or effect_of(module) is None:
                continue
            if not any(
                p.requires_grad for p in _part(name, module, modes).parameters()
            ):
                undone[name] = module
        return undone

    def restore(self) -> None:
        """Set every flag to what it was."""
        for module, flag in self._captured:
            if module.training != flag:
                module.training = flag


def _part(name: str, module: nn.Module, modes: Modes) -> nn.Module:
    """The nearest module at or around `name` that has parameters."""
    modules = dict(zip(modes.names, modes.modules, strict=True))
    at = name
    while at and not any(True for _ in modules.get(at, module).parameters()):
        at = at.rpartition(".")[0]
    return modules.get(at, module)
