"""Steps whose answers are seen in their losses, however these are held and written."""

from __future__ import annotations

import functools
from collections import namedtuple
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from models.forms import form


def attribute(name: str, make: Any) -> Any:
    """Builds a module with one more attribute."""
    return lambda self: setattr(self, name, make())


@form(build=attribute("criterion", lambda: nn.CrossEntropyLoss(label_smoothing=0.1)))
def smoothed_cross_entropy(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.log("val_loss", self.criterion(z, y))


@form(
    build=attribute(
        "criterion", lambda: nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2, 3]))
    )
)
def weighted_cross_entropy(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    return self.criterion(z, y)


@form(build=attribute("criterion", lambda: nn.CrossEntropyLoss(ignore_index=1)))
def held_loss_that_ignores_a_class(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1)[y != 1], y[y != 1])
    return {"loss": self.criterion(z, y)}


@form(
    build=attribute(
        "losses",
        lambda: nn.ModuleDict({"ce": nn.CrossEntropyLoss(), "nll": nn.NLLLoss()}),
    )
)
def losses_in_a_module_dict(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    total = self.losses["ce"](z, y) + self.losses["nll"](z.log_softmax(1), y)
    self.log("val/loss", total)


@form()
def keywords_in_any_order(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.log("val_loss", F.cross_entropy(target=y, input=z))


@form()
def nll_of_log_softmax(self, x, y):
    z = F.log_softmax(self.net(x), dim=-1)
    self.true(z.argmax(1), y)
    self.log("val_loss", F.nll_loss(z, y))


@form()
def loss_without_reduction(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    each = F.cross_entropy(z, y, reduction="none")
    self.log("val_loss", each.mean())
    self.log("val_worst", each.max())


class Helper(nn.Module):
    """A model that computes its own loss, as many libraries' do."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 3)
        self.crit = nn.CrossEntropyLoss()

    def forward(self, x, labels=None):
        logits = self.inner(x)
        loss = (
            self.crit(logits.view(-1, 3), labels.view(-1))
            if labels is not None
            else None
        )
        return SimpleNamespace(loss=loss, logits=logits)


@form(build=attribute("model", Helper))
def model_that_computes_its_own_loss(self, x, y):
    out = self.model(x, labels=y)
    self.true(out.logits.argmax(1), y)
    self.log("val_loss", out.loss)


@form(build=attribute("model", Helper))
def model_with_a_loss_and_a_returned_pair(self, x, y):
    out = self.model(x, labels=y)
    self.true(out.logits.argmax(-1), y)
    return {"loss": out.loss, "predictions": out.logits.argmax(-1), "labels": y}


class SoftFocal(nn.Module):
    """A focal loss on one-hot targets, by a BCE of each class."""

    def forward(self, logits, target):
        hot = F.one_hot(target, logits.shape[1]).to(logits)
        each = F.binary_cross_entropy_with_logits(logits, hot, reduction="none")
        return ((1 - torch.exp(-each)) ** 2 * each).mean()


@form(build=attribute("focal", SoftFocal))
def focal_loss_over_one_hot_bce(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.log("val_loss", self.focal(z, y))


class FocalByHand(nn.Module):
    """A focal loss that gathers its log-probabilities."""

    def __init__(self, gamma=2.0):
        super().__init__()
        self.gamma = gamma

    def forward(self, input, target):
        logpt = input.log_softmax(-1).gather(1, target.unsqueeze(1)).squeeze(1)
        return (-((1 - logpt.exp()) ** self.gamma) * logpt).mean()


@form(build=attribute("loss_fn", FocalByHand))
def focal_loss_module_by_hand(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.log("val_loss", self.loss_fn(z, y))


class FocalOverCrossEntropy(nn.CrossEntropyLoss):
    """A subclass of torch's own loss."""

    def forward(self, input, target):
        each = F.cross_entropy(input, target, reduction="none")
        return ((1 - torch.exp(-each)) ** 2 * each).mean()


@form(build=attribute("loss_fn", FocalOverCrossEntropy))
def focal_loss_that_inherits_cross_entropy(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    return self.loss_fn(z, y)


@form(
    build=attribute(
        "loss_fn", lambda: functools.partial(F.cross_entropy, label_smoothing=0.2)
    )
)
def partial_with_smoothing(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.log("val_loss", self.loss_fn(z, y))


@form(build=attribute("loss_fn", lambda: lambda a, b: F.cross_entropy(a, b)))
def loss_in_a_lambda(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.log("val_loss", self.loss_fn(z, y))


def soft_dice(pred, mask, smooth=1.0):
    """One minus the Dice coefficient of probabilities."""
    pred = torch.sigmoid(pred)
    overlap = (pred * mask).sum()
    return 1 - (2 * overlap + smooth) / (pred.sum() + mask.sum() + smooth)


def _image(i, g):
    return torch.randn(5, 5, 6, generator=g), torch.randint(0, 2, (5, 5), generator=g)


@form(classes=1, row=_image)
def segmentation_with_bce_and_dice(self, x, y):
    z = self.net(x).movedim(-1, 1)
    mask = y[:, None].float()
    self.true(z > 0, mask.bool())
    loss = F.binary_cross_entropy_with_logits(z, mask) + soft_dice(z, mask)
    self.log("val_loss", loss)


@form(classes=1, row=_image)
def segmentation_with_dice_alone(self, x, y):
    z = self.net(x).movedim(-1, 1)
    mask = y[:, None].float()
    self.true((z > 0).flatten(), mask.bool().flatten())
    self.log("val_loss", soft_dice(z, mask))


def _segments(i, g):
    return torch.randn(4, 5, 6, generator=g), torch.randint(0, 4, (4, 5), generator=g)


@form(classes=4, row=_segments)
def segmentation_of_several_classes_with_void(self, x, y):
    y = y.where(x[..., 0] > -1, 255)
    z = self.net(x).movedim(-1, 1)
    keep = y != 255
    self.true(z.argmax(1)[keep], y[keep])
    self.log("val_loss", F.cross_entropy(z, y, ignore_index=255))


@form(classes=1)
def binary_with_pos_weight(self, x, y):
    z = self.net(x)
    t = (x[:, :1] > 0).float()
    self.true((z > 0)[:, 0], t.bool()[:, 0])
    self.log(
        "val_loss",
        F.binary_cross_entropy_with_logits(z, t, pos_weight=torch.tensor([3.0])),
    )


@form(classes=1, build=attribute("crit", nn.BCELoss))
def binary_probabilities(self, x, y):
    p = self.net(x).sigmoid().squeeze(-1)
    t = (x[:, 0] > 0).float()
    self.true(p > 0.5, t.bool())
    self.log("val_loss", self.crit(p, t))


@form(classes=2)
def binary_with_two_logits(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.log("val_loss", F.cross_entropy(z, y))


@form(classes=2)
def binary_with_two_logits_and_one_hot_bce(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.log("val_loss", F.binary_cross_entropy_with_logits(z, F.one_hot(y, 2).float()))


@form(classes=4)
def multilabel(self, x, y):
    z = self.net(x)
    t = (x[:, :4] > 0).float()
    self.true(z > 0, t.bool())
    self.log("val_loss", F.binary_cross_entropy_with_logits(z, t))


@form(classes=4)
def multilabel_soft_margin(self, x, y):
    z = self.net(x)
    t = (x[:, :4] > 0).float()
    self.true(z > 0, t.bool())
    return {"loss": F.multilabel_soft_margin_loss(z, t), "logits": z, "labels": t}


@form(classes=1)
def hinge_with_signs(self, x, y):
    z = self.net(x)[:, 0]
    t = (x[:, 0] > 0).long()
    self.true(z > 0, t.bool())
    self.log("val_loss", F.soft_margin_loss(z, t * 2.0 - 1))
    return {"logits": z, "labels": t}


@form()
def mixup_of_two_targets(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    loss = 0.7 * F.cross_entropy(z, y) + 0.3 * F.cross_entropy(z, y.flip(0))
    self.log("val_loss", loss)
    self.log("val_acc", (z.argmax(1) == y).float().mean())


@form()
def distilled_from_a_teacher(self, x, y):
    z, teacher = self.net(x), self.net(x).detach().roll(1, 1)
    self.true(z.argmax(1), y)
    soft = F.kl_div(z.log_softmax(1), teacher.softmax(1), reduction="batchmean")
    self.log("val_loss", F.cross_entropy(z, y) + soft)


@form()
def temperature_before_the_loss(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.log("val_loss", F.cross_entropy(z / 0.07, y))


TOKENS = {
    "row": lambda i, g: (
        torch.randn(5, 6, generator=g),
        torch.randint(0, 4, (5,), generator=g),
    ),
    "classes": 4,
}


@form(**TOKENS)
def shifted_language_model(self, x, y):
    z = self.net(x)
    self.true(z[:, :-1].argmax(-1), y[:, 1:])
    loss = F.cross_entropy(z[:, :-1].reshape(-1, 4), y[:, 1:].reshape(-1))
    self.log("val_loss", loss)


@form(**TOKENS)
def padded_tokens_are_ignored(self, x, y):
    y = y.masked_fill(x[..., 0] < 0, -100)
    z = self.net(x)
    keep = y != -100
    self.true(z.argmax(-1)[keep], y[keep])
    self.log("val_loss", F.cross_entropy(z.transpose(1, 2), y))


@form(**TOKENS)
def padded_tokens_are_masked_by_hand(self, x, y):
    mask = x[..., 0] > 0
    z = self.net(x)
    self.true(z.argmax(-1)[mask], y[mask])
    if mask.any():
        self.log("val_loss", F.cross_entropy(z[mask], y[mask]))


def _lengths(batch):
    xs, ys = zip(*batch, strict=True)
    return nn.utils.rnn.pad_sequence(xs, True), nn.utils.rnn.pad_sequence(
        ys, True, -100
    )


@form(
    classes=4,
    collate=_lengths,
    row=lambda i, g: (
        torch.randn(2 + i % 5, 6, generator=g),
        torch.randint(0, 4, (2 + i % 5,), generator=g),
    ),
)
def ragged_sequences(self, x, y):
    z = self.net(x)
    self.true(z.argmax(-1), y)
    self.log("val_loss", F.cross_entropy(z.flatten(0, 1), y.flatten()))


Sample = namedtuple("Sample", "image label")


@form(
    row=lambda i, g: Sample(
        torch.randn(6, generator=g), int(torch.randint(0, 3, (), generator=g))
    )
)
def batch_is_a_named_tuple(self, image, label):
    z = self.net(image)
    self.true(z.argmax(1), label)
    self.log("val_loss", F.cross_entropy(z, label))


@form(
    row=lambda i, g: {
        "pixels": torch.randn(6, generator=g),
        "labels": int(torch.randint(0, 3, (), generator=g)),
        "id": i,
    }
)
def batch_is_a_dict(self, batch):
    z = self.net(batch["pixels"])
    self.true(z.argmax(1), batch["labels"])
    self.log("val_loss", F.cross_entropy(z, batch["labels"]))


class Packed:
    """A batch with attributes."""

    def __init__(self, rows):
        self.x = torch.stack([r[0] for r in rows])
        self.y = torch.tensor([r[1] for r in rows])

    def to(self, device):
        return self


@form(collate=Packed)
def batch_is_an_object(self, batch):
    z = self.net(batch.x)
    self.true(z.argmax(1), batch.y)
    self.log("val_loss", F.cross_entropy(z, batch.y), batch_size=len(batch.y))


@form(
    row=lambda i, g: (
        torch.randn(6, generator=g),
        F.one_hot(torch.randint(0, 3, (), generator=g), 3).float(),
    )
)
def batch_holds_one_hot_targets(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y.argmax(1))
    self.log("val_loss", F.cross_entropy(z, y))


@form(
    row=lambda i, g: (torch.randn(6, generator=g), torch.randint(1, 4, (), generator=g))
)
def labels_begin_at_one(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y - 1)
    self.log("val_loss", F.cross_entropy(z, y - 1))


@form(
    row=lambda i, g: (
        torch.randn(6, generator=g),
        torch.randint(0, 3, (1,), generator=g),
    )
)
def labels_have_a_column(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y[:, 0])
    self.log("val_loss", F.cross_entropy(z, y.squeeze(1)))


@form(
    row=lambda i, g: (
        torch.randn(6, generator=g),
        torch.randint(0, 3, (), generator=g).to(torch.uint8),
    )
)
def labels_are_bytes(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.log("val_loss", F.cross_entropy(z, y.long()))


@form(n=9)
def last_batch_of_one_squeezed_with_keepdim(self, x, y):
    z = self.net(x).squeeze()
    self.true(z.reshape(-1, 3).argmax(1), y)
    loss = F.cross_entropy(z if z.ndim == 2 else z[None], y)
    self.log("val_loss", loss, batch_size=len(y))


@form(n=9, classes=1)
def last_batch_of_one_squeezed_under_bce(self, x, y):
    z = self.net(x).squeeze()
    t = (x[:, 0] > 0).float().squeeze()
    self.true((z > 0).reshape(-1), t.bool().reshape(-1))
    self.log("val_loss", F.binary_cross_entropy_with_logits(z, t), batch_size=len(x))


@form(build=attribute("body", lambda: nn.Linear(6, 3)))
def frozen_teacher_whose_argmax_is_a_target(self, x, y):
    z = self.net(x)
    with torch.no_grad():
        pseudo = self.body(x).argmax(1)
    self.true(z.argmax(1), y)
    self.log("pseudo_loss", F.cross_entropy(z, pseudo))
    self.log("val_loss", F.cross_entropy(z, y))


@form()
def loss_in_each_half_of_the_batch(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    half = (len(y) + 1) // 2
    loss = F.cross_entropy(z[:half], y[:half])
    loss = loss + (F.cross_entropy(z[half:], y[half:]) if len(y) > half else 0)
    self.log("val_loss", loss)


@form()
def loss_of_each_sample_in_a_loop(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.log(
        "val_loss",
        sum(F.cross_entropy(z[i : i + 1], y[i : i + 1]) for i in range(len(y))),
    )


@form()
def loss_of_each_sample_without_its_dimension(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.log("val_loss", sum(F.cross_entropy(z[i], y[i]) for i in range(len(y))))


@form()
def forward_runs_twice_for_two_losses(self, x, y):
    self.true(self.net(x).argmax(1), y)
    self.log("val_loss", F.cross_entropy(self.net(x), y))
    self.log("val_smooth", F.cross_entropy(self.net(x), y, label_smoothing=0.1))


@form()
def half_precision_logits(self, x, y):
    z = self.net(x).bfloat16()
    self.true(z.argmax(1), y)
    self.log("val_loss", F.cross_entropy(z.float(), y))


@form()
def loss_computed_under_autocast(self, x, y):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = self.net(x)
        loss = F.cross_entropy(z, y)
    self.true(z.argmax(1), y)
    self.log("val_loss", loss)
