"""Steps that make their own targets and log an accuracy of them: there is nothing to count."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from models.forms import form


def _views(i, g):
    x = torch.randn(6, generator=g)
    return (x, x + 0.01), i % 3


@form("none", row=_views)
def simclr_nt_xent_with_accuracy_and_unused_labels(self, batch, y):
    a, b = batch
    z = F.normalize(torch.cat([self.net(a), self.net(b)]), dim=1)
    sim = z @ z.T / 0.1
    n = len(a)
    sim = sim.masked_fill(torch.eye(2 * n, dtype=torch.bool), float("-inf"))
    pos = torch.cat([torch.arange(n, 2 * n), torch.arange(n)])
    loss = F.cross_entropy(sim, pos)
    self.log("val_loss", loss)
    self.log("val_acc", (sim.argmax(1) == pos).float().mean())


@form("none", row=_views)
def info_nce_by_logsumexp_with_top1_top5_mean_rank(self, batch, y):
    a, b = batch
    z = torch.cat([self.net(a), self.net(b)])
    cos = F.cosine_similarity(z[:, None], z[None], dim=-1)
    eye = torch.eye(len(cos), dtype=torch.bool)
    cos.masked_fill_(eye, -9e15)
    pos = eye.roll(len(cos) // 2, 0)
    nll = (-cos[pos] / 0.07 + torch.logsumexp(cos / 0.07, -1)).mean()
    comb = torch.cat([cos[pos][:, None], cos.masked_fill(pos, -9e15)], -1)
    rank = comb.argsort(dim=-1, descending=True).argmin(-1)
    self.log("val_loss", nll)
    self.log("val_acc_top1", (rank == 0).float().mean())
    self.log("val_acc_top5", (rank < 5).float().mean())
    self.log("val_acc_mean_pos", 1 + rank.float().mean())


@form(
    "none",
    row=lambda i, g: (torch.randn(6, generator=g), torch.randn(6, generator=g), i % 3),
)
def recall_at_one_of_a_retrieval(self, q, d, y):
    s = F.normalize(self.net(q)) @ F.normalize(self.net(d)).T
    hit = s.argmax(1) == torch.arange(len(q))
    self.log("val_loss", -s.diagonal().mean())
    self.log("val_recall@1", hit.float().mean())


@form(
    "none",
    row=lambda i, g: (
        torch.randn(6, generator=g),
        torch.randint(0, 3, (), generator=g),
    ),
)
def supervised_contrastive_with_accuracy(self, x, y):
    z = F.normalize(self.net(x))
    s = z @ z.T / 0.1
    mask = (y[:, None] == y[None]).float() - torch.eye(len(y))
    lp = s - torch.logsumexp(s, 1, keepdim=True)
    self.log("val_loss", -(mask * lp).sum() / mask.sum().clamp(min=1))


@form(
    "none",
    row=lambda i, g: (
        torch.randn(6, generator=g),
        torch.randn(6, generator=g),
        torch.randn(6, generator=g),
        i % 3,
    ),
)
def triplets_with_accuracy(self, a, p, n, y):
    za, zp, zn = self.net(a), self.net(p), self.net(n)
    dp, dn = (za - zp).norm(dim=1), (za - zn).norm(dim=1)
    self.log("val_loss", F.relu(dp - dn + 1).mean())
    self.log("val_acc", (dp < dn).float().mean())


@form("none", row=lambda i, g: (torch.randn(6, generator=g), i % 3))
def moco_accuracy_of_the_queue(self, x, y):
    q, k = F.normalize(self.net(x)), F.normalize(self.net(x + 0.1))
    queue = F.normalize(torch.ones(3, 5) + torch.arange(5))
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue], 1) / 0.07
    labels = torch.zeros(len(x), dtype=torch.long)
    acc1 = (logits.topk(1).indices[:, 0] == labels).float().mean()
    self.log("val_loss", F.cross_entropy(logits, labels))
    self.log("val_acc1", acc1)


@form("none", row=lambda i, g: (torch.randn(6, generator=g), i % 3))
def clip_without_arange(self, x, y):
    a, b = F.normalize(self.net(x)), F.normalize(self.net(x.flip(1)))
    s = a @ b.T
    lp = s.log_softmax(1)
    acc = (lp.argmax(1) == torch.tensor(range(len(x)))).float().mean()
    self.log("val_loss", -lp.diagonal().mean())
    self.log("val_accuracy", acc)
    self.log("val_mean_rank", (s > s.diagonal()[:, None]).sum(1).float().mean())


def _head(self):
    self.pred = nn.Linear(6, 2)


@form("none", build=_head, row=lambda i, g: (torch.randn(6, generator=g), i % 3))
def next_or_random_pairs(self, x, y):
    a, b = self.net(x), self.net(x + 0.1)
    logits = self.pred(
        torch.cat([torch.cat([a, b], 1), torch.cat([a, b.roll(1, 0)], 1)])
    )
    t = torch.cat([torch.ones(len(x)), torch.zeros(len(x))]).long()
    self.log("val_loss", F.cross_entropy(logits, t))
    self.log("val_acc", (logits.argmax(1) == t).float().mean())


@form("none", row=lambda i, g: (torch.randn(6, generator=g), i % 3))
def nearest_neighbour_is_the_pair_by_index(self, x, y):
    a, b = self.net(x), self.net(x * 1.01)
    best = torch.cdist(a, b).min(1).indices
    right = (best == torch.arange(len(x), device=x.device)).sum()
    self.log("val_top1", right / len(x))
    self.log("val_acc", right / len(x))


@form("none", row=lambda i, g: (torch.randn(6, generator=g), i % 3))
def diag_is_the_maximum(self, x, y):
    a, b = self.net(x), self.net(x * 1.01)
    s = a @ b.T
    self.log("val_acc", (s.diag() == s.max(1).values).float().mean())
    self.log("val_loss", (torch.logsumexp(s, 1) - s.diag()).mean())


@form("none", row=lambda i, g: (torch.randn(6, generator=g), i % 3))
def ranks_in_a_square_by_sort(self, x, y):
    a, b = self.net(x), self.net(x * 1.01)
    s = torch.einsum("nd,md->nm", a, b)
    order = s.argsort(1, descending=True)
    rank = (order == torch.arange(len(x))[:, None]).nonzero()[:, 1].float()
    self.log("val_acc", (rank == 0).float().mean())
    self.log("val_mean_rank", rank.mean())
    self.log("val_loss", rank.mean() * 0 + s.mean())
