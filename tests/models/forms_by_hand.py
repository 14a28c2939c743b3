"""Steps that write out their losses and scores by hand."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from models.forms import form
from models.forms_losses import TOKENS, attribute


@form()
def negative_log_likelihood_is_gathered(self, x, y):
    logp = self.net(x).log_softmax(1)
    self.true(logp.argmax(1), y)
    self.log("val_loss", -logp.gather(1, y[:, None]).mean())


@form()
def probabilities_are_gathered(self, x, y):
    p = torch.softmax(self.net(x), dim=-1)
    self.true(p.argmax(1), y)
    self.log("val_nll", -torch.gather(p, 1, y.unsqueeze(-1)).log().mean())


@form(**TOKENS)
def likelihood_of_tokens_is_gathered(self, x, y):
    logp = self.net(x).log_softmax(-1)
    self.true(logp.argmax(-1), y)
    self.log("val_nll", -logp.gather(-1, y.unsqueeze(-1)).mean())


@form("reported")
def logits_are_gathered(self, x, y):
    z = self.net(x)
    own = z.gather(1, y[:, None])[:, 0]
    self.log("val_loss", (z.logsumexp(1) - own).mean())


@form("reported")
def one_hot_labels_weigh_a_log_softmax(self, x, y):
    logp = F.log_softmax(self.net(x), 1)
    self.log("val_loss", -(F.one_hot(y, 3) * logp).sum(1).mean())


@form("none")
def values_of_actions_are_gathered(self, x, y):
    q = self.net(x).gather(1, y[:, None])[:, 0]
    self.log("val_td", F.mse_loss(q, x[:, 0]))


@form("none", build=attribute("embed", lambda: nn.Linear(3, 6)))
def labels_condition_a_generator(self, x, y):
    x2 = x + self.embed(F.one_hot(y, 3).float())
    self.log("val_loss", ((self.net(x2).repeat(1, 2) - x) ** 2).mean())


@form("none", row=lambda i, g: (torch.randn(5, 6, generator=g), 1 + i % 5))
def last_steps_of_sequences_are_gathered(self, x, lengths):
    z = self.net(x)
    last = z.gather(1, (lengths - 1)[:, None, None].expand(-1, 1, 3))[:, 0]
    self.log("val_loss", (last**2).mean())


@form()
def accuracy_in_numpy(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.log("val_acc", float(np.mean(z.argmax(1).numpy() == y.numpy())))


@form()
def right_answers_are_subtracted(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    wrong = (z.argmax(1) != y).sum()
    self.log("val_acc", 1 - wrong / len(y))


@form()
def accuracy_by_torch_eq(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.log("val_acc", torch.eq(z.argmax(1), y).float().mean())


@form()
def accuracy_in_a_static_method(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.log("val_acc", Helper.accuracy(y, z))


class Helper:
    """Counts what is right."""

    @staticmethod
    def accuracy(y_true, y_hat):
        return (torch.argmax(y_hat, dim=1) == y_true).sum().item() / len(y_true)


def topk_accuracy(output, target, topk=(1, 2)):
    """The share of samples whose class is among the k best, as ImageNet's example has it."""
    _, pred = output.topk(max(topk), 1, True, True)
    correct = pred.t().eq(target.view(1, -1).expand_as(pred.t()))
    return [
        correct[:k].reshape(-1).float().sum(0) * (100.0 / target.size(0)) for k in topk
    ]


@form()
def top_k_accuracy_of_imagenet(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    acc1, acc2 = topk_accuracy(z, y)
    self.log_dict({"val_acc1": acc1, "val_acc2": acc2})


@form(build=attribute("counts", dict))
def counts_over_the_epoch(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.counts["right"] = self.counts.get("right", 0) + (z.argmax(1) == y).sum().item()
    self.counts["all"] = self.counts.get("all", 0) + len(y)
    self.log("val_loss", F.cross_entropy(z, y))


@form(classes=1)
def signs_are_compared(self, x, y):
    z, t = self.net(x)[:, 0], x[:, 0] > 0
    self.true(z > 0, t)
    self.log("val_acc", ((z > 0) == t).float().mean())


@form("none")
def missing_values_are_looked_for(self, x, y):
    z = self.net(x)
    self.log("val_broken", (z != z).float().mean())
    self.log("val_mean", z.mean())


@form("none", row=lambda i, g: (torch.randn(6, generator=g), i % 3, i % 2))
def two_columns_of_the_batch_are_compared(self, x, a, b):
    self.log("val_same", (a == b).float().mean())
    self.log("val_loss", self.net(x).mean() ** 2)


@form(
    "none", row=lambda i, g: (torch.randn(6, generator=g), torch.randn((), generator=g))
)
def signs_of_a_regression_are_compared(self, x, t):
    z = self.net(x)[:, 0]
    self.log("val_loss", F.mse_loss(z, t))
    self.log("val_same", (z == t).float().mean())


@form()
def accuracy_under_vmap(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    right = torch.vmap(lambda one, label: (one.argmax(0)[None] == label[None]).float())(
        z, y
    )
    self.log("val_acc", right.mean())
    self.log("val_loss", F.cross_entropy(z, y))


@form()
def values_are_compared_under_grad(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)

    def loss(scores):
        assert (scores == scores.clone()).all()
        return F.cross_entropy(scores, y)

    with torch.enable_grad():
        slope = torch.func.grad(loss)(z)
    self.log("val_slope", slope.norm())
