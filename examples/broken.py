"""The digits model with one planted bug: Lightning alone runs each of them to the end."""

import argparse
import sys

import lightning.pytorch as pl
from digits import Digits, loaders

from lightning_evalguard import EvalGuard, EvalGuardError


class TrainInStep(Digits):
    def validation_step(self, batch, batch_idx):
        self.train()
        return super().validation_step(batch, batch_idx)


class NormLeftOn(Digits):
    def on_validation_epoch_start(self):
        self.features[1].train()


class EvalWithoutSuper(Digits):
    def eval(self):
        return self


class ForwardWakesDropout(Digits):
    def forward(self, images):
        self.head.train()
        logits = super().forward(images)
        self.head.eval()
        return logits


class LoadedInEval(Digits):
    def __init__(self):
        super().__init__()
        self.eval()


class NeverPutBack(Digits):
    def on_validation_model_train(self):
        pass


BUGS = {bug.__name__: bug for bug in Digits.__subclasses__()}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bug", choices=BUGS, default="TrainInStep")
    parser.add_argument("--unguarded", action="store_true", help="Lightning alone")
    given = parser.parse_args()
    trainer = pl.Trainer(accelerator="cpu", max_epochs=1, logger=False, enable_progress_bar=False,
                         callbacks=[] if given.unguarded else [EvalGuard()])  # fmt: skip
    try:
        trainer.fit(BUGS[given.bug](), *loaders())
    except EvalGuardError as error:
        sys.exit(f"EvalGuardError: {error}")
