"""Segmentation: ink or paper, for each pixel of a noisy digit; grey pixels are neither.

`ignore_index` is read off the loss: what it leaves out, the matrix leaves out too.
"""

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_evalguard import ConfusionMetrics, EvalGuard

GREY = 255


def loaders():
    images = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 16
    ink = (images[:, 0] > 0.5).long()
    ink[(images[:, 0] > 0.3) & (images[:, 0] < 0.7)] = GREY
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    both = TensorDataset(images + 0.25 * noise, ink)
    train, val = torch.utils.data.random_split(
        both, [0.8, 0.2], generator=torch.Generator().manual_seed(0)
    )
    return DataLoader(train, 64, shuffle=True), DataLoader(val, 64)


class Segments(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 2, 1),
        )  # fmt: skip
        self.loss = nn.CrossEntropyLoss(ignore_index=GREY)

    def training_step(self, batch, batch_idx):
        return self.loss(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.loss(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 3e-3)


if __name__ == "__main__":
    pl.seed_everything(0, verbose=False)
    guard = EvalGuard(metrics=ConfusionMetrics(class_names=["paper", "ink"]))
    trainer = pl.Trainer(accelerator="cpu", max_epochs=3, callbacks=[guard], logger=False,
                         enable_checkpointing=False, enable_model_summary=False)  # fmt: skip
    module = Segments()
    train, val = loaders()
    trainer.fit(module, train, val)
    result = guard.report.confusion["val"]
    print(result)
    print(f"{result.ignored:,} grey pixels are in no score")
    noisy = val.dataset[0][0]
    with torch.no_grad():
        found = module.eval().net(noisy[None])[0].argmax(0)
    for row in range(8):
        before = "".join("#" if v > 0.5 else "." for v in noisy[0, row])
        print(before, " ->  ", "".join(".#"[v] for v in found[row]))
