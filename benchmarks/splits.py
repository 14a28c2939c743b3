"""How many alarms do random splits of real sets raise? A fit and a test under a bare guard each.

Run: ``python benchmarks/splits.py [SPLITS]``. Sets of scikit-learn, split at random (unequal,
stratified by nothing), with what is usual on the training side: none, flips, crops, noise, both
sides normalised alike, before or as they are read, small training sets, rare classes.
"""

from __future__ import annotations

import collections
import logging
import random
import sys
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, random_split

from lightning_evalguard import EvalGuard

LOADS = {
    "digits": load_digits,
    "cancer": load_breast_cancer,
    "wine": load_wine,
    "iris": load_iris,
}


class Changed(Dataset[Any]):
    """Samples of another dataset, changed as they are read."""

    def __init__(self, inner: Dataset[Any], change: Callable[[Tensor], Tensor]) -> None:
        self.inner, self.change = inner, change

    def __len__(self) -> int:
        return len(self.inner)  # type: ignore[arg-type]

    def __getitem__(self, i: int) -> Any:
        x, y = self.inner[i]
        return self.change(x), y


class Scaled:
    """Scales a sample by the mean and deviation of a set."""

    def __init__(self, of: TensorDataset) -> None:
        self.mean, self.std = of.tensors[0].mean(0), of.tensors[0].std(0) + 1e-3

    def __call__(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def flip(x: Tensor) -> Tensor:
    return x.reshape(8, 8).flip(1).reshape(64) if random.random() < 0.5 else x


def crop(x: Tensor) -> Tensor:
    padded = F.pad(x.reshape(1, 8, 8), (1, 1, 1, 1))[0]
    i, j = random.randrange(3), random.randrange(3)
    return padded[i : i + 8, j : j + 8].reshape(64)


def noise(x: Tensor) -> Tensor:
    return x + 0.05 * x.std() * torch.randn_like(x)


def jitter(x: Tensor) -> Tensor:
    return x * (0.8 + 0.4 * random.random())


class Net(pl.LightningModule):
    """A small classifier with batch norm and dropout."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(features, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1),
            nn.Linear(16, classes),
        )  # fmt: skip

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        logits = self.net(batch[0])
        n = len(batch[1])
        self.log("val_loss", F.cross_entropy(logits, batch[1]), batch_size=n)
        self.log("val_acc", (logits.argmax(1) == batch[1]).float().mean(), batch_size=n)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        logits = self.net(batch[0])
        self.log(
            "test_loss", F.cross_entropy(logits, batch[1]), batch_size=len(batch[1])
        )

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 1e-2)


def one_split(number: int) -> list[str]:
    """What a guard finds on the split of this number; nothing should be."""
    torch.manual_seed(number)
    random.seed(number)
    name = list(LOADS)[number % len(LOADS)]
    x, y = (torch.tensor(a) for a in LOADS[name](return_X_y=True))
    x = x.float()
    kind = random.choice(
        ["plain", "normalised", "noise", "jitter", "flip", "crop", "subsets", "as read"]
    )
    if kind in ("flip", "crop") and name != "digits":
        kind = "plain"
    shares = random.choice(
        [(0.6, 0.2, 0.2), (0.8, 0.1, 0.1), (0.5, 0.25, 0.25), (0.34, 0.33, 0.33)]
    )
    n, m = int(shares[0] * len(x)), int(shares[1] * len(x))
    full = TensorDataset(x, y)
    train, val, test = random_split(full, [n, m, len(x) - n - m])
    if kind != "subsets":
        train, val, test = (
            TensorDataset(x[torch.tensor(s.indices)], y[torch.tensor(s.indices)])
            for s in (train, val, test)
        )
    if kind == "normalised":
        mean, std = train.tensors[0].mean(0), train.tensors[0].std(0) + 1e-3
        train, val, test = (
            TensorDataset((s.tensors[0] - mean) / std, s.tensors[1])
            for s in (train, val, test)
        )
    if kind == "as read":
        of_train = Scaled(train)
        train, val, test = (Changed(s, of_train) for s in (train, val, test))
    change = {"noise": noise, "jitter": jitter, "flip": flip, "crop": crop}.get(kind)
    if change is not None:
        train = Changed(train, change)
    if number % 5 == 0:
        train = Subset(train, range(len(train) // 2))
    guard = EvalGuard(sync="ignore")
    folder = tempfile.mkdtemp()
    best = ModelCheckpoint(folder, monitor="val_acc", mode="max")
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
        callbacks=[guard, best, EarlyStopping("val_loss", patience=3)],
    )  # fmt: skip
    net = Net(x.shape[1], int(y.max()) + 1)
    batch = random.choice([16, 32, 50])
    last = len(train) % batch == 1  # batch norm takes no single sample
    trainer.fit(
        net,
        DataLoader(train, batch, shuffle=True, drop_last=last),
        DataLoader(val, batch),
    )
    trainer.test(net, DataLoader(test, batch), verbose=False)
    found = [f"{name}, {kind}: {f}" for f in guard.report.findings]
    return found + [note for note in guard.report.notes if "failed inside" in note]


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    torch.set_num_threads(1)
    splits = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    alarms: collections.Counter[str] = collections.Counter()
    for number in range(splits):
        alarms.update(one_split(number))
    for text, count in alarms.most_common():
        print(f"{count}x {text}")
    print(f"{sum(alarms.values())} alarms over {splits} splits")
    sys.exit(bool(alarms))


if __name__ == "__main__":
    main()
