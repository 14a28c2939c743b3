"""Averaged weights: swapped in for each evaluation and out again, which is no finding.

Then the mistake: the callback forgets to update its average, and the guard says what was scored.
"""

import copy

import lightning.pytorch as pl
import torch
from digits import Digits, loaders

from lightning_evalguard import EvalGuard


class Average(pl.Callback):
    def __init__(self, decay=0.98, updates=True):
        self.decay, self.updates = decay, updates

    def on_fit_start(self, trainer, module):
        self.average = copy.deepcopy(module.state_dict())

    def on_train_batch_end(self, trainer, module, *_):
        if not self.updates:
            return
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - self.decay)

    def on_validation_start(self, trainer, module):
        self.trained = copy.deepcopy(module.state_dict())
        module.load_state_dict(self.average)

    def on_validation_end(self, trainer, module):
        module.load_state_dict(self.trained)


def fit(average):
    pl.seed_everything(0, verbose=False)
    guard = EvalGuard()
    trainer = pl.Trainer(accelerator="cpu", max_epochs=4, callbacks=[average, guard], logger=False,
                         enable_checkpointing=False, enable_model_summary=False,
                         enable_progress_bar=False)  # fmt: skip
    trainer.fit(Digits(), *loaders())
    accuracy = guard.report.confusion["val"].scores["accuracy"]
    print(f"accuracy of the averaged weights: {accuracy:.3f}")
    for finding in guard.report.findings:
        print(f"  {finding}")


if __name__ == "__main__":
    torch.set_num_threads(2)
    fit(Average())
    fit(Average(updates=False))
