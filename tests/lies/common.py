"""What the tables of lies share: digits, a small net, and a trainer under guard or without one."""

import logging
import os
import tempfile
import warnings

import lightning.pytorch as pl
import torch
import torch.nn.functional as F  # noqa: F401 - for the tables
import torchmetrics  # noqa: F401
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    ModelCheckpoint,
)  # noqa: F401
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, TensorDataset  # noqa: F401

from lightning_evalguard import EvalGuard

X, Y = (torch.tensor(a) for a in load_digits(return_X_y=True))
X = X.float() / 16
_order = torch.randperm(len(X), generator=torch.Generator().manual_seed(0))
X, Y = X[_order], Y[_order]
TRAIN, VAL, TEST = (
    (X[:1000], Y[:1000]),
    (X[1000:1301], Y[1000:1301]),
    (X[1301:1600], Y[1301:1600]),
)
TABLE = []
GUARDED = [True]  # False: Lightning alone


def lie(fn):
    """Register ``fn(fixed) -> guard``: run the lie, or its honest twin, under a fresh guard."""
    TABLE.append((fn.__name__, fn))
    return fn


def loader(data, shuffle=False, batch_size=128, **kw):
    data = TensorDataset(*data) if isinstance(data, tuple) else data
    return DataLoader(data, batch_size, shuffle=shuffle, **kw)


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 10)
        )

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, i):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, i):
        z = self(batch[0])
        self.log("val_loss", F.cross_entropy(z, batch[1]), batch_size=len(batch[1]))
        self.log(
            "val_acc",
            (z.argmax(1) == batch[1]).float().mean(),
            batch_size=len(batch[1]),
        )

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


def trainer(*callbacks, guard=None, epochs=2, **kw):
    guard = guard or EvalGuard(
        sync="ignore",
        **{c: "warn" for c in ("modes", "grad", "state", "stochastic", "batch")},
    )
    folder = tempfile.mkdtemp()
    options = dict(
        max_epochs=epochs,
        accelerator="cpu",
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,  # a picture of each matrix takes longer than the fit
        log_every_n_steps=10,
        callbacks=[*callbacks, *([guard] if GUARDED[0] else [])],
    )
    if not any(isinstance(c, ModelCheckpoint) for c in callbacks):
        options["enable_checkpointing"] = False
    options.update(kw)
    return pl.Trainer(**options), guard


def fitted(net, *callbacks, train=None, val=None, guard=None, **kwargs):
    """Fit under a fresh guard, and give that."""
    made, guard = trainer(*callbacks, guard=guard, **kwargs)
    made.fit(
        net,
        loader(TRAIN, True) if train is None else train,
        loader(VAL) if val is None else val,
    )
    return guard


def trained(net=None):
    """A net that an unguarded trainer has trained, and that trainer."""
    net = net or Net()
    made = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,  # a picture of each matrix takes longer than the fit
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tempfile.mkdtemp(),
    )
    made.fit(net, loader(TRAIN, True), loader(VAL))
    return net, made


def tested(net, **kwargs):
    """Test under a fresh guard, and give that."""
    made, guard = trainer()
    made.test(net, loader(TEST), verbose=False, **kwargs)
    return guard
