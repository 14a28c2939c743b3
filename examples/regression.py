"""Regression: there is no confusion matrix, and the guard still watches everything else.

The first run is clean. In the second the author forgot that functional dropout has a default.
"""

import warnings

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from sklearn.datasets import load_diabetes
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split
from torchmetrics import R2Score

from lightning_evalguard import EvalGuard, EvalGuardError


class Progression(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(10, 64), nn.Linear(64, 1)
        self.r2 = R2Score()

    def forward(self, x):
        hidden = self.first(x).relu()
        return self.second(F.dropout(hidden, 0.2, training=self.training))[:, 0]

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.r2(self(batch[0]), batch[1])
        self.log("val/r2", self.r2)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


class DropsAlways(Progression):
    def forward(self, x):
        return self.second(F.dropout(self.first(x).relu(), 0.2))[:, 0]


def loaders():
    x, y = (
        torch.tensor(part, dtype=torch.float32)
        for part in load_diabetes(return_X_y=True)
    )
    both = TensorDataset(x * 20, (y - y.mean()) / y.std())
    train, val = random_split(
        both, [0.8, 0.2], generator=torch.Generator().manual_seed(0)
    )
    return DataLoader(train, 32, shuffle=True), DataLoader(val, 89)


def fit(module):
    guard = EvalGuard()
    trainer = pl.Trainer(accelerator="cpu", max_epochs=20, callbacks=[guard], logger=False,
                         enable_checkpointing=False, enable_model_summary=False,
                         enable_progress_bar=False)  # fmt: skip
    trainer.fit(module, *loaders())
    print(f"val/r2 {trainer.callback_metrics['val/r2']:.2f}")
    print(guard.report)


if __name__ == "__main__":
    pl.seed_everything(0, verbose=False)
    warnings.filterwarnings("ignore", module="lightning.*")
    fit(Progression())
    try:
        fit(DropsAlways())
    except EvalGuardError as error:
        print(f"\nThe second model is stopped:\n{error}")
