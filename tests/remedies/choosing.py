"""Remedies for a user's own code that chooses by a score."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from lightning_evalguard import Report
from models.program import Classifier
from remedies import Make, alone, applied, fitted


class Improves(Classifier):
    """Logs a score that is better after each epoch."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_acc", 1 - 0.5 / (self.current_epoch + 1))


@applied("Let `{}` begin at `{}`, and replace it where `{}` is {}.")
def the_best_is_the_lowest(make: Make, fixed: bool) -> Report:
    class Best(pl.Callback):
        best = -float("inf") if fixed else float("inf")

        def on_validation_end(self, trainer: pl.Trainer, module: Any) -> None:
            score = float(trainer.callback_metrics["val_acc"])
            if (score > self.best) if fixed else (score < self.best):
                self.best = score

    guard = alone("selection")
    return fitted(make, guard, Improves(), callbacks=[Best()], max_epochs=4)


@applied("Compare `{}` and save in `on_validation_end`, before the next step.")
def saved_by_the_score_before(make: Make, fixed: bool) -> Report:
    class Best(pl.Callback):
        best = 0.0

        def keep(self, trainer: pl.Trainer, module: Any) -> None:
            score = float(trainer.callback_metrics.get("val_acc", 0))
            if score > self.best:
                self.best = score
                trainer.save_checkpoint(f"{trainer.default_root_dir}/best.ckpt")

    hook = "on_validation_end" if fixed else "on_validation_start"
    setattr(Best, hook, Best.keep)
    guard = alone("selection")
    return fitted(make, guard, Improves(), callbacks=[Best()], max_epochs=4)
