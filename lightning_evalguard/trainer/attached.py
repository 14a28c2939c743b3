"""The guard that an environment variable attaches to a Trainer that knows nothing of it."""

from __future__ import annotations

from typing import Any

from lightning_evalguard.callback import EvalGuard


class AttachedGuard(EvalGuard):
    """An `EvalGuard` that leaves a trainer to one that stands in the user's script."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        guards = [c for c in trainer.callbacks if isinstance(c, EvalGuard)]
        own = [guard for guard in guards if not isinstance(guard, AttachedGuard)]
        if (own or guards)[0] is self:
            super().setup(trainer, pl_module, stage)
