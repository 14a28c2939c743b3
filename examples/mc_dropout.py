"""Monte Carlo dropout: random in an evaluation on purpose, and said so in one line.

Without the decorator the guard stops the run, for a forgotten `.eval()` looks the same.
"""

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from digits import loaders
from torch import nn

from lightning_evalguard import EvalGuard, allow


class Bayesian(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU())
        self.head = nn.Linear(128, 10)

    @allow("stochastic", reason="Monte Carlo dropout")
    def sample(self, images, times=20):
        body = self.body(images)
        drawn = [self.head(F.dropout(body, 0.5)).softmax(-1) for _ in range(times)]
        return torch.stack(drawn)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.head(F.dropout(self.body(batch[0]), 0.5)), batch[1])

    def validation_step(self, batch, batch_idx):
        return {"probs": self.sample(batch[0]).mean(0), "target": batch[1]}

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 2e-3)


if __name__ == "__main__":
    pl.seed_everything(0, verbose=False)
    guard = EvalGuard()
    module, (train, val) = Bayesian(), loaders()
    trainer = pl.Trainer(accelerator="cpu", max_epochs=5, callbacks=[guard], logger=False,
                         enable_checkpointing=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(module, train, val)
    print(guard.report.confusion["val"])
    print(f"findings: {len(guard.report.findings)}")
    images, digits = next(iter(val))
    drawn = module.eval().sample(images)
    doubt = drawn.max(-1).values.std(0)
    for i in doubt.argsort(descending=True)[:3].tolist():
        votes = drawn[:, i].argmax(-1).bincount(minlength=10)
        listed = ", ".join(
            f"{n}x {digit}" for digit, n in enumerate(votes.tolist()) if n
        )
        print(f"least sure of a {digits[i]}: {listed}")
