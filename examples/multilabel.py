"""Several labels: a digit is even, prime, greater than four, drawn with a loop, or none of it."""

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from lightning_evalguard import ConfusionMetrics, EvalGuard

LABELS = {
    "even": {0, 2, 4, 6, 8}, "prime": {2, 3, 5, 7}, "above four": {5, 6, 7, 8, 9},
    "has a loop": {0, 6, 8, 9},
}  # fmt: skip


def loaders():
    images, digits = load_digits(return_X_y=True)
    target = torch.tensor(
        [[digit in group for group in LABELS.values()] for digit in digits]
    )
    both = TensorDataset(torch.tensor(images, dtype=torch.float32) / 16, target.float())
    train, val = random_split(
        both, [0.8, 0.2], generator=torch.Generator().manual_seed(0)
    )
    return DataLoader(train, 64, shuffle=True), DataLoader(val, 64)


class Labels(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, len(LABELS))
        )

    def training_step(self, batch, batch_idx):
        return F.binary_cross_entropy_with_logits(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        # The loss shows logits and targets; nothing has to be returned.
        self.log(
            "val/loss", F.binary_cross_entropy_with_logits(self.net(batch[0]), batch[1])
        )

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 3e-3)


if __name__ == "__main__":
    pl.seed_everything(0, verbose=False)
    metrics = ConfusionMetrics(task="multilabel", class_names=list(LABELS))
    guard = EvalGuard(metrics=metrics)
    trainer = pl.Trainer(accelerator="cpu", max_epochs=8, callbacks=[guard], logger=False,
                         enable_checkpointing=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(Labels(), *loaders())
    result = guard.report.confusion["val"]
    print(result)
    low, high = result.interval("f1_macro")
    print(f"f1_macro {result.scores['f1_macro']:.3f}, 95 %: {low:.3f} to {high:.3f}")
