"""Steps whose shapes, keys, widths and tasks change from batch to batch, and other near misses."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import torchmetrics
from torch import nn
from torch.nn import functional as F
from torchmetrics import classification as tmc

from models.forms import form
from models.forms_losses import TOKENS, attribute


@form(epochs=3)
def more_classes_after_the_first_epoch(self, x, y):
    z = self.net(x)
    if self.current_epoch == 0:
        z, y = z[:, :2], y.clamp(max=1)
    self.true(z.argmax(1), y)
    self.log("val_loss", F.cross_entropy(z, y))
    return {"logits": z, "labels": y}


@form(n=10)
def another_key_for_the_last_batch(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    loss = F.cross_entropy(z, y)
    if len(y) == 4:
        return {"loss": loss, "logits": z, "labels": y}
    return {"loss": loss, "y_hat": z, "y": y}


@form(n=10)
def a_helper_for_full_batches_only(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    loss = F.cross_entropy(z, y) if len(y) == 4 else F.nll_loss(F.log_softmax(z, 1), y)
    self.log("val_loss", loss)


@form(
    n=9,
    classes=4,
    row=lambda i, g: (
        torch.randn(3, 6, generator=g),
        torch.randint(0, 4, (3,), generator=g),
    ),
)
def tokens_of_one_sample_squeezed(self, x, y):
    z = self.net(x)
    self.true(z.argmax(-1), y)
    z, y = z.squeeze(0), y.squeeze(0)
    self.log("val_loss", F.cross_entropy(z.reshape(-1, 4), y.reshape(-1)))
    return {"loss": 0.0, "outputs": z, "labels": y}


@form(
    classes=5,
    n=15,
    batch=5,
    row=lambda i, g: (
        torch.randn(5, 6, generator=g),
        torch.randint(0, 5, (5,), generator=g),
    ),
)
def batch_tokens_and_classes_are_five(self, x, y):
    z = self.net(x)
    self.true(z.argmax(-1), y)
    self.log("val_loss", F.cross_entropy(z.permute(0, 2, 1), y))


@form(
    classes=5,
    n=15,
    batch=5,
    row=lambda i, g: (
        torch.randn(5, 6, generator=g),
        torch.randint(0, 5, (5,), generator=g),
    ),
    build=attribute("acc", lambda: tmc.MulticlassAccuracy(5)),
)
def metric_of_transposed_tokens(self, x, y):
    z = self.net(x)
    self.true(z.argmax(-1), y)
    self.acc.update(z.transpose(1, 2), y)
    return {"logits": z, "target": y}


@form(
    classes=3,
    n=6,
    batch=2,
    row=lambda i, g: (
        torch.randn(3, 3, 6, generator=g),
        torch.randint(0, 3, (3, 3), generator=g),
    ),
)
def pixels_in_a_square_of_classes(self, x, y):
    z = self.net(x).permute(0, 3, 1, 2)
    self.true(z.argmax(1), y)
    self.log("val_loss", F.cross_entropy(z, y))
    return {"preds": z, "target": y}


@form(build=attribute("acc", lambda: tmc.MulticlassAccuracy(3, ignore_index=0)))
def metric_and_loss_ignore_other_classes(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1)[y != 0], y[y != 0])
    self.acc.update(z, y)
    self.log("val_loss", F.cross_entropy(z, y))


@form(**TOKENS)
def prompt_is_masked_out_of_the_labels(self, x, y):
    labels = y.clone()
    labels[:, :2] = -100
    z = self.net(x)
    self.true(z[:, 2:].argmax(-1), y[:, 2:])
    return {
        "loss": F.cross_entropy(z.flatten(0, 1), labels.flatten()),
        "logits": z,
        "labels": labels,
    }


@form(**TOKENS)
def boolean_mask_weighs_the_loss(self, x, y):
    mask = (x[..., 0] > 0).float()
    z = self.net(x)
    each = F.cross_entropy(z.transpose(1, 2), y, reduction="none")
    self.true(z.argmax(-1), y)
    self.log("val_loss", (each * mask).sum() / mask.sum().clamp(min=1))


@form()
def scores_are_overwritten_after_the_loss(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.log("val_loss", F.cross_entropy(z, y))
    z.zero_()


@form(
    says="the batch`: changed in place",
    build=attribute("acc", lambda: tmc.MulticlassAccuracy(3)),
)
def labels_are_remapped_in_place_after_the_metric(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.acc.update(z, y)
    y.add_(1).remainder_(3)


@form(says="changed in place")
def returned_scores_are_sharpened_in_place(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    loss = F.cross_entropy(z, y)
    z.mul_(-2.0)
    return {"loss": loss, "logits": z, "labels": y}


@form(
    classes=1,
    says="the sigmoid stands twice",
    build=attribute("head", lambda: nn.Sequential(nn.Linear(6, 1), nn.Sigmoid())),
)
def network_ends_in_a_sigmoid_module(self, x, y):
    p = self.head(x)
    t = (x[:, :1] > 0).float()
    self.true((p > 0.5)[:, 0], t.bool()[:, 0])
    self.log("val_loss", F.binary_cross_entropy_with_logits(p, t))


@form(classes=1, says="the sigmoid stands twice")
def sigmoid_in_place_before_the_loss(self, x, y):
    z = self.net(x)[:, 0]
    p = z.sigmoid_()
    t = (x[:, 0] > 0).float()
    self.true(p > 0.5, t.bool())
    self.log("val_loss", F.binary_cross_entropy_with_logits(p, t))


@form(says="(target, preds)", build=attribute("f1", lambda: tmc.MulticlassF1Score(3)))
def swapped_metric_beside_returned_labels(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.f1.update(y, z.argmax(1))
    return {"preds": z.argmax(1), "target": y}


@form(
    says="(target, preds)",
    classes=1,
    build=attribute("acc", lambda: tmc.BinaryAccuracy()),
)
def swapped_binary_metric_beside_its_loss(self, x, y):
    z = self.net(x)[:, 0]
    t = (x[:, 0] > 0).long()
    self.true(z > 0, t.bool())
    self.log("val_loss", F.binary_cross_entropy_with_logits(z, t.float()))
    self.acc.update(t, (z > 0).long())


@form(
    build=attribute(
        "metrics",
        lambda: nn.ModuleDict(
            {"a": tmc.MulticlassAccuracy(3), "b": tmc.MulticlassF1Score(3)}
        ),
    ),
    notes="not from",
)
def two_metrics_of_two_heads(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.metrics["b"].update(z.flip(1), 2 - y)
    self.metrics["a"].update(z, y)
    self.log("val_loss", F.cross_entropy(z, y) + F.cross_entropy(z.flip(1), 2 - y))
    self.log("val_acc", self.metrics["a"])


@form(notes="not from")
def a_group_is_scored_apart(self, x, y):
    z, group = self.net(x), x[:, 2] > 0
    self.true(z.argmax(1), y)
    if group.any():
        self.log("val_group", F.cross_entropy(z[group], y[group]))
    self.log("val_loss", F.cross_entropy(z, y))
    self.log("val_acc", (z.argmax(1) == y).float().mean())


@form(notes="not from")
def labels_of_a_teacher_and_of_the_batch(self, x, y):
    z = self.net(x)
    pseudo = (z + 1.0).roll(1, 1).argmax(1)
    self.true(z.argmax(1), y)
    self.log("val_distill", F.cross_entropy(z, pseudo))
    self.log("val_loss", F.cross_entropy(z, y))


@form(
    row=lambda i, g: (torch.randn(6, generator=g), i % 3, (i // 3) % 3),
    says="several answers",
)
def two_targets_for_the_same_scores(self, x, a, b):
    z = self.net(x)
    self.log("val_a", F.cross_entropy(z, a))
    self.true(z.argmax(1), b)
    self.log("val_b", F.cross_entropy(z, b))


@dataclass
class Sample:
    """A batch as a dataclass."""

    x: torch.Tensor
    y: torch.Tensor


@form(
    collate=lambda rows: Sample(
        torch.stack([r[0] for r in rows]), torch.tensor([r[1] for r in rows])
    )
)
def batch_is_a_dataclass(self, batch):
    z = self.net(batch.x)
    self.true(z.argmax(1), batch.y)
    self.log("val_loss", F.cross_entropy(z, batch.y), batch_size=len(batch.y))


class Encoding(dict):
    """A dict whose keys are attributes too, as transformers' BatchEncoding is."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error

    def to(self, device: Any) -> Encoding:
        return self


def _encode(rows):
    return Encoding(
        input_ids=torch.stack([r[0] for r in rows]),
        labels=torch.tensor([r[1] for r in rows]),
    )


@form(collate=_encode)
def batch_is_an_encoding(self, batch):
    z = self.net(batch.input_ids)
    self.true(z.argmax(1), batch.labels)
    self.log(
        "val_loss", F.cross_entropy(z, batch["labels"]), batch_size=len(batch.labels)
    )


class Base(nn.Module):
    """Computes the loss for its children."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 3)

    def criterion(self, scores, labels):
        return F.cross_entropy(scores, labels)

    def step(self, batch):
        x, y = batch
        z = self.inner(x)
        return self.criterion(z, y), z


class Smoothing(Base):
    """Overrides the loss."""

    def criterion(self, scores, labels):
        return F.cross_entropy(scores, labels, label_smoothing=0.1)


@form(build=attribute("task", Smoothing))
def loss_is_inherited_and_overridden(self, x, y):
    loss, z = self.task.step((x, y))
    self.true(z.argmax(1), y)
    self.log("val_loss", loss)


@form(
    build=attribute(
        "loss_fns",
        lambda: {"main": (functools.partial(F.cross_entropy, reduction="sum"), 1.0)},
    )
)
def loss_and_weight_in_a_table(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.log("val_loss", sum(w * f(z, y) for f, w in self.loss_fns.values()))


class Tversky(nn.Module):
    """A loss of the segmentation libraries."""

    def forward(self, inputs, targets, alpha=0.3):
        p = inputs.sigmoid().flatten()
        t = targets.flatten()
        tp = (p * t).sum()
        return 1 - tp / (
            tp + alpha * (1 - t).mul(p).sum() + (1 - alpha) * t.mul(1 - p).sum()
        )


@form(classes=1, build=attribute("tversky", Tversky))
def tversky_loss_alone(self, x, y):
    z = self.net(x)[:, 0]
    t = (x[:, 0] > 0).float()
    self.true(z > 0, t.bool())
    self.log("val_loss", self.tversky(z, t))


@form(
    build=attribute(
        "acc", lambda: torchmetrics.MetricTracker(tmc.MulticlassAccuracy(3))
    )
)
def metric_in_a_tracker(self, x, y):
    if (
        self.acc.n_steps == 0
        or not self.trainer.fit_loop.epoch_loop.val_loop.batch_progress.current.ready
        - 1
    ):
        self.acc.increment()
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.acc.update(z, y)
    self.log("val_loss", F.cross_entropy(z, y))


@form(build=attribute("meter", lambda: torchmetrics.MeanMetric()))
def mean_metric_of_losses(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.meter.update(F.cross_entropy(z, y), len(y))
    self.log("val_loss", self.meter)


@form("none", row=lambda i, g: torch.randn(6, generator=g))
def step_under_fake_tensors(self, x):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        z = F.cross_entropy(torch.randn(4, 3), torch.zeros(4, dtype=torch.long))
    self.log("val_width", float(z.ndim + x.shape[1]))


@form()
def step_with_a_fake_copy_besides(self, x, y):
    from torch._subclasses.fake_tensor import FakeTensorMode

    z = self.net(x)
    self.true(z.argmax(1), y)
    mode, copied = FakeTensorMode(), z.detach()
    fakes = mode.from_tensor(copied), mode.from_tensor(y)
    with mode:
        F.cross_entropy(*fakes)
    self.log("val_loss", F.cross_entropy(z, y))


@form("none")
def prototypes_are_softmax_targets(self, x, y):
    a, b = self.net(x), self.net(x + 0.1)
    q = (b / 0.05).softmax(1).detach()
    self.log("val_loss", -(q * (a / 0.1).log_softmax(1)).sum(1).mean())


@form("none")
def reinforced_by_a_reward(self, x, y):
    policy = torch.distributions.Categorical(logits=self.net(x))
    action = policy.probs.argmax(1)
    self.log("val_return", (policy.log_prob(action) * x[:, 0]).mean())


@form(
    "none",
    row=lambda i, g: (
        torch.randn(6, generator=g),
        torch.randint(0, 100, (), generator=g).float(),
    ),
)
def ages_are_regressed_and_rounded(self, x, age):
    z = self.net(x)[:, 0]
    self.log("val_mae", F.l1_loss(z, age))
    self.log("val_hit", (z.round() == age).float().mean())


@form(says="call 2 of 2 of `cross_entropy`", classes=3)
def two_heads_in_a_loop_are_told_apart(self, x, y):
    z = self.net(x)
    heads = [(z.roll(1, 1), (x[:, 0] > 0).long()), (z, (x[:, 1] > 0).long() + 1)]
    self.true(z.argmax(1), heads[-1][1])
    total = 0
    for scores, target in heads:
        total = total + F.cross_entropy(scores, target)
    self.log("val_loss", total)
