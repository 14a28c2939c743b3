"""The training of a script: which models take part in a step, and in which modes."""

from __future__ import annotations

import weakref
from typing import Any

from lightning_evalguard.plain import rules
from lightning_evalguard.plain.models import Model
from lightning_evalguard.plain.window import ModelCall
from lightning_evalguard.report import Finding


class TrainingSteps:
    """The optimizer steps so far, and the calls since the last one.

    Attributes:
        steps: How many there were.
        optimizers: Those that stepped and still live.
        made: Those that were made under guard and still live.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.optimizers: weakref.WeakSet[Any] = weakref.WeakSet()
        self.made: weakref.WeakSet[Any] = weakref.WeakSet()
        self._calls: dict[int, tuple[Model, ModelCall | None]] = {}

    def calls(self, model: Model, call: ModelCall | None) -> None:
        """A model was called with gradients on; the last call before a step tells its modes.

        Args:
            model: The model.
            call: The call; None where its modes are those that it trained with before.
        """
        self._calls[id(model)] = (model, call)

    def evaluates(self, model: Model) -> None:
        """The last call of a model was an evaluation."""
        self._calls.pop(id(model), None)

    def step(self, optimizer: Any) -> list[Finding]:
        """Weights are about to change: which models are in the wrong mode for it."""
        self.steps += 1
        calls, self._calls = self._calls, {}
        findings = []
        for model, call in calls.values():
            model.trained += 1
            if call is not None:
                findings += self._judge(model, call, optimizer)
        return findings

    def _judge(self, model: Model, call: ModelCall, optimizer: Any) -> list[Finding]:
        owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
        root = model.module()
        if root is None or not any(id(p) in owned for p in root.parameters()):
            self._calls[id(model)] = (model, call)  # another optimizer's
            return []
        findings: list[Finding] = []
        if call.flags not in model.judged or model.evaluated:
            model.judged.add(call.flags)
            findings += rules.trains_in_eval_mode(model, call, owned)
            findings += rules.woken_by_train(model, call)
        model.accepted = call.flags
        model.evaluated = False
        return findings
