"""Steps that keep tensors, of which scores are made when the epoch ends."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.metrics import accuracy_score, cohen_kappa_score, f1_score
from torch.nn import functional as F

from models.forms import form


def at_the_end(log):
    """Build a module whose ``on_validation_epoch_end`` logs what `log` makes of its lists."""

    def build(self):
        self.scores, self.labels = [], []

        def end():
            log(self)
            self.scores.clear()
            self.labels.clear()

        self.on_validation_epoch_end = end

    return build


def keep(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.scores.append(z.detach())
    self.labels.append(y)


def array(tensor):
    return tensor.detach().cpu().numpy()


def _in_one_line(self):
    p = np.concatenate([array(z) for z in self.scores]).argmax(1)
    t = np.concatenate([array(y) for y in self.labels])
    self.log("val_acc", float((p == t).mean()))


@form(epochs=3, build=at_the_end(_in_one_line))
def lists_become_arrays_in_one_helper(self, x, y):
    keep(self, x, y)


def _in_turns(self):
    pairs = zip(self.scores, self.labels, strict=True)
    right = sum(int(np.sum(array(z).argmax(1) == array(y))) for z, y in pairs)
    self.log("val_acc", right / sum(map(len, self.labels)))


@form(epochs=2, build=at_the_end(_in_turns))
def lists_become_arrays_in_turns(self, x, y):
    keep(self, x, y)


def _as_lists(self):
    p, t = torch.cat(self.scores).argmax(1).tolist(), torch.cat(self.labels).tolist()
    self.log("val_acc", sum(a == b for a, b in zip(p, t, strict=True)) / len(t))


@form(epochs=2, build=at_the_end(_as_lists))
def tensors_become_lists(self, x, y):
    keep(self, x, y)


def _named(self):
    p = [f"class {i}" for i in torch.cat(self.scores).argmax(1).tolist()]
    t = [f"class {i}" for i in torch.cat(self.labels).tolist()]
    self.log("val_f1", f1_score(t, p, average="macro"))


@form(epochs=2, build=at_the_end(_named))
def names_of_the_classes_are_scored(self, x, y):
    keep(self, x, y)


def _cut(self):
    p, t = torch.cat(self.scores)[:, 0].numpy() > 0.5, torch.cat(self.labels).numpy()
    self.log("val_acc", float((p == t).mean()))


@form(
    epochs=2,
    classes=1,
    build=at_the_end(_cut),
    row=lambda i, g: (torch.randn(6, generator=g), float(i % 3 == 0)),
)
def probabilities_are_cut_in_numpy(self, x, y):
    p = self.net(x).sigmoid()
    self.true(p[:, 0] > 0.5, y.bool())
    self.scores.append(p)
    self.labels.append(y.float())


def _rounded(self):
    p = np.clip(np.round(torch.cat(self.scores).numpy()), 0, 2).astype(int)
    t = torch.cat(self.labels).numpy()
    self.log("val_kappa", cohen_kappa_score(t, p, weights="quadratic"))


@form(epochs=2, build=at_the_end(_rounded))
def grades_are_regressed_and_rounded(self, x, y):
    grade = self.net(x).sum(1)
    self.log("val_loss", F.mse_loss(grade, y.float()))
    self.true(grade.round().clamp(0, 2).long(), y)
    self.scores.append(grade.detach())
    self.labels.append(y)


def _kappa(self):
    p, t = torch.cat(self.scores).argmax(1).numpy(), torch.cat(self.labels).numpy()
    self.log("val_kappa", cohen_kappa_score(p, t))


@form(epochs=2, build=at_the_end(_kappa))
def kappa_is_the_same_either_way(self, x, y):
    keep(self, x, y)


@form(epochs=2)
def kappa_in_the_step_is_the_same_either_way(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.log("val_loss", F.cross_entropy(z, y))
    self.kappa = cohen_kappa_score(y.numpy(), z.argmax(1).numpy())


def _sorted(self):
    p, t = torch.cat(self.scores).argmax(1).numpy(), torch.cat(self.labels).numpy()
    self.log("val_acc", accuracy_score(p, t))


@form(
    n=12,
    epochs=3,
    build=at_the_end(_sorted),
    row=lambda i, g: (torch.randn(6, generator=g), i // 4),
)
def a_sorted_set_is_no_pattern_of_the_step(self, x, y):
    keep(self, x, y)


def _swapped(self):
    p, t = torch.cat(self.scores).argmax(1).numpy(), torch.cat(self.labels).numpy()
    self.log("val_f1", f1_score(p, t, average="macro"))


@form(epochs=2, build=at_the_end(_swapped), says="(target, preds)")
def f1_of_all_is_given_targets_first(self, x, y):
    keep(self, x, y)


def _compared(self):
    right = torch.cat(self.labels) == torch.cat(self.scores).argmax(1)
    self.log("val_acc", right.float().mean())


@form(epochs=2, build=at_the_end(_compared))
def labels_of_all_are_compared_with_answers(self, x, y):
    keep(self, x, y)


def _error(self):
    p, t = torch.cat(self.scores).sum(1).numpy(), torch.cat(self.labels).numpy()
    self.log("val_mae", float(np.abs(p - t).mean()))


@form(
    "none",
    epochs=2,
    build=at_the_end(_error),
    row=lambda i, g: (
        torch.randn(6, generator=g),
        torch.randint(0, 9, (), generator=g),
    ),
)
def counts_are_regressed(self, x, y):
    self.scores.append(self.net(x))
    self.labels.append(y)


def _dump(self):
    self.dumped = torch.cat(self.scores).numpy(), torch.cat(self.labels).numpy()


@form("none", epochs=2, build=at_the_end(_dump))
def features_are_dumped_with_their_labels(self, x, y):
    self.scores.append(self.net(x))
    self.labels.append(y)
    self.log("val_loss", self.scores[-1].pow(2).mean())
