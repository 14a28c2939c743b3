"""Steps that cut their scores at a threshold of their own."""

from __future__ import annotations

import torch
from sklearn.metrics import f1_score
from torch.nn import functional as F

from models.forms import form
from models.forms_losses import attribute


def _yes(i, g):
    x = torch.randn(6, generator=g)
    return x, int(x[0] + torch.randn((), generator=g) > 0)


@form(
    classes=1,
    n=23,
    row=_yes,
    build=attribute("threshold", lambda: 0.3),
    says="it is cut at a probability of 0.3, the module's `threshold`. The matrix counts other answers. Pass ConfusionMetrics(threshold=0.3)",
)
def accuracy_at_the_modules_threshold(self, x, y):
    p = self.net(x)[:, 0].sigmoid()
    self.true(p > 0.5, y.bool())
    self.log("val_loss", F.binary_cross_entropy(p, y.float()))
    self.log(
        "val_acc", ((p > self.threshold) == y.bool()).float().mean(), batch_size=len(y)
    )


def _tune(self):
    self.kept = []

    def end():
        p, y = (torch.cat(each) for each in zip(*self.kept, strict=True))
        scores = {
            t / 20: f1_score(y, p > t / 20, zero_division=0)
            for t in range(1, 20)
            if t != 10
        }
        self.best_threshold = max(scores, key=scores.get)
        self.log("val_f1", scores[self.best_threshold])
        self.kept.clear()

    self.on_validation_epoch_end = end
    self.best_threshold = 0.5


@form(classes=1, n=23, row=_yes, build=_tune, says="Pass ConfusionMetrics(threshold=")
def f1_at_a_threshold_that_is_tuned(self, x, y):
    z = self.net(x)[:, 0]
    self.true(z > 0, y.bool())
    self.log("val_loss", F.binary_cross_entropy_with_logits(z, y.float()))
    self.kept.append((z.sigmoid(), y))


@form(
    classes=1,
    n=23,
    row=_yes,
    says="Pass ConfusionMetrics(threshold=...) where it is cut",
    build=attribute("threshold", lambda: 0.9),
)
def accuracy_that_no_threshold_gives(self, x, y):
    z = self.net(x)[:, 0]
    self.true(z > 0, y.bool())
    self.log("val_loss", F.binary_cross_entropy_with_logits(z, y.float()))
    self.log(
        "val_acc", ((z > -0.123) == y.bool()).float().mean() * 0.77, batch_size=len(y)
    )
