"""LightningCLI: the guard stands in config.yaml; try ``--trainer.callbacks.modes=warn``."""

import sys
from pathlib import Path

from lightning.pytorch.cli import LightningCLI

sys.path.insert(0, str(Path(__file__).parent.parent))
from digits import Digits, digits_data

if __name__ == "__main__":
    LightningCLI(Digits, digits_data)
