"""Handwritten digits: a convolutional net trains under guard, its matrix in TensorBoard."""

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from lightning_evalguard import EvalGuard


class Digits(pl.LightningModule):
    def __init__(self, dropout: float = 0.3):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(512, 10))

    def forward(self, images):
        return self.head(self.features(images))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        logits = self(batch[0])
        self.log("val/loss", F.cross_entropy(logits, batch[1]))
        return {"logits": logits, "target": batch[1]}

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 2e-3)


def loaders():
    images, labels = (torch.tensor(column) for column in load_digits(return_X_y=True))
    both = TensorDataset(images.float().reshape(-1, 1, 8, 8) / 16, labels)
    split = torch.Generator().manual_seed(0)
    train, val = random_split(both, [0.8, 0.2], generator=split)
    return DataLoader(train, 64, shuffle=True), DataLoader(val, 64)


if __name__ == "__main__":
    torch.manual_seed(0)
    guard = EvalGuard()
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=10, callbacks=[guard], log_every_n_steps=10,
        logger=TensorBoardLogger("logs", name="digits"), enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Digits(), *loaders())
    print(guard.report)
    for true, predicted, count, share in guard.report.confusion["val"].most_confused(3):
        print(f"{count} of the {true}s ({share:.0%}) were read as {predicted}")
    print("Look at the matrix: tensorboard --logdir logs, then the Images tab")
