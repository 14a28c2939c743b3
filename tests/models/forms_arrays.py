"""Steps that turn predictions and targets into arrays, and compare them in numpy or in Python."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from models.forms import form


def _lists(self):
    self.p, self.t = [], []

    def end():
        p, t = np.concatenate(self.p), np.concatenate(self.t)
        self.log("val_acc", float((p == t).mean()))
        self.p.clear()
        self.t.clear()

    self.on_validation_epoch_end = end


@form()
def np_eq_mean_in_step(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.log(
        "val_acc",
        (z.argmax(1).cpu().numpy() == y.cpu().numpy()).mean(),
        batch_size=len(y),
    )


@form()
def np_argmax_of_logits(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    a = np.argmax(z.detach().cpu().numpy(), axis=1)
    self.log("val_acc", float(np.sum(a == y.numpy()) / len(y)), batch_size=len(y))


@form(build=_lists)
def np_lists_at_the_end(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.p.append(z.argmax(1).cpu().numpy())
    self.t.append(y.cpu().numpy())


@form()
def tolist_and_a_comprehension(self, x, y):
    z = self.net(x)
    p = z.argmax(1)
    self.true(p, y)
    right = sum(a == b for a, b in zip(p.tolist(), y.tolist(), strict=True))
    self.log("val_acc", right / len(y), batch_size=len(y))


@form()
def asarray_accuracy_in_percent(self, x, y):
    z = self.net(x)
    p = z.argmax(1)
    self.true(p, y)
    self.log(
        "val_acc",
        float(np.mean(np.asarray(p) == np.asarray(y)) * 100),
        batch_size=len(y),
    )


@form("none")
def predictions_are_dumped_and_no_score(self, x, y):
    z = self.net(x)
    rows = list(zip(z.argmax(1).tolist(), y.tolist(), strict=True))
    assert rows


@form(
    "none",
    row=lambda i, g: (
        torch.randn(6, generator=g),
        torch.randint(0, 9, (), generator=g),
    ),
)
def numpy_regression_on_counts(self, x, y):
    z = self.net(x)[:, 0]
    e = np.abs(z.numpy() - y.numpy()).mean()
    self.log("val_mae", float(e), batch_size=len(y))
    self.log("val_loss", F.mse_loss(z, y.float()))


@form("reported")
def numpy_score_of_another_kind(self, x, y):
    z = self.net(x)
    near = np.abs(z.argmax(1).numpy() - y.numpy()) <= 1
    self.log("val_acc", float(near.mean() * 0.9), batch_size=len(y))


@form()
def numpy_accuracy_beside_the_loss(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.log("val_loss", F.cross_entropy(z, y))
    self.log(
        "val_acc", float((z.numpy().argmax(1) == y.numpy()).mean()), batch_size=len(y)
    )


@form(
    classes=2,
    row=lambda i, g: (
        torch.randn(6, generator=g),
        torch.randint(0, 2, (), generator=g),
    ),
)
def numpy_f1_by_hand(self, x, y):
    z = self.net(x)
    p, t = z.argmax(1).numpy(), y.numpy()
    self.true(z.argmax(1), y)
    self.log("val_acc", float((p == t).mean()), batch_size=len(y))


def _tensors(self):
    self.p, self.t = [], []

    def end():
        p, t = torch.cat(self.p).numpy(), torch.cat(self.t).numpy()
        self.log("val_acc", float((p == t).mean()))
        self.p.clear()
        self.t.clear()

    self.on_validation_epoch_end = end


@form(build=_tensors)
def tensors_are_kept_and_become_arrays_at_the_end(self, x, y):
    self.p.append(self.net(x).argmax(1))
    self.t.append(y)
    self.true(self.p[-1], y)
