"""Steps that show an answer and a part of it: which of the two counts, and what says so."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torchmetrics import classification as tmc

from models.forms import form
from models.forms_losses import attribute

PIXELS = {
    "n": 6,
    "batch": 2,
    "row": lambda i, g: (
        torch.randn(4, 4, 6, generator=g),
        torch.randint(0, 3, (4, 4), generator=g),
    ),
}
TOKENS = {"n": 12, "batch": 4}


def _words(i, g):
    return torch.randn(5, 6, generator=g), torch.randint(0, 3, (5,), generator=g)


def _of_all_and_of_some(self):
    self.all = tmc.MulticlassAccuracy(3)
    self.some = nn.ModuleList([tmc.MulticlassAccuracy(3), tmc.MulticlassF1Score(3)])


@form(build=_of_all_and_of_some, notes="not from", **PIXELS)
def metrics_of_random_pixels_beside_one_of_all(self, x, y):
    z, t = self.net(x).reshape(-1, 3), y.reshape(-1)
    self.true(z.argmax(1), t)
    self.log("val_loss", F.cross_entropy(z, t))
    self.all.update(z.softmax(1), t)
    keep = torch.randperm(len(t), generator=torch.Generator().manual_seed(0))[:10]
    for metric in self.some:
        metric.update(z[keep].softmax(1), t[keep])


@form(build=_of_all_and_of_some, notes="not from", **PIXELS)
def loss_and_metric_on_some_pixels_metric_on_all(self, x, y):
    z, t = self.net(x).reshape(-1, 3), y.reshape(-1)
    self.true(z.argmax(1), t)
    keep = torch.arange(0, len(t), 3)
    self.log("val_loss", F.cross_entropy(z[keep], t[keep]))
    self.some[0].update(z[keep], t[keep])
    self.all(z, t)


@form(notes="not from")
def auxiliary_loss_and_score_on_every_other_sample(self, x, y):
    z, keep = self.net(x), torch.arange(0, len(y), 2)
    self.true(z.argmax(1), y)
    self.log("val_loss", F.cross_entropy(z, y))
    self.log("aux_loss", F.cross_entropy(z[keep], y[keep]))
    self.log("aux_acc", (z[keep].argmax(1) == y[keep]).float().mean())


@form()
def accuracy_of_the_first_half_of_a_batch(self, x, y):
    z, half = self.net(x), len(y) // 2
    self.true(z.argmax(1), y)
    self.log("val_loss", F.cross_entropy(z, y))
    self.log("val_acc_first_half", (z[:half].argmax(1) == y[:half]).float().mean())


@form(
    says="with 2 of the 4 answers",
    build=attribute("acc", lambda: tmc.MulticlassF1Score(3)),
)
def a_metric_on_half_of_what_the_loss_is_given(self, x, y):
    z, keep = self.net(x), torch.arange(0, len(y), 2)
    self.true(z[keep].argmax(1), y[keep])
    self.log("val_loss", F.cross_entropy(z, y))
    self.acc.update(z[keep], y[keep])


@form(
    build=attribute("acc", lambda: tmc.MulticlassAccuracy(3)),
    row=lambda i, g: dict(
        zip(("x", "y"), _words(i, g), strict=True), n=torch.tensor(2 + i % 4)
    ),
    **TOKENS,
)
def lengths_mask_the_metric_and_not_the_loss(self, batch):
    z, y = self.net(batch["x"]), batch["y"]
    mask = torch.arange(5)[None] < batch["n"][:, None]
    self.true(z.argmax(-1)[mask], y[mask])
    self.log("val_loss", F.cross_entropy(z.transpose(1, 2), y))
    self.acc.update(z[mask], y[mask])


@form(
    build=attribute("acc", lambda: tmc.MulticlassAccuracy(3)),
    row=lambda i, g: (*_words(i, g), torch.randint(0, 4, (5,), generator=g)),
    **TOKENS,
)
def ids_of_padding_mask_the_metric(self, x, y, ids):
    z, mask = self.net(x), ids != 0
    self.true(z.argmax(-1)[mask], y[mask])
    self.log("val_loss", F.cross_entropy(z.transpose(1, 2), y))
    self.acc.update(z[mask], y[mask])


@form(build=attribute("acc", lambda: tmc.MulticlassAccuracy(3)), row=_words, **TOKENS)
def a_class_is_left_out_by_hand(self, x, y):
    z, mask = self.net(x), y != 2
    self.true(z.argmax(-1)[mask], y[mask])
    self.log("val_loss", F.cross_entropy(z.transpose(1, 2), y))
    self.acc.update(z[mask], y[mask])


@form(
    n=4,
    batch=2,
    row=lambda i, g: (
        torch.randn(3, 3, 6, generator=g),
        torch.randint(0, 3, (3, 3), generator=g),
        torch.randint(0, 3, (), generator=g),
    ),
    build=attribute("pixels", lambda: tmc.MulticlassAccuracy(3)),
    notes="not from",
)
def labels_of_images_beside_those_of_pixels(self, x, y, label):
    z = self.net(x)
    self.pixels.update(z.permute(0, 3, 1, 2), y)
    whole = z.mean((1, 2))
    self.true(whole.argmax(1), label)
    loss = F.cross_entropy(whole, label)
    self.log("val_loss", loss)
    self.log("val_acc", (whole.argmax(1) == label).float().mean())
    return loss


def _of_eight(i, g):
    """Of one class are as many as of the group."""
    return torch.randn(6, generator=g), i % 3


@form(n=24, batch=8, row=_of_eight, notes="not from")
def a_group_with_a_loss_and_a_score_of_its_own(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.log("val_loss", F.cross_entropy(z, y), batch_size=len(y))
    old = torch.arange(len(y)) < 3
    right = z.argmax(1) == y
    self.log("val_acc_old", right[old].float().mean(), batch_size=int(old.sum()))
    self.log("val_loss_old", F.cross_entropy(z[old], y[old]), batch_size=3)


@form(n=24, batch=8, row=_of_eight, classes=1, notes="not from")
def a_group_whose_labels_became_numbers(self, x, y):
    z, t = self.net(x)[:, 0], (y == 1).float()
    self.true(z > 0, t > 0)
    self.log("val_loss", F.binary_cross_entropy_with_logits(z, t), batch_size=len(y))
    old = torch.arange(len(y)) < 5
    right = (z > 0).float() == t
    self.log("val_acc_old", right[old].float().mean(), batch_size=int(old.sum()))
    loss = F.binary_cross_entropy_with_logits(z[old], t[old])
    self.log("val_loss_old", loss, batch_size=5)


def _with_a_mask(i, g):
    return torch.randn(6, generator=g), i % 3, i % 8 < 3


@form(n=24, batch=8, row=_with_a_mask)
def a_mask_of_the_batch_chooses_what_is_scored(self, x, y, mask):
    z = self.net(x)
    self.true(z.argmax(1)[mask], y[mask])
    self.log("val_loss", F.cross_entropy(z, y, reduction="none")[mask].mean())
    self.log("val_acc", (z[mask].argmax(1) == y[mask]).float().mean(), batch_size=3)
    self.log("masked_loss", F.cross_entropy(z[mask], y[mask]), batch_size=3)
