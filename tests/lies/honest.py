"""Honest programs that look like lies of the tables; each returns its guard."""

from lies.common import *
import copy, tempfile, functools, numpy as np
from torch.utils.data import *
from lies.weights import Hyper
from lies.padding import Seqs, collate, S
from lightning.pytorch.callbacks import Callback

HONEST = []


def honest(f):
    HONEST.append(f)
    return f


@honest
def train_beside_val():
    tr = loader(TRAIN, True)

    class N(Net):
        def validation_step(self, b, i, dataloader_idx=0):
            return super().validation_step(b, i)

    return fitted(
        N(),
        ModelCheckpoint(monitor="val_acc/dataloader_idx_0", mode="max"),
        train=tr,
        val=[loader(VAL), loader(Subset(tr.dataset, range(200)))],
    )


@honest
def transfer_head_new():
    a, _ = trained()
    n = Net()
    n.load_state_dict(
        {k: v for k, v in a.state_dict().items() if "net.0" in k}, strict=False
    )
    return fitted(n)


@honest
def roundtrip_before_fit():
    n = Net()
    n.load_state_dict(copy.deepcopy(n.state_dict()))
    return fitted(n)


@honest
def first_wrong_then_right():
    a, _ = trained()
    n = Net()
    sd = {"model." + k: v for k, v in a.state_dict().items()}
    n.load_state_dict(sd, strict=False)
    n.load_state_dict({k[6:]: v for k, v in sd.items()})
    return fitted(n)


@honest
def gan_like():
    class G(Net):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.d = nn.Linear(10, 1)

        def configure_optimizers(self):
            return [
                torch.optim.Adam(self.net.parameters(), 1e-3),
                torch.optim.SGD(self.d.parameters(), 1e-3),
            ]

        def training_step(self, b, i):
            a, c = self.optimizers()
            z = self(b[0])
            l = F.cross_entropy(z, b[1]) + 0 * self.d(z).mean()
            if i % 5 == 0:
                a.zero_grad()
                self.manual_backward(l)
                a.step()
            else:
                c.zero_grad()
                self.manual_backward(self.d(z.detach()).square().mean())
                c.step()

    return fitted(G())


@honest
def hparams_of_training():
    t, _ = trainer()
    t.fit(Hyper(), loader(TRAIN, True), loader(VAL))
    p = tempfile.mktemp(suffix=".ckpt")
    t.save_checkpoint(p)
    t, g = trainer()
    t.test(Hyper(lr=0.3), loader(TEST), ckpt_path=p, verbose=False, weights_only=False)
    return g


@honest
def override_of_hparams():
    t, _ = trainer()
    t.fit(Hyper(), loader(TRAIN, True), loader(VAL))
    p = tempfile.mktemp(suffix=".ckpt")
    t.save_checkpoint(p)
    return tested(Hyper.load_from_checkpoint(p, act="tanh", weights_only=False))


@honest
def ema_by_callback():
    class Ema(Callback):
        def on_fit_start(self, t, m):
            self.shadow = {k: v.clone() for k, v in m.state_dict().items()}

        def on_train_batch_end(self, t, m, *a):
            for k, v in m.state_dict().items():
                self.shadow[k].lerp_(v, 0.2)

        def on_validation_start(self, t, m):
            self.kept = {k: v.clone() for k, v in m.state_dict().items()}
            m.load_state_dict(self.shadow)

        def on_validation_end(self, t, m):
            m.load_state_dict(self.kept)

    return fitted(Net(), Ema(), epochs=3)


@honest
def folds_on_record():
    folder = tempfile.mkdtemp()
    full = TensorDataset(X[:900], Y[:900])
    gs = []
    nets = []
    for k in range(3):
        tr, va = (
            [i for i in range(900) if i % 3 != k],
            [i for i in range(900) if i % 3 == k],
        )
        t, g = trainer(
            ModelCheckpoint(folder + f"/{k}", monitor="val_acc", mode="max"),
            guard=EvalGuard(sync="ignore", record=folder),
            epochs=1,
        )
        n = Net()
        t.fit(n, loader(Subset(full, tr), True), loader(Subset(full, va)))
        nets.append((n, t.checkpoint_callback.best_model_path))
        gs.append(g)
    for k, (n, p) in enumerate(nets):
        va = [i for i in range(900) if i % 3 == k]
        t, g = trainer(guard=EvalGuard(sync="ignore", record=folder))
        t.validate(
            Net.load_from_checkpoint(p),
            loader(TensorDataset(X[va], Y[va])),
            verbose=False,
        )
        gs.append(g)
    gs[0].report.findings += [f for g in gs[1:] for f in g.report.findings]
    return gs[0]


class W(Dataset):
    def __init__(self, d, **kw):
        self.d = d
        self.__dict__.update(kw)

    def __len__(self):
        return len(self.d[1])

    def __getitem__(self, i):
        return self.d[0][i], int(self.d[1][i])


@honest
def speaker_identification():
    return fitted(
        Net(),
        train=loader(W(TRAIN, speaker_ids=TRAIN[1].tolist()), True),
        val=loader(W(VAL, speaker_ids=VAL[1].tolist())),
    )


class St(IterableDataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __iter__(self):
        return iter(zip(self.x, self.y))


@honest
def few_valued_streams():
    g = torch.Generator().manual_seed(0)
    x = (torch.rand(1300, 64, generator=g) < 0.5).float()
    x[:, 9:] = 0
    y = torch.randint(0, 2, (1300,), generator=g)
    return fitted(
        Net(), train=loader(St(x[:1000], y[:1000])), val=loader(St(x[1000:], y[1000:]))
    )


@honest
def few_valued_table():
    g = torch.Generator().manual_seed(0)
    x = (torch.rand(1300, 64, generator=g) < 0.5).float()
    x[:, 9:] = 0
    y = torch.randint(0, 2, (1300,), generator=g)
    return fitted(
        Net(),
        train=loader((x[:1000], y[:1000]), True),
        val=loader((x[1000:], y[1000:])),
    )


@honest
def numbers_of_files_start_anew():
    return fitted(
        Net(),
        train=loader(
            W(
                TRAIN,
                files=[f"/d/train/video_{i // 20:04d}/f{i}.png" for i in range(1000)],
            ),
            True,
        ),
        val=loader(
            W(VAL, files=[f"/d/val/video_{i // 20:04d}/f{i}.png" for i in range(301)])
        ),
    )


@honest
def frames_numbered_alone():
    return fitted(
        Net(),
        train=loader(
            W(TRAIN, files=[f"/d/case_{i:04d}.png" for i in range(1000)]), True
        ),
        val=loader(W(VAL, files=[f"/d/case_{i:04d}.png" for i in range(1000, 1301)])),
    )


class Tag(S):
    def forward(self, b):
        return self.head(self.emb(b["ids"]))

    def loss(self, b):
        t = (b["ids"] % 3).masked_fill(~b["mask"], -100)
        return F.cross_entropy(self(b).transpose(1, 2), t)

    def training_step(self, b, i):
        return self.loss(b)

    def validation_step(self, b, i):
        self.log("val_loss", self.loss(b), batch_size=int(b["mask"].sum()))


@honest
def tagger_with_ignore_index():
    return fitted(
        Tag(True),
        train=DataLoader(Seqs(200, 0), 16, shuffle=True, collate_fn=collate),
        val=DataLoader(Seqs(80, 1), 16, collate_fn=collate),
    )


@honest
def darts_like():
    class N(Net):
        def training_step(self, b, i):
            l = super().training_step(b, i)
            if i % 8 == 0:
                for x, y in self.trainer.val_dataloaders:
                    l = l + 0.1 * F.cross_entropy(self(x), y)
                    break
            return l

    return fitted(N())


@honest
def pseudo_labels_in_the_step():
    class N(Net):
        def on_fit_start(self):
            self.u = loader((X[1600:1790], Y[1600:1790]), True, 32)

        def training_step(self, b, i):
            l = super().training_step(b, i)
            for x, _ in self.u:
                with torch.no_grad():
                    p = self(x).softmax(1)
                l = l + 0.1 * F.cross_entropy(self(x), p.argmax(1))
                break
            return l

    return fitted(N())


@honest
def overfit():
    return fitted(Net(), overfit_batches=2)


@honest
def fast():
    return fitted(Net(), fast_dev_run=True, logger=False)


@honest
def best_and_last():
    folder = tempfile.mkdtemp()
    ck = ModelCheckpoint(folder, monitor="val_acc", mode="max", save_last=True)
    t, g = trainer(ck, epochs=3)
    n = Net()
    t.fit(n, loader(TRAIN, True), loader(VAL))
    for p in (ck.best_model_path, ck.last_model_path):
        t.test(n, loader(TEST), ckpt_path=p, verbose=False, weights_only=False)
    return g


@honest
def resume():
    folder = tempfile.mkdtemp()
    t, g = trainer(
        ModelCheckpoint(folder, monitor="val_acc", mode="max", save_last=True), epochs=2
    )
    t.fit(Net(), loader(TRAIN, True), loader(VAL))
    t, g = trainer(
        ModelCheckpoint(folder, monitor="val_acc", mode="max", save_last=True), epochs=4
    )
    t.fit(
        Net(),
        loader(TRAIN, True),
        loader(VAL),
        ckpt_path=folder + "/last.ckpt",
        weights_only=False,
    )
    return g


@honest
def ema_module_and_swa_model():
    from torch.optim.swa_utils import AveragedModel

    class N(Net):
        def __init__(self):
            super().__init__()
            self.avg = AveragedModel(self.net)

        def on_train_epoch_end(self):
            self.avg.update_parameters(self.net)

    return fitted(N(), epochs=3)


@honest
def restored_best_copy():
    class N(Net):
        best = None

        def on_validation_epoch_end(self):
            v = self.trainer.callback_metrics.get("val_loss")
            self.best = copy.deepcopy(self.state_dict())

        def on_train_end(self):
            self.load_state_dict(self.best)

    n = N()
    g0 = fitted(n)
    g = tested(n)
    g.report.findings += g0.report.findings
    return g


@honest
def padded_collate_with_packed_rnn():
    class R(S):
        def make(self):
            self.r = nn.GRU(16, 16, batch_first=True)

        def pool(self, h, b):
            from torch.nn.utils.rnn import pack_padded_sequence

            return self.r(
                pack_padded_sequence(
                    h, b["lengths"], batch_first=True, enforce_sorted=False
                )
            )[1][0]

    return fitted(
        R(True),
        train=DataLoader(Seqs(200, 0), 16, shuffle=True, collate_fn=collate),
        val=DataLoader(Seqs(80, 1), 16, collate_fn=collate),
    )


@honest
def sum_loss_over_sequences():
    class R(S):
        def pool(self, h, b):
            m = b["mask"][..., None].float()
            return (h * m).sum(1) / m.sum(1)

        def validation_step(self, b, i):
            l = F.cross_entropy(self(b), b["y"], reduction="none")
            self.log("val_loss", l.mean(), batch_size=len(b["y"]))

    return fitted(
        R(True),
        train=DataLoader(Seqs(200, 0), 16, shuffle=True, collate_fn=collate),
        val=DataLoader(Seqs(80, 1), 16, collate_fn=collate),
    )


@honest
def micro_f1_by_step():
    class N(Net):
        def __init__(self):
            super().__init__()
            self.m = torchmetrics.classification.MulticlassF1Score(10, average="micro")

        def validation_step(self, b, i):
            z = self(b[0])
            self.log("val_f1_micro", self.m(z, b[1]), batch_size=len(b[1]))
            F.cross_entropy(z, b[1])
            self.m.reset()

    return fitted(N())


@honest
def checkpoints_of_folds_in_one_net():
    full, n, kept = TensorDataset(X[:900], Y[:900]), Net(), []
    parts = [[i for i in range(900) if i % 3 == k] for k in range(3)]
    first = copy.deepcopy(n.state_dict())
    for held in parts:
        n.load_state_dict(first)
        t, g = trainer(epochs=1)
        rest = sorted(set(range(900)) - set(held))
        t.fit(n, loader(Subset(full, rest), True), loader(Subset(full, held)))
        kept.append(copy.deepcopy(n.state_dict()))
    t, g = trainer()
    for weights, held in zip(kept, parts):
        n.load_state_dict(weights)
        t.validate(n, loader(Subset(full, held)), verbose=False)
    return g


@honest
def trained_further_on_more():
    n = Net()
    t, g = trainer(epochs=1)
    t.fit(n, loader((X[:500], Y[:500]), True), loader(VAL))
    t, g = trainer(guard=g, epochs=1)
    t.fit(n, loader(TRAIN, True), loader(VAL))
    t.test(n, loader(TEST), verbose=False)
    return g


def stacked(b):
    return torch.stack([x for x, _ in b]), torch.stack([y for _, y in b])


def negatives(b):
    x, y = stacked(b)
    return x, y, x.roll(1, 0)


def sorted_by_ink(b):
    return stacked(sorted(b, key=lambda s: -float(s[0].sum())))


def without_the_blank(b):
    return stacked([s for s in b if s[0].sum() > 15] or b)


def of_one_bag(b):
    x, y = stacked(b)
    return x.unsqueeze(0), y[:1]


def weights_beside(b):
    x, y = stacked(b)
    return x, y, torch.bincount(y, minlength=10)[y] / len(y)


@honest
def collate_functions_that_keep_each_sample():
    class N(Net):
        def training_step(self, b, i):
            return super().training_step(b[:2], i)

        def validation_step(self, b, i):
            return super().validation_step(b[:2], i)

    class Bags(N):
        def forward(self, x):
            return self.net(x.mean(1) if x.dim() == 3 else x)

    g = None
    for collate in (
        negatives,
        sorted_by_ink,
        without_the_blank,
        of_one_bag,
        weights_beside,
    ):
        t, g = trainer(guard=g, epochs=1)
        of = Bags if collate is of_one_bag else N
        t.fit(of(), loader(TRAIN, True), loader(VAL, collate_fn=collate))
    return g


@honest
def unfreezes_as_it_should():
    from lightning.pytorch.callbacks import BackboneFinetuning

    class N(Net):
        def __init__(self):
            super().__init__()
            self.backbone = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64))

        def forward(self, x):
            return self.net(self.backbone(x))

        def configure_optimizers(self):
            return torch.optim.Adam(
                [p for p in self.parameters() if p.requires_grad], 1e-2
            )

    return fitted(N(), BackboneFinetuning(1, verbose=False), epochs=3)


@honest
def norms_that_learn_no_statistics():
    class N(Net):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(
                nn.BatchNorm1d(64, affine=False), nn.Linear(64, 10), nn.GroupNorm(2, 10)
            )

    a, _ = trained(N())
    b = N()
    b.load_state_dict(a.state_dict())
    return tested(b)


@honest
def total_over_batches_of_one_sample():
    class N(Net):
        def on_validation_epoch_start(self):
            self.total = 0.0

        def validation_step(self, batch, i):
            self.total += F.cross_entropy(self(batch[0]), batch[1]).item()

        def on_validation_epoch_end(self):
            self.log("val_loss", self.total / 40)

    return fitted(N(), val=loader((VAL[0][:40], VAL[1][:40]), batch_size=1))


@honest
def whole_numbers_that_rank():
    class N(Net):
        def __init__(self):
            super().__init__()
            self.rank = torchmetrics.classification.BinaryAUROC()

        def validation_step(self, batch, i):
            z = self(batch[0])
            self.log("val_loss", F.cross_entropy(z, batch[1]), batch_size=len(z))
            points = (5 * batch[0][:, 20]).round() + (5 * batch[0][:, 30]).round()
            self.rank.update(points, (batch[1] == 2).long())
            self.log("val_rank", self.rank)

    return fitted(N())


@honest
def scores_of_each_class_in_the_last_batch_are_logged_by_step():
    class N(Net):
        def validation_step(self, batch, i):
            super().validation_step(batch, i)
            of_batch = torchmetrics.functional.classification.multiclass_recall
            scores = of_batch(self(batch[0]), batch[1], 10, average="none")
            for label in range(10):
                key = f"recall_{label}"
                self.log(key, scores[label], on_step=True, on_epoch=False)

    return fitted(N(), val=loader(VAL, batch_size=43))


@honest
def dice_of_each_class_is_a_mean_over_images():
    class N(Net):
        def validation_step(self, batch, i):
            z, y = self(batch[0]), batch[1]
            pixels = z.view(-1, 10, 1).expand(-1, 10, 4)
            truth = y.view(-1, 1).repeat(1, 4)
            self.log("val_loss", F.cross_entropy(pixels, truth), batch_size=len(y))
            of_image = torchmetrics.functional.classification.multiclass_f1_score
            for label, dice in enumerate(of_image(pixels, truth, 10, average="none")):
                self.log(f"dice_{label}", dice, batch_size=len(y))

    return fitted(N(), val=loader(VAL, batch_size=43))


@honest
def a_metric_made_of_two_is_reset():
    class N(Net):
        def __init__(self):
            super().__init__()
            of = torchmetrics.classification
            self.acc, self.f1 = of.MulticlassAccuracy(10), of.MulticlassF1Score(10)
            self.middle = (self.acc + self.f1) / 2

        def validation_step(self, batch, i):
            self.middle.update(self(batch[0]), batch[1])

        def on_validation_epoch_end(self):
            self.log("val_middle", self.middle.compute())
            self.middle.reset()

    return fitted(N())


@honest
def errors_of_one_sample_each():
    class N(Net):
        def validation_step(self, batch, i):
            x, y = batch[0], (batch[1] > 4).float()
            z = self(x)[:, 0]
            self.log("val_loss", F.binary_cross_entropy_with_logits(z, y))
            for name, cut in (("val_error", 0.0), ("val_far", 0.3), ("val_off", -0.3)):
                wrong = ((z > cut) != y.bool()).float().mean()
                self.log(name, wrong, batch_size=1)

    return fitted(N(), val=loader((VAL[0][:31], VAL[1][:31]), batch_size=1))
