"""Steps in which there is nothing to count."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from models.forms import form
from models.forms_losses import attribute


@form("none")
def regression(self, x, y):
    self.log("val_loss", F.mse_loss(self.net(x)[:, 0], x.sum(1)))


@form("none")
def regression_on_whole_numbers(self, x, y):
    z = self.net(x)[:, 0]
    self.log("val_loss", F.l1_loss(z, y.float()))
    return {"preds": z, "target": y.float()}


@form("none")
def autoencoder_by_bce(self, x, y):
    x = x.sigmoid()
    z = self.net(x).repeat(1, 2)
    self.log("val_loss", F.binary_cross_entropy_with_logits(z, x))


@form("none")
def autoencoder_of_bits(self, x, y):
    x = (x > 0).float()
    z = self.net(x).repeat(1, 2)
    self.log("val_loss", F.binary_cross_entropy_with_logits(z, x))


@form("none")
def variational_autoencoder(self, x, y):
    mu, logvar = self.net(x), self.net(-x)
    kl = -0.5 * torch.mean(1 + logvar - mu**2 - logvar.exp())
    self.log_dict({"val_loss": F.mse_loss(mu.repeat(1, 2), x) + kl, "val_kl": kl})


@form("none")
def contrastive_top_one(self, x, y):
    a, b = F.normalize(self.net(x)), F.normalize(self.net(x + 0.01))
    sim = a @ b.T / 0.1
    target = torch.arange(len(x))
    self.log("val_loss", F.cross_entropy(sim, target))
    self.log("val_acc_top1", (sim.argmax(1) == target).float().mean())


@form("none")
def contrastive_accuracy_without_a_loss(self, x, y):
    a, b = F.normalize(self.net(x)), F.normalize(self.net(x + 0.01))
    sim = a @ b.T
    self.log("val_acc", (sim.argmax(1) == torch.arange(len(x))).float().mean())


@form("none", row=lambda i, g: torch.randn(6, generator=g))
def simclr_with_ranks(self, x):
    a, b = self.net(x), self.net(x * 1.1)
    feats = torch.cat((a, b))
    sim = F.cosine_similarity(feats[:, None], feats[None], dim=-1)
    own = torch.eye(len(sim), dtype=torch.bool)
    sim.masked_fill_(own, -9e15)
    positive = own.roll(len(sim) // 2, 0)
    sim = sim / 0.07
    self.log("val_loss", (-sim[positive] + torch.logsumexp(sim, -1)).mean())
    comb = torch.cat((sim[positive][:, None], sim.masked_fill(positive, -9e15)), -1)
    place = comb.argsort(dim=-1, descending=True).argmin(-1)
    self.log("val_acc_top1", (place == 0).float().mean())


@form(
    "none",
    row=lambda i, g: torch.randn(6, generator=g),
    build=attribute("disc", lambda: nn.Linear(3, 1)),
)
def gan_with_hinge(self, x):
    real, fake = self.disc(x[:, :3]), self.disc(self.net(x))
    self.log("d_loss", F.relu(1 - real).mean() + F.relu(1 + fake).mean())
    self.log("d_acc", (real > 0).float().mean())


@form(
    "none",
    row=lambda i, g: torch.randn(6, generator=g),
    build=attribute("disc", lambda: nn.Linear(3, 1)),
)
def gan_with_bce_loss(self, x):
    real, fake = self.disc(x[:, :3]).sigmoid(), self.disc(self.net(x)).sigmoid()
    loss = F.binary_cross_entropy(real, torch.ones(len(x), 1))
    loss = (loss + F.binary_cross_entropy(fake, torch.zeros(len(x), 1))) / 2
    self.log("d_loss", loss)


@form(
    "none",
    row=lambda i, g: torch.randn(6, generator=g),
    build=attribute("disc", lambda: nn.Linear(3, 1)),
)
def gan_with_smooth_labels(self, x):
    real = self.disc(x[:, :3])
    self.log(
        "d_loss", F.binary_cross_entropy_with_logits(real, torch.full_like(real, 0.9))
    )


@form("none")
def triplet(self, x, y):
    z = self.net(x)
    self.log("val_loss", F.triplet_margin_loss(z, z + 0.1, z.roll(1, 0)))


@form("none")
def rotation_pretext(self, x, y):
    z = self.net(torch.cat((x, -x, x.flip(1))))
    self.log("val_loss", F.cross_entropy(z, torch.arange(3).repeat_interleave(len(x))))


@form("none")
def masked_reconstruction(self, x, y):
    mask = torch.zeros_like(x[:, :3]).bernoulli(
        0.5, generator=torch.Generator().manual_seed(3)
    )
    loss = ((self.net(x) - x[:, :3]) ** 2 * mask).sum() / mask.sum().clamp(min=1)
    self.log("val_loss", loss)


@form("none")
def only_a_loss_by_hand(self, x, y):
    self.log("val_loss", self.net(x).pow(2).mean())


@form("none")
def barlow_twins(self, x, y):
    a, b = self.net(x), self.net(x + 0.1)
    c = (a.T @ b) / len(x)
    self.log("val_loss", (torch.diagonal(c) - 1).pow(2).sum() + c.triu(1).pow(2).sum())


@form("none")
def clip_with_a_scale(self, x, y):
    image, text = F.normalize(self.net(x)), F.normalize(self.net(x.flip(1)))
    logits = 14.3 * image @ text.T
    labels = torch.arange(len(logits))
    loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    self.log("val_loss", loss, batch_size=len(x))
    return {"loss": loss, "logits": logits, "labels": labels}


@form("reported")
def scores_that_no_function_sees(self, x, y):
    z = self.net(x)
    right = (z.gather(1, y[:, None])[:, 0] >= z.amax(1)).float()
    self.log("val_acc", right.mean())
