"""Steps whose targets are labels that were smoothed, signed or made one-hot, and what is none."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from models.forms import form
from models.forms_losses import attribute


def _yes_or_no(i, g):
    return torch.randn(6, generator=g), float(torch.rand((), generator=g) > 0.5)


def _five(i, g):
    return torch.randn(6, generator=g), (torch.rand(5, generator=g) > 0.5).float()


def _softly(i, g):
    x, y = _yes_or_no(i, g)
    return x, 0.1 + 0.8 * y


def _signed(i, g):
    x, y = _yes_or_no(i, g)
    return x, 2 * y - 1


def _words(i, g):
    return torch.randn(5, 6, generator=g), torch.randint(0, 4, (5,), generator=g)


def _pixels(i, g):
    return (torch.rand(6, generator=g) > 0.5).float(), i % 3


# --- yes or no -----------------------------------------------------------------------------------


@form(classes=1, row=_yes_or_no)
def smoothed_labels_of_yes_or_no(self, x, y):
    z = self.net(x)[:, 0]
    self.true(z > 0, y > 0)
    self.log("val_loss", F.binary_cross_entropy_with_logits(z, 0.9 * y + 0.05))


@form(classes=1, row=_yes_or_no)
def labels_smoothed_on_one_side(self, x, y):
    p = self.net(x).sigmoid()
    self.true(p[:, 0] > 0.5, y > 0)
    self.log("val_loss", F.binary_cross_entropy(p, (0.9 * y.float())[:, None]))


@form(classes=1, row=_softly)
def labels_that_the_dataset_smoothed(self, x, y):
    z = self.net(x)[:, 0]
    self.true(z > 0, y > 0.5)
    self.log("val_loss", F.binary_cross_entropy_with_logits(z, y.float()))


@form(classes=5, row=_five)
def smoothed_labels_of_many(self, x, y):
    z = self.net(x)
    self.true(z > 0, y > 0)
    self.log("val_loss", F.binary_cross_entropy_with_logits(z, y.clamp(0.1, 0.9)))


@form(classes=1, row=_signed)
def signed_labels(self, x, y):
    z = self.net(x)[:, 0]
    self.true(z > 0, y > 0)
    self.log("val_loss", F.soft_margin_loss(z, y))


@form(classes=1, row=_yes_or_no, build=attribute("c", nn.SoftMarginLoss))
def labels_that_the_step_signs(self, x, y):
    z = self.net(x)[:, 0]
    self.true(z > 0, y > 0)
    self.log("val_loss", self.c(z, 2 * y - 1))


@form("none", classes=6, row=_pixels)
def smoothed_pixels_that_are_reconstructed(self, x, y):
    z = self.net(x)
    self.log("val_loss", F.binary_cross_entropy_with_logits(z, 0.9 * x + 0.05))


@form("none", classes=1)
def a_discriminator_with_one_side_smoothed(self, x, y):
    z = self.net(torch.cat((x, x.roll(1, 1))))[:, 0]
    real = torch.cat((torch.full((len(x),), 0.9), torch.zeros(len(x))))
    self.log("val_loss", F.binary_cross_entropy_with_logits(z, real))


# --- of several classes --------------------------------------------------------------------------


def _smoothed(z, y):
    spread = torch.full_like(z, 0.1 / (z.shape[1] - 1))
    return spread.scatter_(1, y[:, None], 0.9)


@form()
def divergence_from_smoothed_labels(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    logs = F.log_softmax(z, 1)
    self.log("val_loss", F.kl_div(logs, _smoothed(z, y), reduction="batchmean"))


class Smoothing(nn.Module):
    """Of the annotated transformer: class 0 is padding and counts for nothing."""

    def forward(self, logs, y):
        target = torch.full_like(logs, 0.1 / (logs.shape[1] - 2))
        target.scatter_(1, y[:, None], 0.9)
        target[:, 0] = 0
        target[y == 0] = 0
        return F.kl_div(logs, target, reduction="sum") / (y > 0).sum()


@form(classes=4, row=_words, build=attribute("c", Smoothing))
def divergence_that_leaves_out_the_padding(self, x, y):
    z, y = self.net(x).flatten(0, 1), y.flatten()
    self.true(z.argmax(1)[y > 0], y[y > 0])
    self.log("val_loss", self.c(F.log_softmax(z, 1), y))


@form()
def divergence_from_a_teacher_beside_smoothed_labels(self, x, y):
    z, teacher = self.net(x), (3 * x[:, :3]).softmax(1)
    self.true(z.argmax(1), y)
    logs = F.log_softmax(z, 1)
    hard = F.kl_div(logs, _smoothed(z, y), reduction="batchmean")
    self.log("val_loss", hard)
    self.log("val_soft", F.kl_div(logs, teacher, reduction="batchmean"))


@form()
def divergence_from_a_teacher_before_smoothed_labels(self, x, y):
    z, teacher = self.net(x), (3 * x[:, :3]).softmax(1)
    self.true(z.argmax(1), y)
    logs = F.log_softmax(z, 1)
    soft = F.kl_div(logs, teacher, reduction="batchmean")
    hard = F.kl_div(logs, _smoothed(z, y), reduction="batchmean")
    self.log("val_loss", soft + hard)


@form("none")
def divergence_from_a_teacher(self, x, y):
    logs = F.log_softmax(self.net(x), 1)
    self.log("val_loss", F.kl_div(logs, x[:, :3].softmax(1), reduction="batchmean"))


@form("none")
def divergence_from_all_classes_alike(self, x, y):
    logs = F.log_softmax(self.net(x), 1)
    self.log("val_loss", F.kl_div(logs, torch.full_like(logs, 1 / 3)))


@form("reported")
def one_hot_labels_that_are_scattered(self, x, y):
    logs = self.net(x).log_softmax(1)
    hot = torch.zeros_like(logs).scatter_(1, y[:, None], 1.0)
    self.log("val_loss", -(hot * logs).sum(1).mean())


@form("none")
def places_that_are_scattered(self, x, y):
    best = self.net(x).softmax(1)
    hot = torch.zeros_like(best).scatter_(1, best.argmax(1, keepdim=True), 1.0)
    self.log("val_loss", (hot - best).abs().mean())
