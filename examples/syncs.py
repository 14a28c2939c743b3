"""Five lines at which the host waits for the device, and the same training without them.

    python examples/syncs.py

Runs on a laptop: on the CPU nothing waits, and the report says what would wait on a GPU.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_evalguard import EvalGuard, EvalGuardWarning


class Planted(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))
        self.losses: list[Any] = []
        self.correct: list[Any] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        logits = self.net(x)
        loss = F.cross_entropy(logits, y, weight=torch.tensor([1.0, 1.0, 2.0, 2.0]).to(self.device))
        if torch.isnan(loss):
            raise ValueError("the loss is NaN")
        self.losses.append(loss.item())
        self.correct.append((logits.argmax(-1) == y).cpu().numpy())
        hard = logits[y > 1]
        return loss + 0.01 * hard.square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-3)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(torch.randn(512, 16), torch.arange(512) % 4), 32)


class Mended(Planted):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.tensor([1.0, 1.0, 2.0, 2.0]))  # copied once

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        logits = self.net(x)
        loss = F.cross_entropy(logits, y, weight=self.weight)
        self.losses.append(loss.detach())  # stays where it is
        self.correct.append(logits.argmax(-1) == y)
        hard = (y > 1).to(logits.dtype)[:, None]  # weigh by the mask: the size is known
        return loss + 0.01 * (logits.square() * hard).sum() / (4 * hard.sum()).clamp(min=1)

    def on_train_epoch_end(self) -> None:
        losses = torch.stack(self.losses).tolist()  # read once, after the last batch
        if any(loss != loss for loss in losses):
            raise ValueError("the loss is NaN")


def main() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    warnings.simplefilter("ignore", EvalGuardWarning)  # the table below says the same
    for module in (Planted(), Mended()):
        guard = EvalGuard()
        trainer = pl.Trainer(
            max_epochs=1,
            callbacks=[guard],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module)
        print(f"{type(module).__name__}: {len(guard.report.syncs)} syncs")
        for sync in guard.report.syncs:
            print(f"  {sync}")


if __name__ == "__main__":
    main()
