"""Breast cancer data: what an accuracy that looks good hides, and which score tells it."""

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from sklearn.datasets import load_breast_cancer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from lightning_evalguard import ConfusionMetrics, EvalGuard


class Tumours(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.BatchNorm1d(30),
            nn.Linear(30, 16),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(16, 1),
        )

    def training_step(self, batch, batch_idx):
        return F.binary_cross_entropy_with_logits(
            self.net(batch[0])[:, 0], batch[1].float()
        )

    def validation_step(self, batch, batch_idx):
        return {"logits": self.net(batch[0])[:, 0], "target": batch[1]}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.02)


if __name__ == "__main__":
    torch.manual_seed(0)
    values, benign = (
        torch.tensor(column) for column in load_breast_cancer(return_X_y=True)
    )
    patients = TensorDataset(values.float(), 1 - benign)
    split = torch.Generator().manual_seed(0)
    train, val = random_split(patients, [0.7, 0.3], generator=split)
    guard = EvalGuard(
        metrics=ConfusionMetrics(task="binary", class_names=["benign", "malignant"])
    )
    trainer = pl.Trainer(accelerator="cpu", max_epochs=6, logger=False, callbacks=[guard],
                         enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(Tumours(), DataLoader(train, 32, shuffle=True), DataLoader(val, 64))
    print(guard.report)
    result = guard.report.confusion["val"]
    malignant = int(result.support[1])
    missed = malignant - int(result.true_positives[1])
    print(
        f"accuracy {result.scores['accuracy']:.3f}, recall {result.scores['recall']:.3f}"
    )
    print(
        f"Accuracy hid that {missed} of {malignant} malignant tumours were called benign."
    )
