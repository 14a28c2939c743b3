"""What the default guard costs: whole fits with and without it, in turn; the median ratio counts.

python benchmarks/overhead.py [--pairs 15] [--only transformer] [--accelerator gpu]
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_evalguard import EvalGuard

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from digits import Digits
from digits import loaders as digits_loaders

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore")


class Classifier(pl.LightningModule):
    """Any net that gives (N, 10) logits."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return {"logits": self.net(batch[0]), "target": batch[1]}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-3)


class Transformer(nn.Module):
    """BERT-base's shape at a width that two cores can train: 12 layers, 12 heads, 64 tokens."""

    def __init__(self, width: int = 192) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 12, 4 * width, batch_first=True)
        self.embed = nn.Embedding(1000, width)
        self.encoder = nn.TransformerEncoder(layer, 12, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embed(tokens)).mean(1))


def loaders(inputs: torch.Tensor, batch_size: int) -> Any:
    target = torch.arange(len(inputs)) % 10
    both = TensorDataset(inputs, target)
    return DataLoader(both, batch_size), DataLoader(both, batch_size)


def digits() -> tuple[Any, Any]:
    train, val = digits_loaders()
    return Digits(), {"train_dataloaders": train, "val_dataloaders": val}


def transformer() -> tuple[Any, Any]:
    train, val = loaders(torch.randint(0, 1000, (64, 64)), 8)
    return Classifier(Transformer()), {"train_dataloaders": train, "val_dataloaders": val}


def mlp() -> tuple[Any, Any]:
    net = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 10))
    train, val = loaders(torch.randn(3200, 32), 16)
    return Classifier(net), {"train_dataloaders": train, "val_dataloaders": val}


def thousand() -> tuple[Any, Any]:
    parts = [nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16), nn.ReLU()) for _ in range(250)]
    net = nn.Sequential(*parts, nn.Linear(16, 10))
    train, val = loaders(torch.randn(320, 16), 16)
    return Classifier(net), {"train_dataloaders": train, "val_dataloaders": val}


def seconds(
    make: Callable[[], tuple[Any, Any]], guards: list[Any], epochs: int, accelerator: str
) -> float:
    torch.manual_seed(0)
    module, data = make()
    trainer = pl.Trainer(
        accelerator=accelerator, max_epochs=epochs, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=guards,
    )  # fmt: skip
    start = time.perf_counter()
    trainer.fit(module, **data)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--only", default="")
    parser.add_argument("--accelerator", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'fit of':12} {'bare s':>8} {'guarded s':>10} {'median ratio':>13}  (ratios min-max)")
    for make, epochs in ((digits, 2), (transformer, 2), (mlp, 2), (thousand, 2)):
        if given.only not in make.__name__:
            continue
        seconds(make, [EvalGuard()], 1, given.accelerator)
        bare, guarded = [], []
        for i in range(given.pairs):
            for guard in (False, True) if i % 2 else (True, False):
                guards = [EvalGuard()] if guard else []
                took = seconds(make, guards, epochs, given.accelerator)
                (guarded if guard else bare).append(took)
        ratios = sorted(g / b for g, b in zip(guarded, bare, strict=True))
        print(
            f"{make.__name__:12} {statistics.median(bare):8.3f} {statistics.median(guarded):10.3f} "
            f"{statistics.median(ratios):13.3f}  ({ratios[0]:.3f}-{ratios[-1]:.3f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
