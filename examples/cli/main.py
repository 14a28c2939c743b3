"""LightningCLI: the guard stands in config.yaml; try ``--trainer.callbacks.modes=warn``."""

import sys
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.cli import LightningCLI

sys.path.insert(0, str(Path(__file__).parent.parent))
from digits import Digits, loaders


class DigitsData(pl.LightningDataModule):
    def train_dataloader(self):
        return loaders()[0]

    def val_dataloader(self):
        return loaders()[1]


if __name__ == "__main__":
    LightningCLI(Digits, DigitsData)
