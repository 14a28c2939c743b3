"""Two processes, 359 samples: the sampler repeats one, and the matrix counts it once.

The mean that `self.log` makes counts that sample twice; `val/accuracy` of the guard is exact.
"""

import lightning.pytorch as pl
import torch
from digits import Digits, loaders
from torchmetrics.functional import accuracy

from lightning_evalguard import EvalGuard


class Both(Digits):
    def validation_step(self, batch, batch_idx):
        logits = self(batch[0])
        right = accuracy(logits, batch[1], "multiclass", num_classes=10)
        self.log("val/mean_of_means", right, sync_dist=True)
        return {"logits": logits, "target": batch[1]}


if __name__ == "__main__":
    pl.seed_everything(0, verbose=False)
    torch.set_num_threads(1)
    guard = EvalGuard()
    train, val = loaders()
    last = torch.utils.data.Subset(val.dataset, range(359))
    trainer = pl.Trainer(accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, logger=False,
                         callbacks=[guard], enable_checkpointing=False,
                         enable_model_summary=False, enable_progress_bar=False)  # fmt: skip
    trainer.fit(Both(), train, torch.utils.data.DataLoader(last, 64))
    if trainer.is_global_zero:
        logged = trainer.callback_metrics
        result = guard.report.confusion["val"]
        print(result)
        print(f"counted on both processes: {result.total} of {len(last)}")
        print(f"val/accuracy {logged['val/accuracy']:.4f}, exact over the samples")
        print(f"val/mean_of_means {logged['val/mean_of_means']:.4f}, the mean of means")
