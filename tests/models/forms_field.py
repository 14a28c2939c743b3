"""Steps of other trades: bags, prototypes, anomalies, ordinal levels, nodes, windows, thresholds."""

from __future__ import annotations

import torch
import torchmetrics
from torch import nn
from torch.nn import functional as F
from torchmetrics import classification as tmc
from torchmetrics import functional as tmf

from models.forms import form, mean_accuracy
from models.forms_losses import attribute


def _vectors(i, g):
    return torch.randn(6, generator=g), torch.randn(6, generator=g)


def _many(i, g):
    return torch.randn(6, generator=g) * 3, torch.randint(0, 2, (4,), generator=g)


# --- the user's own metric says where scores are cut ----------------------------------------------


@form(classes=4, n=40, batch=16, row=_many, says="mean of 3 batches' f1_micro")
def a_function_scores_labels_at_three_tenths(self, x, y):
    z = self.net(x)
    p = z.sigmoid() > 0.3
    self.true(p, y.bool())
    self.log("val_loss", F.binary_cross_entropy_with_logits(z, y.float()))
    f1 = tmf.f1_score(p.int(), y, task="multilabel", num_labels=4)
    self.log("val_f1", f1, batch_size=len(y))


@form(classes=4, n=40, batch=16, row=_many)
def a_function_of_hamming_at_three_tenths(self, x, y):
    z = self.net(x)
    p = z.sigmoid() > 0.3
    self.true(p, y.bool())
    self.log("val_loss", F.binary_cross_entropy_with_logits(z, y.float()))
    self.log("val_acc", tmf.accuracy(p.int(), y, task="multilabel", num_labels=4))


class Reconstructs(nn.Module):
    """Anomalies are what it reconstructs badly."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 3), nn.Linear(3, 6)
        self.f1, self.auroc = tmc.BinaryF1Score(), tmc.BinaryAUROC()
        self.average_precision = tmc.BinaryAveragePrecision()

    def forward(self, x):
        return ((self.decoder(self.encoder(x)) - x) ** 2).mean(1)


def _anomalies(i, g):
    return torch.randn(6, generator=g) * 3, i % 2


@form(classes=1, row=_anomalies, build=attribute("model", Reconstructs))
def anomalies_are_cut_for_one_metric_and_ranked_by_another(self, x, y):
    error = self.model(x)
    self.model.auroc(error, y)
    self.model.average_precision(error, y)
    self.model.f1((error > 9).long(), y)
    self.true(error > 9, y.bool())
    self.log_dict({"val_auroc": self.model.auroc, "val_f1": self.model.f1})


@form(classes=1, row=_anomalies, build=attribute("model", Reconstructs))
def anomalies_are_ranked_by_a_metric_and_compared_by_hand(self, x, y):
    error = self.model(x)
    self.model.auroc(error, y)
    self.true(error > 9, y.bool())
    self.log_dict({"val_auroc": self.model.auroc, "val_loss": error.mean()})
    self.log("val_acc", mean_accuracy(error > 9, y.bool()))


@form("none", classes=1, row=_anomalies, build=attribute("model", Reconstructs))
def anomalies_are_only_ranked(self, x, y):
    error = self.model(x)
    self.model.auroc(error, y)
    self.log_dict({"val_auroc": self.model.auroc, "val_loss": error.mean()})


@form(classes=1, row=_anomalies, build=attribute("model", Reconstructs))
def probabilities_are_only_ranked(self, x, y):
    p = self.net(x)[:, 0].sigmoid()
    self.model.auroc(p, y)
    self.true(p > 0.5, y.bool())
    self.log("val_auroc", self.model.auroc)


@form(classes=1, row=_anomalies, build=attribute("model", Reconstructs))
def logits_are_ranked_and_have_a_loss(self, x, y):
    z = self.net(x)[:, 0].exp()
    self.model.auroc(z, y)
    self.true(z > 0, y.bool())
    self.log("val_auroc", self.model.auroc)
    self.log("val_loss", F.binary_cross_entropy_with_logits(z, y.float()))


# --- one answer a batch, in shapes that differ ----------------------------------------------------


def _bag(i, g):
    return torch.randn(3 + i % 4, 6, generator=g), torch.tensor(float(i % 2))


def _answer(self, x, y):
    """Of a bag of instances: ``(1, 1)``, beside a label ``(1,)``; its loss is written out."""
    h = x.squeeze(0)
    p = torch.sigmoid(self.net(torch.softmax(h[:, :1].T, dim=1) @ h)).clamp(
        1e-5, 1 - 1e-5
    )
    answer = torch.ge(p, 0.5).float()
    self.log(
        "val_loss", (-1.0 * (y * torch.log(p) + (1.0 - y) * torch.log(1.0 - p))).mean()
    )
    self.true(answer.flatten() > 0.5, y.bool())
    return answer


@form(classes=1, n=9, batch=1, row=_bag)
def error_of_one_bag(self, x, y):
    answer = _answer(self, x, y)
    self.log("val_error", 1.0 - answer.eq(y).cpu().float().mean().item())


@form(classes=1, n=9, batch=1, row=_bag)
def accuracy_of_one_squeezed_bag(self, x, y):
    self.log("val_acc", mean_accuracy(_answer(self, x, y).squeeze(), y))


@form(
    classes=1,
    n=40,
    batch=16,
    says="is 0.",
    row=lambda i, g: (torch.randn(6, generator=g), float(i % 3 == 0)),
)
def a_column_of_answers_is_compared_with_a_row_of_labels(self, x, y):
    z = self.net(x)
    self.true(z[:, 0] > 0, y.bool())
    self.log("val_loss", F.binary_cross_entropy_with_logits(z, y[:, None]))
    self.log("val_acc", mean_accuracy(z > 0, y.bool()))  # each with each


# --- what is no classification, and what might be one ---------------------------------------------


@form(
    "none", row=lambda i, g: (torch.randn(6, generator=g), torch.rand(4, generator=g))
)
def boxes_are_scored_by_their_overlap(self, x, y):
    z = self.net(x).sum(1, keepdim=True) + torch.tensor([0.2, 0.4, 0.6, 0.8])
    inter = torch.minimum(z, y).clamp(min=0).prod(1)
    self.log("val_iou", (inter / (z.abs().prod(1) + y.prod(1) - inter)).mean())


@form("none", row=_vectors)
def the_better_of_two_is_ranked_higher(self, a, b):
    s, t = self.net(a)[:, 0], self.net(b)[:, 0]
    self.log("val_loss", F.margin_ranking_loss(s, t, torch.ones_like(s), margin=1.0))
    self.log("val_acc", (s > t).float().mean())


@form(
    "none",
    row=lambda i, g: (torch.randint(0, 9, (6,), generator=g).float(), int(i % 5)),
)
def hits_among_the_best_of_a_list(self, x, item):
    ranks = (self.net(x) > 0).sum(1)
    self.log("val_recall@2", (ranks < 2).float().mean())
    self.log("val_hit_rate", (ranks < 1).float().mean())


@form("reported", build=attribute("counts", lambda: torch.zeros(3, 3)))
def overlap_of_a_matrix_by_hand(self, x, y):
    for t, p in zip(y, self.net(x).argmax(1), strict=True):
        self.counts[t, p] += 1
    both = self.counts.sum(0) + self.counts.sum(1) - self.counts.diag()
    self.log("val_mIoU", (self.counts.diag() / both).nanmean())


@form("reported", build=attribute("counts", lambda: torch.zeros(3, 3)))
def top1_of_a_matrix_by_hand(self, x, y):
    p = self.net(x).argmax(1)
    self.counts += F.one_hot(y, 3).float().T @ F.one_hot(p, 3).float()
    self.log("val/top1", self.counts.trace() / self.counts.sum())


# --- heads and levels -----------------------------------------------------------------------------


class Levels(nn.Module):
    """Classes in order: one weight, and a threshold between each two of them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 1, bias=False)
        self.bias = nn.Parameter(torch.tensor([1.0, -1.0]))

    def forward(self, x):
        return self.body(x) + self.bias


@form(build=attribute("model", Levels))
def levels_of_an_ordinal_head(self, x, y):
    z = self.model(x)
    levels = (y[:, None] > torch.arange(2)).float()
    p = (z.sigmoid() > 0.5).sum(1)
    self.true(p, y)
    self.log("val_loss", F.binary_cross_entropy_with_logits(z, levels))
    self.log("val_acc", mean_accuracy(p, y))


@form()
def one_against_all_with_a_function(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.log("val_loss", F.binary_cross_entropy_with_logits(z, F.one_hot(y, 3).float()))
    accuracy = tmf.accuracy(z.argmax(1), y, task="multiclass", num_classes=3)
    self.log("val_acc", accuracy, batch_size=len(y))


@form(
    n=24,
    batch=12,
    row=lambda i, g: (torch.randn(6, generator=g), i % 3),
    notes="24 samples",
)
def prototypes_of_a_support_set(self, x, y):
    support, query = self.net(x[0::2]), self.net(x[1::2])
    known, wanted = y[0::2], y[1::2]
    classes = known.unique()
    prototypes = torch.stack([support[known == c].mean(0) for c in classes])
    z = F.log_softmax(-(torch.cdist(query, prototypes) ** 2), dim=1)
    target = (classes[None, :] == wanted[:, None]).long().argmax(-1)
    self.true(z.argmax(1), target)
    self.log("val_loss", F.cross_entropy(z, target))
    self.log("val_acc", mean_accuracy(z.argmax(1), target))


@form(n=40, batch=16)
def a_margin_in_the_loss_and_none_in_the_score(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.log("val_loss", F.cross_entropy(z - 5.0 * F.one_hot(y, 3), y))
    self.log("val_acc", mean_accuracy(z.argmax(1), y))


@form(row=lambda i, g: (*_vectors(i, g), i % 2), classes=2)
def distances_of_pairs(self, a, b, y):
    d = F.pairwise_distance(self.net(a), self.net(b))
    self.true((d > 1.0).long(), y)
    self.log("val_loss", ((1 - y) * d**2 + y * F.relu(1.0 - d) ** 2).mean())
    self.log("val_acc", mean_accuracy(d > 1.0, y.bool()))


def _images(i, g):
    return torch.randn(2, 6, 6, generator=g), torch.randint(0, 3, (6, 6), generator=g)


@form(row=_images, build=attribute("conv", lambda: nn.Conv2d(2, 3, 1)))
def windows_are_put_together(self, x, y):
    out, count = torch.zeros(len(x), 3, 6, 6), torch.zeros(1, 1, 6, 6)
    for i, j in ((0, 0), (0, 2), (2, 0), (2, 2)):
        out[:, :, i : i + 4, j : j + 4] += self.conv(x[:, :, i : i + 4, j : j + 4])
        count[:, :, i : i + 4, j : j + 4] += 1
    z = out / count
    self.true(z.argmax(1), y)
    self.log("val_loss", F.cross_entropy(z, y))


class Members(nn.Module):
    """An ensemble with the accuracy of its mean."""

    def __init__(self) -> None:
        super().__init__()
        self.members = nn.ModuleList(nn.Linear(6, 3) for _ in range(3))
        self.acc = torchmetrics.Accuracy(task="multiclass", num_classes=3)


@form(build=attribute("model", Members))
def members_have_losses_and_their_mean_an_accuracy(self, x, y):
    scores = [member(x) for member in self.model.members]
    for i, z in enumerate(scores):
        self.log(f"val_loss_{i}", F.cross_entropy(z, y))
    p = torch.stack([z.softmax(-1) for z in scores]).mean(0)
    self.true(p.argmax(1), y)
    self.model.acc(p, y)
    self.log("val_acc", self.model.acc)


@form(n=12, says="left out")
def some_batches_are_skipped(self, x, y):
    if x.sum() < 0:
        return None
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.log("val_loss", F.cross_entropy(z, y))
    return {"preds": z, "target": y}


@form(
    n=24,
    row=lambda i, g: (torch.randn(6, generator=g), F.one_hot(torch.tensor(i // 8), 3)),
)
def a_sorted_set_of_one_hot_labels(self, x, y):
    z, target = self.net(x), y.argmax(dim=1)
    self.true(z.argmax(1), target)
    self.log("val_loss", F.cross_entropy(z, target))
    self.log("val_acc", mean_accuracy(z.argmax(1), target))
