"""Validation steps as people write them, each with its truth."""

from __future__ import annotations

import warnings
from functools import partial

import lightning.pytorch as pl
import sklearn.metrics as skm
import torch
import torch.nn.functional as F
import torchmetrics
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics.classification import BinaryAccuracy, MulticlassAccuracy

from lightning_evalguard import EvalGuard

torch.set_num_threads(1)
TABLE = []


def step(must="equal", n=11, bs=4, classes=3, **kw):
    """Register ``fn(self, x, y) -> what validation_step returns``.

    `must`: "equal": the matrix is the truth's; "equal or reported": it is, or a finding or an EvalGuardWarning
    says how many samples were left out or why there is no matrix; "none": no scores may be logged at all.
    A step notes its truth with ``self.true(preds, target)``, labels of any shape, or, for yes-or-no answers
    of shape (N, L), booleans.
    """

    def add(fn):
        TABLE.append(
            (fn.__name__, fn, dict(must=must, n=n, bs=bs, classes=classes, **kw))
        )
        return fn

    return add


class Data(Dataset):
    def __init__(self, n, seed, make):
        g = torch.Generator().manual_seed(seed)
        self.rows = [make(i, g) for i in range(n)]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i]


class Module(pl.LightningModule):
    def __init__(self, fn, classes, build):
        super().__init__()
        self.net = nn.Linear(6, classes)
        self.fn, self.seen = fn, []
        if build:
            build(self)

    def true(self, preds, target):
        if not self.trainer.sanity_checking:
            self.seen.append(
                (
                    preds.detach().clone().flatten(0, -1)
                    if preds.dtype != torch.bool
                    else preds.detach().clone(),
                    target.detach().clone(),
                )
            )

    def training_step(self, batch, i):
        return self.net(torch.zeros(2, 6)).sum() * 0

    def validation_step(self, batch, i):
        torch.manual_seed(i)
        return self.fn(self, *batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def run(
    fn,
    must,
    n,
    bs,
    classes,
    make=None,
    build=None,
    collate=None,
    y_of=None,
    epochs=1,
    guards=None,
):
    make = make or (
        lambda i, g: (
            torch.randn(6, generator=g) * 3,
            int(torch.randint(0, classes, (), generator=g)),
        )
    )
    torch.manual_seed(1)
    module = Module(fn, classes, build)
    train, val = Data(6, 7, make), Data(n, 8, make)
    guard = EvalGuard(data="ignore", sync="ignore", record=None)
    if guards is not None:
        guards.append(guard)
    trainer = pl.Trainer(
        max_epochs=epochs,
        limit_train_batches=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[guard],
    )
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        trainer.fit(
            module,
            DataLoader(train, bs, collate_fn=collate),
            DataLoader(val, bs, collate_fn=collate),
        )
    said = [str(w.message) for w in heard if "EvalGuard" in type(w.message).__name__]
    last = module.seen[-((n + bs - 1) // bs) :]
    result = guard.report.confusion.get("val")
    if must == "none":
        logged = [
            k
            for k in trainer.callback_metrics
            if "accuracy" in k or "f1" in k or "mcc" in k
        ]
        return (
            ("ok", "")
            if result is None and not logged
            else (
                "wrong",
                f"logged {logged[:2]}, matrix {None if result is None else list(result.matrix.shape)}",
            )
        )
    if not last:
        return "broken", "the program noted no truth"
    if last[0][0].dtype == torch.bool:
        p, t = (
            torch.cat([a.flatten() for a, _ in last]).long(),
            torch.cat([b.flatten() for _, b in last]).long(),
        )
    else:
        p, t = (
            torch.cat([a.flatten() for a, _ in last]),
            torch.cat([b.flatten() for _, b in last]),
        )
    size = 2 if last[0][0].dtype == torch.bool else max(classes, 2)
    keep = (t >= 0) & (t < size)
    want = torch.bincount(
        t[keep].long() * size + p[keep].long(), minlength=size * size
    ).reshape(size, size)
    if result is None:
        return (
            ("reported", said[0][:90])
            if must == "equal or reported" and said
            else (
                "none",
                next((x[:120] for x in guard.report.notes if "no confusion" in x), ""),
            )
        )
    got = result.matrix
    if got is not None and got.shape != want.shape and got.dim() == 3:  # (L, 2, 2)
        got = got.sum(0)
    same = (
        got is not None
        and got.shape == want.shape
        and torch.equal(got.long(), want.long())
    )
    if (
        not same and got is not None and last[0][0].dtype == torch.bool
    ):  # one matrix a label, written as (L, L)-like table
        same = float(result.scores.get("accuracy", -1)) == float(
            (p == t).float().mean()
        ) and result.total in (len(p), len(last[0][0]))
    if same:
        return "ok", ""
    told = [
        s
        for s in said
        if "count" in s or "left out" in s or "not counted" in s or "differ" in s
    ]
    if must == "equal or reported" and told:
        return "reported", told[0][:90]
    return "wrong", f"total {result.total} of {int(keep.sum())}" + (
        "" if not told else f"; reported: {told[0][:80]}"
    )


# given


@step(n=9)
def squeezed_last_batch_of_one(self, x, y):  # 9 samples by 4: the last batch has one
    z = self.net(x)
    self.true(z.argmax(1), y)
    z, t = z.squeeze(), y.squeeze()
    self.log("val_loss", F.cross_entropy(z, t), batch_size=len(x))


@step(n=9, classes=1)
def dict_of_squeezed_binary_logits(self, x, y):
    z = self.net(x).squeeze()
    y = (x[:, 0] > 0).long()
    self.true((z > 0).flatten(), y.bool())
    return {"logits": z, "target": y}


@step()
def loss_on_another_line_for_the_last_batch(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    if len(y) == 4:
        loss = F.cross_entropy(z, y)
    else:
        loss = F.cross_entropy(z, y)
    self.log("l", loss)


@step()
def dict_for_full_batches_only(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.log("l", F.cross_entropy(z, y))
    return {"logits": z, "target": y} if len(y) == 4 else {"logits": z}


@step("equal or reported")
def two_tasks_in_a_loop_on_one_line(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    for k in range(2):
        self.log(f"l{k}", F.cross_entropy(z.roll(k, 1), (y + k) % 3))


@step(
    bs=4,
    n=16,
    classes=4,
    make=lambda i, g: (
        torch.randn((4, 6), generator=g),
        torch.randint(0, 4, (4,), generator=g),
    ),
)
# (N, T, C), T == C in every batch
def token_logits_n_t_c_with_t_equal_to_c(self, x, y):
    z = self.net(x)
    self.true(z.argmax(-1), y)
    return {"logits": z, "labels": y}


@step("equal or reported", classes=1)
def sigmoid_twice(
    self,
    x,
    y,
    # the network's own sigmoid, then a loss that applies another: the answer is cut at 0.5
):
    p = torch.sigmoid(self.net(x))[:, 0]
    t = (x[:, 0] > 0).float()
    self.log("l", F.binary_cross_entropy_with_logits(p, t))
    self.true(p > 0.5, t.bool())


def _masked(self):
    class Masked(torchmetrics.classification.MulticlassAccuracy):
        def update(self, preds, target, mask):
            super().update(preds[mask], target[mask])

    self.acc = Masked(3)


@step(build=_masked)
def metric_with_a_mask_of_its_own(self, x, y):
    z, mask = self.net(x), x[:, 0] > 0
    self.true(z.argmax(1)[mask], y[mask])
    self.acc.update(z, y, mask)


@step()
def ignored_class_zero_of_the_loss(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1)[y != 0], y[y != 0])
    loss = F.cross_entropy(z, y, ignore_index=0)
    self.log("l", loss)
    return {"loss": loss, "logits": z, "targets": y}


@step("equal or reported")
def logits_changed_in_place_before_the_return(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    out = {"logits": z, "target": y}
    z.masked_fill_(torch.ones_like(z, dtype=torch.bool), 0.0)
    return out


def _acc(self):
    self.acc = torchmetrics.classification.MulticlassAccuracy(3)


@step("equal or reported", build=_acc)
def metric_called_with_target_first(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.log("l", F.cross_entropy(z, y))
    self.acc.update(y, z.argmax(1))


@step("equal or reported")
def auxiliary_head_first(self, x, y):
    z = self.net(x)
    aux = z.roll(1, 1)
    self.true(z.argmax(1), y)
    self.log("aux", F.cross_entropy(aux, y))
    self.log("val_loss", F.cross_entropy(z, y))
    self.log("val_acc", (z.argmax(1) == y).float().mean())


@step("none", n=12, bs=4, classes=6)
def contrastive_loss_with_targets_all_zero(self, x, y):
    z = F.normalize(self.net(x), dim=1)
    logits = z @ z.T / 0.1
    self.log("l", F.cross_entropy(logits, torch.zeros(len(x), dtype=torch.long)))


@step()
def returns_a_list_of_scores_and_target(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    return [z, y]


@step()
def returns_outputs_and_labels(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    return {"outputs": z, "labels": y}


def _held(self):
    self.loss_function = F.cross_entropy


@step(build=_held)
def loss_function_held_on_the_module(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.log("l", self.loss_function(z, y))


@step(
    bs=2,
    n=6,
    classes=2,
    make=lambda i, g: (
        torch.randn((3 + 2 * (i // 2), 6), generator=g),
        torch.randint(0, 2, (3 + 2 * (i // 2),), generator=g),
    ),
)
def length_changes_from_batch_to_batch_under_bce(self, x, y):  # (N, T), T = 3, 5, 7
    z = self.net(x)[..., 0]
    self.true(z > 0, y.bool())
    self.log("l", F.binary_cross_entropy_with_logits(z, y.float()))


# of the same kinds


@step(build=lambda self: setattr(self, "table", {"ce": F.cross_entropy}))
def loss_in_a_table(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.log("l", self.table["ce"](z, y))


@step(
    build=lambda self: setattr(self, "crit", partial(F.cross_entropy, ignore_index=2))
)
def loss_in_a_partial_that_ignores(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1)[y != 2], y[y != 2])
    self.log("l", self.crit(z, y))


def _default(z, t, loss=F.cross_entropy):
    return loss(z, t)


@step()
def loss_as_a_default_argument(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.log("l", _default(z, y))


@step()
def soft_targets_of_cross_entropy(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.log("l", F.cross_entropy(z, F.one_hot(y, 3) * 0.9 + 0.1 / 3))


@step()
def one_hot_targets_under_bce(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.log("l", F.binary_cross_entropy_with_logits(z, F.one_hot(y, 3).float()))


class DiceLoss(nn.Module):
    def forward(self, y_pred, y_true):
        p = y_pred.softmax(1)
        t = F.one_hot(y_true, 3).movedim(-1, 1)
        return 1 - (2 * (p * t).sum() / (p.sum() + t.sum()))


@step(build=lambda self: setattr(self, "dice", DiceLoss()))
def dice_loss_module(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.log("l", self.dice(z, y))


def focal(inputs, targets, gamma=2.0):
    p = inputs.log_softmax(1).gather(1, targets[:, None])[:, 0]
    return (-((1 - p.exp()) ** gamma) * p).mean()


def focal_loss(inputs, targets, gamma=2.0):
    return focal(inputs, targets, gamma)


@step(build=lambda self: setattr(self, "f", partial(focal_loss, gamma=1.0)))
def focal_loss_by_hand_in_a_partial(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.log("l", self.f(z, y))


def get_stats(
    output,
    target,
    mode="multiclass",
    num_classes=None,
    threshold=None,
    ignore_index=None,
):
    return (output == target).sum()


@step()
def get_stats_of_labels(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.log("tp", get_stats(z.argmax(1), y, mode="multiclass", num_classes=3).float())


@step(classes=1)
def get_stats_of_probabilities_at_a_threshold(self, x, y):
    p = self.net(x)[:, 0].sigmoid()
    t = (x[:, 0] > 0).long()
    self.true(p > 0.3, t.bool())
    self.log("tp", get_stats(p, t, mode="binary", threshold=0.3).float())


def _lists(self):
    self.p = []
    self.t = []


def _epoch(self):
    self.p = []
    self.t = []

    def end():
        self.log(
            "f1",
            float(
                skm.f1_score(
                    torch.cat(self.t).numpy(),
                    torch.cat(self.p).numpy(),
                    average="macro",
                )
            ),
        )
        self.p.clear()
        self.t.clear()

    self.on_validation_epoch_end = end


@step(build=_epoch)
def sklearn_on_concatenated_lists(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.p.append(z.argmax(1))
    self.t.append(y)


def _epoch2(self):
    self.p = []
    self.acc = MulticlassAccuracy(3)

    def end():
        z = torch.cat([a for a, _ in self.p])
        y = torch.cat([b for _, b in self.p])
        self.acc(z, y)
        self.log("acc", self.acc)
        self.p.clear()

    self.on_validation_epoch_end = end


@step(build=_epoch2)
def metric_on_concatenated_lists(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.p.append((z, y))


@step()
def returns_tuple_target_first(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    return (y, z)


@step()
def returns_loss_scores_target(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    return z.sum() * 0, z, y


@step()
def returns_scores_ground_truth(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    return {"scores": z, "ground_truth": y}


@step()
def returns_pred_true(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    return {"pred": z.argmax(1), "true": y}


@step()
def returns_predictions_ground_truths_numpy(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    return {"predictions": z.argmax(1).numpy(), "ground_truths": y.numpy()}


@step()
def returns_val_prefixed(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    return {"val_preds": z.argmax(1), "val_labels": y}


@step(classes=1)
def returns_float_binary_targets(self, x, y):
    z = self.net(x)[:, 0]
    t = (x[:, 0] > 0).float()
    self.true(z > 0, t.bool())
    F.binary_cross_entropy_with_logits(z, t)
    return {"preds": z, "target": t}


@step()
def teacher_labels_first(self, x, y):
    z = self.net(x)
    t = z.roll(1, 1).argmax(1)
    self.true(z.argmax(1), y)
    return F.cross_entropy(z, y) + 0.5 * F.cross_entropy(z, t)


@step()
def teacher_labels_last(self, x, y):
    z = self.net(x)
    t = z.roll(1, 1).argmax(1)
    self.true(z.argmax(1), y)
    loss = F.cross_entropy(z, y) + 0.5 * F.cross_entropy(z, t)
    self.log("val_loss", loss)
    return loss


@step()
def teacher_soft(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    loss = F.cross_entropy(z, z.roll(1, 1).softmax(1)) + F.cross_entropy(z, y)
    self.log("val_loss", loss)


@step("equal or reported")
def aux_last_nothing_logged(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    return F.cross_entropy(z, y) + 0.4 * F.cross_entropy(z.roll(1, 1), y)


@step("equal or reported")
def three_heads_in_a_loop(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    loss = 0
    for k in (2, 1, 0):
        loss = loss + F.cross_entropy(z.roll(k, 1), (y + k) % 3)
    self.log("val_loss", loss)


def _two(self):
    self.accs = nn.ModuleList([MulticlassAccuracy(3), MulticlassAccuracy(3)])


@step("equal or reported", build=_two)
def two_heads_with_metrics(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    for k in (0, 1):
        self.accs[k].update(z.roll(k, 1), (y + k) % 3)


@step()
def group_subset_after_all(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    g = x[:, 1] > 0
    self.log("l", F.cross_entropy(z, y))
    self.log("lg", F.cross_entropy(z[g], y[g]) if g.any() else 0.0)


@step()
def group_subset_before_all(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    g = x[:, 1] > 0
    if g.any():
        self.log("lg", F.cross_entropy(z[g], y[g]))
    self.log("l", F.cross_entropy(z, y))


TOK = dict(
    bs=4,
    n=16,
    classes=4,
    make=lambda i, g: (
        torch.randn((4, 6), generator=g),
        torch.randint(0, 4, (4,), generator=g),
    ),
)


@step(**TOK)
def tokens_loss_transposed_and_returned(self, x, y):
    z = self.net(x)
    self.true(z.argmax(-1), y)
    return {"loss": F.cross_entropy(z.transpose(1, 2), y), "logits": z, "labels": y}


def _conv(self):
    self.conv = nn.Conv1d(6, 4, 1)
    self.net = nn.Linear(6, 5)


@step(**TOK, build=_conv)
def conv_logits_n_c_t(self, x, y):
    z = self.conv(x.transpose(1, 2))
    self.true(z.argmax(1), y)
    return {"logits": z, "labels": y}


@step(**TOK)
def tokens_viewed(self, x, y):
    z = self.net(x)
    self.true(z.argmax(-1), y)
    loss = F.cross_entropy(z.view(-1, 4), y.view(-1))
    return {"loss": loss, "outputs": z, "labels": y}


def _wrap(self):
    class W(torchmetrics.Metric):
        def __init__(s):
            super().__init__()
            s.inner = MulticlassAccuracy(3)

        def update(s, preds, target, lengths):
            k = lengths > 0
            s.inner.update(preds[k], target[k])

        def compute(s):
            return s.inner.compute()

    self.m = W()


@step(build=_wrap)
def metric_wrapper_that_masks(self, x, y):
    z = self.net(x)
    m = x[:, 0]
    k = m > 0
    self.true(z.argmax(1)[k], y[k])
    self.m.update(z, y, m)


def _ownmask(self):
    class O(torchmetrics.Metric):
        def __init__(s):
            super().__init__()
            s.add_state("n", torch.tensor(0), dist_reduce_fx="sum")

        def update(s, preds, target, mask):
            s.n += (preds.argmax(1) == target)[mask].sum()

        def compute(s):
            return s.n

    self.m = O()


@step(build=_ownmask)
def own_metric_with_a_bool_mask(self, x, y):
    z = self.net(x)
    k = x[:, 0] > 0
    self.true(z.argmax(1)[k], y[k])
    self.m.update(z, y, k)


@step()
def loss_on_masked_and_all_returned(self, x, y):
    z = self.net(x)
    k = x[:, 0] > 0
    self.true(z.argmax(1)[k], y[k])
    if k.any():
        F.cross_entropy(z[k], y[k])
    return {"logits": z, "target": y}


def _ign(self):
    self.acc = MulticlassAccuracy(3, ignore_index=1)


@step(build=_ign)
def metric_ignores_and_dict(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1)[y != 1], y[y != 1])
    self.acc(z, y)
    return {"logits": z, "target": y}


@step(
    classes=1,
    build=lambda s: setattr(s, "net", nn.Sequential(nn.Linear(6, 1), nn.Sigmoid())),
)
def sigmoid_module_then_bcewithlogits(self, x, y):
    p = self.net(x).squeeze(1)
    t = (x[:, 0] > 0).float()
    self.true(p > 0.5, t.bool())
    self.log("l", nn.BCEWithLogitsLoss()(p, t))


def _bacc(self):
    self.acc = BinaryAccuracy()


@step(classes=1, build=_bacc)
def sigmoid_for_metric_and_loss(self, x, y):
    p = self.net(x)[:, 0].sigmoid()
    t = (x[:, 0] > 0).long()
    self.true(p > 0.5, t.bool())
    self.acc(p, t)
    self.log("l", F.binary_cross_entropy_with_logits(p, t.float()))


def _arange(z, t=None):
    return F.cross_entropy(z, torch.arange(len(z)))


@step("none", n=12, bs=4, classes=6)
def clip_both_ways(self, x, y):
    z = F.normalize(self.net(x), dim=1)
    s = z @ z.T / 0.1
    self.log("l", (_arange(s) + _arange(s.T)) / 2)


@step("none", n=12, bs=4, classes=6)
def simclr(self, x, y):
    z = F.normalize(torch.cat((self.net(x), self.net(x + 0.1))), dim=1)
    n = len(z)
    s = (z @ z.T / 0.1)[~torch.eye(n, dtype=torch.bool)].view(n, n - 1)
    t = torch.cat((torch.arange(n // 2) + n // 2 - 1, torch.arange(n // 2)))
    self.log("l", F.cross_entropy(s, t))


@step("none", n=12, bs=4, classes=6)
def moco(self, x, y):
    z = F.normalize(self.net(x), dim=1)
    neg = torch.ones(6, 9)
    l = torch.cat(((z * z).sum(1, keepdim=True), z @ neg), 1)
    self.log("l", F.cross_entropy(l, torch.zeros(len(x), dtype=torch.long)))


@step("none", n=12, bs=4, classes=1)
def gan(self, x, y):
    d = self.net(x)
    self.log(
        "d",
        F.binary_cross_entropy_with_logits(d, torch.ones_like(d))
        + F.binary_cross_entropy_with_logits(d * 0.5, torch.zeros_like(d)),
    )


@step("none", n=12, bs=4, classes=1)
def gan_cat(self, x, y):
    d = self.net(torch.cat((x, x * 0.1)))
    t = torch.cat((torch.ones(len(x), 1), torch.zeros(len(x), 1)))
    self.log("d", F.binary_cross_entropy_with_logits(d, t))


@step("none", n=12, bs=4, classes=6)
def siglip(self, x, y):
    z = F.normalize(self.net(x), dim=1)
    self.log("l", F.binary_cross_entropy_with_logits(z @ z.T, torch.eye(len(x))))


@step("none", n=12, bs=4, classes=6)
def supcon_pairs(self, x, y):
    z = F.normalize(self.net(x), dim=1)
    self.log(
        "l",
        F.binary_cross_entropy_with_logits(z @ z.T, (y[:, None] == y[None]).float()),
    )


@step("none", n=12, bs=4, classes=1)
def regression_dict(self, x, y):
    z = self.net(x)[:, 0]
    t = x.sum(1)
    self.log("l", F.mse_loss(z, t))
    return {"preds": z, "target": t}


@step("none", n=12, bs=4, classes=6)
def vae(self, x, y):
    r = self.net(x)
    self.log("l", F.binary_cross_entropy_with_logits(r, x.sigmoid()))


def _sk(self):
    self.acc = MulticlassAccuracy(3)


@step(build=_sk)
def metric_target_first_and_dict(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.acc(y, z.argmax(1))
    return {"logits": z, "target": y}


@step(build=_sk)
def metric_target_first_alone(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.acc(y, z.argmax(1))


@step()
def functional_target_first(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.log(
        "a",
        torchmetrics.functional.accuracy(
            y, z.argmax(1), task="multiclass", num_classes=3
        ),
    )
    self.log("l", F.cross_entropy(z, y))


@step()
def functional_alone(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.log(
        "a", torchmetrics.functional.accuracy(z, y, task="multiclass", num_classes=3)
    )


@step()
def loss_then_inplace(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.log("l", F.cross_entropy(z, y))
    z.neg_()
    return


@step()
def loss_then_inplace_returned(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.log("l", F.cross_entropy(z, y))
    z.neg_()
    return {"logits": z, "target": y}


@step(build=_sk)
def metric_then_target_zeroed(self, x, y):
    z = self.net(x)
    y = y.clone()
    self.true(z.argmax(1), y)
    self.acc.update(z, y)
    y.zero_()


@step("equal or reported")
def target_of_batch_overwritten_returned(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    out = {"logits": z, "target": y}
    y.zero_()
    return out


@step(n=9)
def multiclass_dict_squeezed(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    return {"logits": z.squeeze(), "target": y.squeeze()}


@step(n=9, classes=4)
def multilabel_squeezed(self, x, y):
    z = self.net(x)
    t = (x[:, :4] > 0).float()
    self.true(z > 0, t.bool())
    F.binary_cross_entropy_with_logits(z.squeeze(), t.squeeze())


@step()
def keys_change(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    return (
        {"logits": z, "target": y}
        if len(y) == 4
        else {"preds": z.argmax(1), "labels": y}
    )


@step()
def other_loss_last(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    (F.cross_entropy(z, y) if len(y) == 4 else F.nll_loss(z.log_softmax(1), y))


SEG = dict(
    bs=2,
    n=5,
    classes=3,
    make=lambda i, g: (
        torch.randn((4 + i // 2, 5, 6), generator=g),
        torch.randint(0, 3, (4 + i // 2, 5), generator=g),
    ),
)


@step(**SEG)
def image_sizes_change(self, x, y):
    z = self.net(x)
    self.true(z.argmax(-1), y)
    F.cross_entropy(z.movedim(-1, 1), y)


@step(
    bs=2,
    n=6,
    classes=2,
    make=lambda i, g: (
        torch.randn((3 + 2 * (i // 2), 6), generator=g),
        torch.randint(0, 2, (3 + 2 * (i // 2),), generator=g),
    ),
)
def lengths_change_dict(self, x, y):
    z = self.net(x)[..., 0]
    self.true(z > 0, y.bool())
    return {"logits": z, "labels": y}


@step()
def vmap_beside_dict(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    torch.vmap(F.cross_entropy)(z, y)
    return


@step()
def hf_like_output(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    return {"outputs": {"logits": z}, "labels": y}


@step("equal or reported")
def by_hand_nll(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.log("val_loss", -z.log_softmax(1)[torch.arange(len(y)), y].mean())
    self.log("val_acc", (z.argmax(1) == y).float().mean())


@step(epochs=2)
def width_grows(self, x, y):
    z = self.net(x)
    if self.current_epoch == 0:
        z = z[:, :2]
        y = y % 2
    self.true(z.argmax(1), y)
    F.cross_entropy(z, y)
