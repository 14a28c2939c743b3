"""What a logged score claims. Each lie with its honest twin."""

from lies.common import *
from torchmetrics.classification import *
from lightning.pytorch.callbacks import Callback

C = 10


def val(name, step=None, end=None, start=None, init=None, base=Net, **kw):
    def f(fixed):
        class N(base):
            def __init__(self):
                super().__init__()
                if init:
                    init(self, fixed)

        if step:
            N.validation_step = lambda self, b, i: step(self, b, i, fixed)
        if end:
            N.on_validation_epoch_end = lambda self: end(self, fixed)
        if start:
            N.on_validation_epoch_start = lambda self: start(self, fixed)
        return fitted(N(), **kw)

    f.__name__ = name
    return lie(f)


acc = lambda z, y: (z.argmax(1) == y).float().mean()


def keep(self, b, i, fixed):
    z = self(b[0])
    self.outs.append(
        {"acc": acc(z, b[1]), "n": len(b[1]), "loss": F.cross_entropy(z, b[1])}
    )


def clear(self, fixed):
    self.outs = []


def mean_of_dicts(self, fixed):
    n = torch.tensor([o["n"] for o in self.outs]).float()
    a = torch.stack([o["acc"] for o in self.outs])
    self.log("val_acc", (a * n).sum() / n.sum() if fixed else a.mean())


val("mean_of_dicts_in_a_list", keep, mean_of_dicts, clear)


def last_only(self, fixed):
    n = torch.tensor([o["n"] for o in self.outs]).float()
    a = torch.stack([o["acc"] for o in self.outs])
    self.log("val_acc", (a * n).sum() / n.sum() if fixed else a[-1])


val("last_batch_only", keep, last_only, clear)


def never_cleared_init(self, fixed):
    self.outs = []


def mean_all(self, fixed):
    n = torch.tensor([o["n"] for o in self.outs]).float()
    a = torch.stack([o["acc"] for o in self.outs])
    self.log("val_acc", (a * n).sum() / n.sum())
    if fixed:
        self.outs.clear()


val("list_never_cleared", keep, mean_all, init=never_cleared_init)


def count(self, b, i, fixed):
    z = self(b[0])
    self.right += int((z.argmax(1) == b[1]).sum())
    self.total += len(b[1])
    F.cross_entropy(z, b[1])


def zero(self, fixed):
    if fixed or not hasattr(self, "right"):
        self.right = self.total = 0


val(
    "counters_never_reset",
    count,
    lambda self, fixed: self.log("val_acc", self.right / self.total),
    zero,
)
val(
    "divided_by_batches_times_size",
    count,
    lambda self, fixed: self.log(
        "val_acc", self.right / (self.total if fixed else 64 * 5)
    ),
    lambda self, f: setattr(self, "right", 0) or setattr(self, "total", 0),
)


def add_loss(self, b, i, fixed):
    loss = F.cross_entropy(self(b[0]), b[1])
    self.running += loss.item() * (len(b[1]) if fixed else 1)


val(
    "losses_in_a_total_over_the_number_of_batches",
    add_loss,
    lambda self, fixed: self.log(
        "val_loss", self.running / (len(VAL[1]) if fixed else 4)
    ),
    lambda self, f: setattr(self, "running", 0.0),
    val=loader(VAL, batch_size=100),
)


def metric(cls, name, **kw):
    def init(self, fixed):
        self.m = cls(num_classes=C, **kw)

    def step(self, b, i, fixed):
        z = self(b[0])
        F.cross_entropy(z, b[1])
        if fixed:
            self.m.update(z, b[1])
            self.log(name, self.m)
        else:
            self.log(name, self.m(z, b[1]), batch_size=len(b[1]))
            self.m.reset()

    return init, step


for n, cls, kw in (
    ("f1", MulticlassF1Score, {}),
    ("quality", MulticlassF1Score, {"average": "macro"}),
    ("thing", MulticlassAUROC, {}),
    ("agreement", MulticlassCohenKappa, {}),
    ("area", MulticlassAveragePrecision, {}),
):
    init, step = metric(cls, f"val_{n}", **kw)
    val(f"by_batch_{n}", step, init=init)


@lie
def one_metric_for_two_loaders(fixed):
    class N(Net):
        def __init__(self):
            super().__init__()
            ms = [MulticlassAccuracy(C, average="micro") for _ in range(2)]
            self.ms = nn.ModuleList(ms)

        def validation_step(self, b, i, dataloader_idx=0):
            m = self.ms[dataloader_idx if fixed else 0]
            z = self(b[0])
            F.cross_entropy(z, b[1])
            m.update(z, b[1])
            self.log(f"acc_{dataloader_idx}", m, add_dataloader_idx=False)

    return fitted(N(), val=[loader(VAL), loader(TEST)])


@lie
def collection_merges_what_differs(fixed):
    class N(Net):
        def __init__(self):
            super().__init__()
            self.ms = torchmetrics.MetricCollection(
                {
                    "a": MulticlassAccuracy(C, average="micro"),
                    "b": MulticlassAccuracy(C, average="micro", ignore_index=3),
                },
                compute_groups=False if fixed else [["a", "b"]],
            )

        def validation_step(self, b, i):
            z = self(b[0])
            F.cross_entropy(z, b[1])
            self.ms.update(z, b[1])

        def on_validation_epoch_end(self):
            self.log_dict(self.ms.compute())
            self.ms.reset()

    return fitted(N())


@lie
def metric_never_reset(fixed):
    class N(Net):
        def __init__(self):
            super().__init__()
            self.m = MulticlassAccuracy(C, average="micro")

        def validation_step(self, b, i):
            z = self(b[0])
            F.cross_entropy(z, b[1])
            self.m.update(z, b[1])

        def on_validation_epoch_end(self):
            self.log("val_acc", self.m.compute())
            if fixed:
                self.m.reset()

    return fitted(N(), epochs=3)


@lie
def reset_in_the_middle(fixed):
    class N(Net):
        def __init__(self):
            super().__init__()
            self.m = MulticlassAccuracy(C, average="micro")

        def validation_step(self, b, i):
            z = self(b[0])
            F.cross_entropy(z, b[1])
            self.m.update(z, b[1])
            if i == 2 and not fixed:
                self.m.reset()

        def on_validation_epoch_end(self):
            self.log("val_acc", self.m.compute())
            self.m.reset()

    return fitted(N())


@lie
def value_left_from_the_sanity_check(fixed):
    class N(Net):
        best = None

        def on_validation_epoch_start(self):
            self.rows = []

        def validation_step(self, b, i):
            z = self(b[0])
            F.cross_entropy(z, b[1])
            self.rows.append(((z.argmax(1) == b[1]).sum(), len(b[1])))

        def on_validation_epoch_end(self):
            v = float(sum(a for a, _ in self.rows)) / sum(n for _, n in self.rows)
            if self.best is None or fixed:
                self.best = v
            self.log("val_acc", self.best)

    return fitted(N())


@lie
def mean_of_means_in_a_callback(fixed):
    class Cb(Callback):
        def on_validation_epoch_start(self, t, m):
            self.v, self.n = [], []

        def on_validation_batch_end(self, t, m, out, b, i, dataloader_idx=0):
            self.v.append(out["acc"])
            self.n.append(len(b[1]))

        def on_validation_epoch_end(self, t, m):
            v, n = torch.stack(self.v), torch.tensor(self.n).float()
            m.log("cb_acc", (v * n).sum() / n.sum() if fixed else v.mean())

    class N(Net):
        def validation_step(self, b, i):
            z = self(b[0])
            return {"loss": F.cross_entropy(z, b[1]), "acc": acc(z, b[1])}

    return fitted(N(), Cb())


@lie
def logged_with_a_constant_batch_size(fixed):
    class N(Net):
        def validation_step(self, b, i):
            z = self(b[0])
            F.cross_entropy(z, b[1])
            self.log("val_acc", acc(z, b[1]), batch_size=len(b[1]) if fixed else 64)

    return fitted(N())


@lie
def training_values_in_the_validation_mean(fixed):
    class N(Net):
        def on_fit_start(self):
            self.outs = []

        def training_step(self, b, i):
            l = super().training_step(b, i)
            if not fixed:
                self.outs.append(float(l))
            return l

        def validation_step(self, b, i):
            z = self(b[0])
            self.outs.append(
                float(F.cross_entropy(z, b[1])) * (len(b[1]) if fixed else 1)
            )

        def on_validation_epoch_end(self):
            self.log(
                "val_loss_mean",
                sum(self.outs)
                / (
                    301
                    if fixed and not self.trainer.sanity_checking
                    else len(self.outs)
                ),
            )
            self.outs.clear()

    return fitted(N(), num_sanity_val_steps=0)


@lie
def micro_f1_named_macro(fixed):
    class N(Net):
        def __init__(self):
            super().__init__()
            self.m = MulticlassF1Score(C, average="macro" if fixed else "micro")

        def validation_step(self, b, i):
            z = self(b[0])
            F.cross_entropy(z, b[1])
            self.m.update(z, b[1])
            self.log("val_f1_macro", self.m)

    return fitted(N())


class Totals(Net):
    """A total over the batches, divided by the number of samples."""

    def on_validation_epoch_start(self):
        self.total = 0.0

    def validation_step(self, batch, i):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.total += self.summed(loss, len(batch[1]))

    def on_validation_epoch_end(self):
        self.log("val_loss", self.total / len(VAL[1]))


@lie
def total_of_mean_losses_over_the_samples(fixed):
    class N(Totals):
        def summed(self, loss, samples):
            return loss.item() * (samples if fixed else 1)

    return fitted(N(), val=loader(VAL, batch_size=64))


@lie
def list_of_mean_losses_over_the_samples(fixed):
    class N(Net):
        def on_test_epoch_start(self):
            self.losses = []

        def test_step(self, batch, i):
            how = "sum" if fixed else "mean"
            z = self(batch[0])
            self.losses.append(F.cross_entropy(z, batch[1], reduction=how))

        def on_test_epoch_end(self):
            samples = len(self.trainer.test_dataloaders.dataset)
            self.log("test_loss", torch.stack(self.losses).sum() / samples)

    return tested(trained(N())[0])


def ranked(kind, chosen):
    def f(fixed):
        class N(Net):
            def __init__(self):
                super().__init__()
                self.rank = kind()

            def validation_step(self, batch, i):
                z = self(batch[0])
                self.log("val_loss", F.cross_entropy(z, batch[1]), batch_size=len(z))
                scores = z.softmax(1)[:, 2] if fixed else chosen(z).float()
                self.rank.update(scores, (batch[1] == 2).long())
                self.log("val_rank", self.rank)

        return fitted(N())

    f.__name__ = f"indices_of_classes_rank_in_{kind.__name__}"
    return lie(f)


ranked(torchmetrics.classification.BinaryAUROC, lambda z: z.argmax(1))
ranked(torchmetrics.classification.BinaryAveragePrecision, lambda z: z.max(1)[1])


class EachClass(Net):
    """A score of each class, as a function of each batch or as a metric of all of them."""

    key, average = "val_recall_{}", "none"

    def __init__(self, kind, of_batch, fixed):
        super().__init__()
        self.metric = kind(C, average=self.average)
        self.of_batch, self.fixed = of_batch, fixed

    def validation_step(self, batch, i):
        z = self(batch[0])
        self.log("val_loss", F.cross_entropy(z, batch[1]), batch_size=len(z))
        if self.fixed:
            self.metric.update(z, batch[1])
        else:
            self.judge(self.of_batch(z, batch[1], C, average=self.average))

    def judge(self, scores):
        for label in range(C):
            self.log(self.key.format(label), scores[label], batch_size=64)

    def on_validation_epoch_end(self):
        if self.fixed:
            for label, score in enumerate(self.metric.compute()):
                self.log(self.key.format(label), score)
            self.metric.reset()


def each_class(kind, of_batch, key):
    def f(fixed):
        net = EachClass(kind, of_batch, fixed)
        net.key = key
        return fitted(net, val=loader(VAL, batch_size=43))

    f.__name__ = f"mean_of_batches_{of_batch.__name__}"
    return lie(f)


_of = torchmetrics.functional.classification
_all = torchmetrics.classification
each_class(_all.MulticlassRecall, _of.multiclass_recall, "val/class_{}")
each_class(_all.MulticlassPrecision, _of.multiclass_precision, "precision_of_{}")
each_class(_all.MulticlassJaccardIndex, _of.multiclass_jaccard_index, "digit{}_iou")


@lie
def f1_of_each_class_is_a_mean_over_a_list(fixed):
    class N(EachClass):
        def on_validation_epoch_start(self):
            self.kept = []

        def judge(self, scores):
            self.kept.append(scores)

        def on_validation_epoch_end(self):
            if not self.fixed:
                means = torch.stack(self.kept).mean(0)
                self.log_dict({f"f1_class{c}": m for c, m in enumerate(means)})
            super().on_validation_epoch_end()

    kinds = _all.MulticlassF1Score, _of.multiclass_f1_score
    return fitted(N(*kinds, fixed), val=loader(VAL, batch_size=43))


@lie
def accuracy_of_the_samples_of_a_class_in_each_batch(fixed):
    class N(Net):
        def validation_step(self, batch, i):
            z = self(batch[0])
            self.log("val_loss", F.cross_entropy(z, batch[1]), batch_size=len(z))
            for label in range(C):
                mine = batch[1] == label
                if mine.any():
                    right = acc(z[mine], batch[1][mine])
                    n = int(mine.sum()) if fixed else len(z)
                    self.log(f"acc_{label}", right, batch_size=n)

    return fitted(N(), val=loader(VAL, batch_size=43))
