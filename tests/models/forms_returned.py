"""Steps whose answers are seen in what they return, and steps with several tasks."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from models.forms import form
from models.forms_losses import TOKENS, attribute


@form()
def returns_y_hat_and_y(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    return {"y_hat": z, "y": y}


@form()
def returns_preds_beside_logits(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    return {
        "loss": F.cross_entropy(z, y),
        "preds": z.argmax(1),
        "logits": z,
        "targets": y,
    }


@form()
def returns_prediction_and_label(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    return {"prediction": z.softmax(-1), "label": y, "id": torch.arange(len(y))}


@form()
def returns_nested_results(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    return {
        "loss": F.cross_entropy(z, y),
        "output": {"logits": z, "hidden": x},
        "target": y,
    }


Result = namedtuple("Result", "loss preds target")


@form()
def returns_a_named_tuple(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    return {"loss": F.cross_entropy(z, y), "result": Result(None, z, y)}


@form()
def returns_loss_and_pair(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    return F.cross_entropy(z, y), (z, y)


@form(classes=1)
def returns_labels_as_floats(self, x, y):
    z = self.net(x)[:, 0]
    t = (x[:, 0] > 0).float()
    self.true(z > 0, t.bool())
    return {
        "loss": F.binary_cross_entropy_with_logits(z, t),
        "preds": (z > 0).float(),
        "target": t,
    }


@form(classes=1)
def returns_probabilities(self, x, y):
    p = self.net(x).sigmoid()
    t = (x[:, :1] > 0).long()
    self.true((p > 0.5)[:, 0], t.bool()[:, 0])
    return {"probs": p, "labels": t}


@form(**TOKENS)
def returns_tokens_and_a_mask(self, x, y):
    z, mask = self.net(x), x[..., 0] > 0
    self.true(z.argmax(-1)[mask], y[mask])
    return {"logits": z, "labels": y.masked_fill(~mask, -100)}


@form(**TOKENS)
def returns_flat_tokens(self, x, y):
    z = self.net(x)
    self.true(z.argmax(-1), y)
    return {"preds": z.argmax(-1).flatten(), "targets": y.flatten()}


@form()
def returns_everything_on_the_host(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    return {"preds": z.argmax(1).tolist(), "labels": y.tolist()}


@form()
def returns_detached_copies(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.log("val_loss", F.cross_entropy(z, y))
    return {"logits": z.detach().cpu().clone(), "targets": y.detach().cpu().clone()}


@dataclass
class Output:
    """What a step gives."""

    loss: torch.Tensor
    logits: torch.Tensor
    labels: torch.Tensor


@form()
def returns_a_dataclass_in_a_dict(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    loss = F.cross_entropy(z, y)
    return {"loss": loss, "out": Output(loss, z, y)}


@form(classes=4)
def returns_multilabel_scores(self, x, y):
    z = self.net(x)
    t = (x[:, :4] > 0).long()
    self.true(z > 0, t.bool())
    return {"logits": z, "labels": t}


@form(n=9, classes=4)
def returns_squeezed_multilabel(self, x, y):
    z = self.net(x)
    t = (x[:, :4] > 0).float()
    self.true(z > 0, t.bool())
    return {"logits": z.squeeze(0), "labels": t.squeeze(0)}


@form()
def returns_the_loss_of_another_name_first(self, x, y):
    z = self.net(x)
    aux = F.cross_entropy(z.flip(1), y)
    self.true(z.argmax(1), y)
    return {"aux": aux, "logits": z, "y": y}


# --- several tasks -------------------------------------------------------------------------------


@form(
    notes="not from",
    row=lambda i, g: (torch.randn(6, generator=g), i % 3, (i // 2) % 2),
    build=attribute("colour", lambda: nn.Linear(6, 2)),
)
def two_heads_with_their_own_targets(self, x, shape, colour):
    z, c = self.net(x), self.colour(x)
    self.true(z.argmax(1), shape)
    self.log("colour_loss", F.cross_entropy(c, colour))
    self.log("val_loss", F.cross_entropy(z, shape))


@form(
    row=lambda i, g: (
        torch.randn(6, generator=g),
        {"shape": i % 3, "colour": (i // 2) % 3},
    ),
    build=attribute(
        "heads",
        lambda: nn.ModuleDict({k: nn.Linear(6, 3) for k in ("shape", "colour")}),
    ),
    says="several answers",
)
def heads_in_a_dict(self, x, targets):
    for name, head in self.heads.items():
        z = head(x)
        if name == "colour":
            self.true(z.argmax(1), targets[name])
        self.log(f"{name}_loss", F.cross_entropy(z, targets[name]))


@form(
    row=lambda i, g: (torch.randn(6, generator=g), i % 3, torch.randn((), generator=g))
)
def classification_beside_a_regression(self, x, y, value):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.log("val_loss", F.cross_entropy(z, y) + F.mse_loss(z.mean(1), value))


@form(notes="not from")
def two_losses_of_the_same_scores(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    coarse = (y > 0).long()
    two = torch.stack((z[:, 0], z[:, 1:].logsumexp(1)), 1)
    self.log("coarse", F.cross_entropy(two, coarse))
    self.log("val_loss", F.cross_entropy(z, y))


@form(notes="not from")
def an_adversary_of_the_domain(self, x, y):
    z = self.net(x)
    domain = (torch.arange(len(x)) % 2).float()
    self.true(z.argmax(1), y)
    self.log("val_domain", F.binary_cross_entropy_with_logits(z.mean(1), domain))
    self.log("val_loss", F.cross_entropy(z, y))


@form(notes="not from", build=attribute("binary", lambda: nn.Linear(6, 1)))
def is_an_object_there_and_which(self, x, y):
    z, there = self.net(x), self.binary(x)[:, 0]
    self.true(z.argmax(1), y)
    loss = F.binary_cross_entropy_with_logits(there, (y > 0).float()) + F.cross_entropy(
        z, y
    )
    self.log("val_loss", loss)
    self.log("val_acc", (z.argmax(1) == y).float().mean())


# --- several loaders -----------------------------------------------------------------------------


@form(loaders=2, key="val/dataloader_idx_1")
def two_loaders(self, x, y):
    z = self.net(x)
    if self.dataloader_idx:
        self.true(z.argmax(1), y)
    self.log("val_loss", F.cross_entropy(z, y))
