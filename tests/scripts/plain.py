"""A script that knows nothing of the guard; ``--bug`` leaves dropout on, ``--status N`` fails."""

import argparse
import sys

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Net(LightningModule):
    def __init__(self, bug):
        super().__init__()
        self.bug = bug
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        if self.bug:
            self.net[1].train()
        return {"logits": self.net(batch[0]), "target": batch[1]}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--bug", action="store_true")
    parser.add_argument("--guard", action="store_true")
    parser.add_argument("--status", type=int, default=0)
    given = parser.parse_args()
    torch.manual_seed(0)
    train, val = (
        TensorDataset(torch.randn(32, 4), torch.arange(32) % 3) for _ in range(2)
    )
    callbacks = []
    if given.guard:
        from lightning_evalguard import EvalGuard

        callbacks = [EvalGuard(modes="warn", stochastic="warn", batch="warn")]
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=callbacks,
    )  # fmt: skip
    trainer.fit(Net(given.bug), DataLoader(train, 8), DataLoader(val, 8))
    print(
        "guards:",
        sorted(type(c).__name__ for c in trainer.callbacks if "Guard" in str(type(c))),
    )
    sys.exit(given.status)
