"""Steps that count their own confusion matrix, and data in the forms of other trades."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torchmetrics import classification as tmc

from models.forms import form, mean_accuracy
from models.forms_losses import attribute


def fast_hist(target, preds, n):
    kept = (target >= 0) & (target < n)
    counted = n * target[kept].to(torch.int64) + preds[kept]
    return torch.bincount(counted, minlength=n**2).reshape(n, n)


def _counts(self):
    self.counted = 0

    def end():
        self.log("val_acc", self.counted.diag().sum() / self.counted.sum())
        self.counted = 0

    self.on_validation_epoch_end = end


def _pixels(i, g):
    return torch.randn(4, 6, generator=g), torch.randint(-1, 3, (4,), generator=g)


@form(build=_counts, row=_pixels)
def a_matrix_is_counted_by_rows_of_targets(self, x, y):
    p = self.net(x).argmax(-1)
    self.true(p[y >= 0], y[y >= 0])
    self.counted += fast_hist(y.flatten(), p.flatten(), 3)


@form(build=_counts, epochs=2)
def a_matrix_is_counted_by_rows_of_answers(self, x, y):
    p = self.net(x).argmax(1)
    self.true(p, y)
    self.counted += torch.bincount(p * 3 + y, minlength=9).view(3, 3)


@form(build=_counts, row=_pixels)
def a_matrix_is_counted_beside_a_loss_that_ignores(self, x, y):
    z = self.net(x)
    self.true(z.argmax(-1)[y >= 0], y[y >= 0])
    self.counted += fast_hist(y.flatten(), z.argmax(-1).flatten(), 3)
    self.log("val_loss", F.cross_entropy(z.flatten(0, 1), y.flatten(), ignore_index=-1))


@form()
def a_matrix_of_each_batch(self, x, y):
    p = self.net(x).argmax(1)
    self.true(p, y)
    counted = (y * 3 + p).bincount(minlength=9).view(3, 3)
    self.log("val_acc", counted.diag().sum() / counted.sum(), batch_size=len(y))


@form("none", row=lambda i, g: (torch.randint(0, 9, (6,), generator=g).float(), i % 3))
def grey_values_are_counted(self, x, y):
    self.histogram = torch.bincount(x.long().flatten(), minlength=9)
    self.log("val_loss", self.net(x).pow(2).mean())


@form("none", row=lambda i, g: (torch.randn(6, generator=g), i % 3))
def codes_of_a_codebook_are_counted(self, x, y):
    codes = self.net(x).argmax(1)
    used = torch.bincount(codes * 3 + codes.roll(1), minlength=9).float()
    self.log("val_codes", (used / used.sum()).square().sum())


# --- forms of data --------------------------------------------------------------------------------


def _padded(rows):
    x, y = zip(*rows, strict=True)
    labels = pad_sequence(y, batch_first=True, padding_value=-1)
    return pad_sequence(x, batch_first=True), labels


def _sequence(i, g):
    n = 2 + i % 3
    return torch.randn(n, 6, generator=g), torch.randint(0, 3, (n,), generator=g)


@form(collate=_padded, row=_sequence)
def padded_labels_beside_permuted_scores(self, x, y):
    z = self.net(x).permute(0, 2, 1)
    kept = y != -1
    self.true(z.argmax(1)[kept], y[kept])
    self.log("val_loss", F.cross_entropy(z, y, ignore_index=-1))
    accuracy = mean_accuracy(z.argmax(1)[kept], y[kept])
    self.log("val_acc", accuracy, batch_size=int(kept.sum()))


@form(row=lambda i, g: (torch.randn(4, 6, generator=g), i % 3))
def clips_of_a_video_are_averaged(self, x, y):
    n, clips = x.shape[:2]
    z = self.net(x.flatten(0, 1)).view(n, clips, -1).mean(1)
    self.true(z.argmax(1), y)
    self.log("val_loss", F.cross_entropy(z, y))
    self.log("val_top1", mean_accuracy(z.argmax(1), y) * 100)


@form(
    row=lambda i, g: {
        "image": torch.randn(6, generator=g),
        "class_id": torch.randint(0, 3, (), generator=g),
        "index": torch.tensor(i),
    }
)
def a_dict_with_an_index_besides(self, batch):
    z = self.net(batch["image"])
    self.true(z.argmax(1), batch["class_id"])
    loss = F.cross_entropy(z, batch["class_id"])
    return {"loss": loss, "index": batch["index"]}


@form(row=lambda i, g: (torch.randn(6, generator=g), i % 3, torch.tensor(i % 2)))
def groups_are_scored_besides(self, x, y, group):
    p = self.net(x).argmax(1)
    self.true(p, y)
    self.log("val_acc", mean_accuracy(p, y))
    for one in range(2):
        mine = group == one
        if mine.any():
            accuracy = mean_accuracy(p[mine], y[mine])
            self.log(f"val_acc_group{one}", accuracy, batch_size=int(mine.sum()))


def _matrix(self):
    self.confmat = tmc.MulticlassConfusionMatrix(3)

    def end():
        counted = self.confmat.compute().float()
        both = counted.sum(0) + counted.sum(1) - counted.diag()
        self.log("val_miou", (counted.diag() / both.clamp(min=1)).mean())
        self.confmat.reset()

    self.on_validation_epoch_end = end


@form(build=_matrix)
def overlap_of_a_matrix_of_torchmetrics(self, x, y):
    p = self.net(x).argmax(1)
    self.true(p, y)
    self.confmat.update(p, y)


@form(
    loaders=2,
    build=attribute(
        "accs", lambda: nn.ModuleList(tmc.MulticlassAccuracy(3) for _ in range(2))
    ),
)
def two_loaders_with_a_metric_each(self, x, y):
    which = self.dataloader_idx
    z = self.net(x)
    if which == 0:
        self.true(z.argmax(1), y)
    self.accs[which](z, y)
    key = f"val_acc_{which}"
    self.log(key, self.accs[which], add_dataloader_idx=False)
