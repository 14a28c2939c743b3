"""An import, a guarded fit and a planted bug, on the oldest torch that the package names."""

from __future__ import annotations

import logging
import warnings

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_evalguard import EvalGuard, EvalGuardError, evaluating


class Module(pl.LightningModule):
    def __init__(self, awake: bool) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 3)
        )
        self.awake = awake

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        if self.awake:
            self.net[1].train()
        self.log("val_loss", F.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def loader(seed):
    draw = torch.Generator().manual_seed(seed)
    x, y = (
        torch.randn(32, 4, generator=draw),
        torch.randint(0, 3, (32,), generator=draw),
    )
    return DataLoader(TensorDataset(x, y), 8)


def fit(awake):
    guard = EvalGuard()
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[guard],
    )  # fmt: skip
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        trainer.fit(Module(awake), loader(1), loader(2))
    assert not [w for w in heard if "EvalGuard" in w.category.__name__]
    return guard.report


logging.disable(logging.ERROR)
report = fit(awake=False)
assert report.confusion["val"].total == 32
assert report.findings == []
said = ""
try:
    fit(awake=True)
except EvalGuardError as error:
    said = str(error)
assert "`net.1` (BatchNorm1d): is in train mode" in said
with evaluating(nn.Dropout()) as report:
    pass
print(
    f"torch {torch.__version__}, lightning {pl.__version__}: guarded; the planted bug is found"
)
