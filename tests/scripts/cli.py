"""A LightningCLI that knows nothing of the guard: ``cli.py validate --model.bug=true``."""

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningCLI
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Net(LightningModule):
    def __init__(self, bug: bool = False, api_key: str = "none"):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))

    def validation_step(self, batch, batch_idx):
        if self.hparams.bug:
            self.net.train()
        return {"logits": self.net(batch[0]), "target": batch[1]}


class Data(LightningDataModule):
    def val_dataloader(self):
        rows = torch.arange(128.0).view(32, 4)
        return DataLoader(TensorDataset(rows, torch.arange(32) % 3), 8)


if __name__ == "__main__":
    LightningCLI(Net, Data, save_config_callback=None)
