"""Five lines at which the host waits for the device, then the same training without them.

On the CPU nothing waits: the report says what would wait on a GPU.
"""

import warnings

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_evalguard import EvalGuard, EvalGuardWarning


class Planted(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(16, 4)
        self.register_buffer("weight", torch.tensor([1.0, 1.0, 2.0, 2.0]))
        self.losses, self.correct = [], []

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self.net(x)
        loss = F.cross_entropy(
            logits, y, torch.tensor([1.0, 1.0, 2.0, 2.0]).to(self.device)
        )
        if torch.isnan(loss):
            raise ValueError("the loss is NaN")
        self.losses.append(loss.item())
        self.correct.append((logits.argmax(-1) == y).cpu().numpy())
        return loss + logits[y > 1].square().mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-3)


class Fixed(Planted):
    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self.net(x)
        loss = F.cross_entropy(logits, y, self.weight)  # a buffer: copied once
        self.losses.append(loss.detach())  # stays where it is
        self.correct.append(logits.argmax(-1) == y)
        hard = (y > 1).float()  # weigh by the mask: the size is known
        return loss + (logits.square().mean(-1) * hard).sum() / hard.sum().clamp(min=1)

    def on_train_epoch_end(self):
        assert all(x == x for x in torch.stack(self.losses).tolist())  # read once


warnings.simplefilter("ignore", EvalGuardWarning)  # the table below says the same
for module in (Planted(), Fixed()):
    guard = EvalGuard()
    settings = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
    }
    data = TensorDataset(torch.randn(512, 16), torch.arange(512) % 4)
    pl.Trainer(max_epochs=1, callbacks=[guard], **settings).fit(
        module, DataLoader(data, 32)
    )
    print(f"{type(module).__name__}: {len(guard.report.syncs)} syncs")
    print(*(f"  {sync}\n" for sync in guard.report.syncs), sep="")
