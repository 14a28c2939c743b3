"""Further lies about weights, samples and choices. Each with its honest twin."""

from lies.common import *
import copy, tempfile
from lies.padding import Seqs, collate, S
from torch.utils.data import *
from lightning.pytorch.callbacks import Callback


class Back(Net):
    def __init__(self):
        super().__init__()
        self.enc = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
        self.head = nn.Linear(64, 10)
        del self._modules["net"]

    def forward(self, x):
        return self.head(self.enc(x))


@lie
def ddp_prefix_on_a_submodule(fixed):
    a, _ = trained(Back())
    b = Back()
    sd = {("" if fixed else "module.") + k: v for k, v in a.enc.state_dict().items()}
    b.enc.load_state_dict(sd, strict=False)
    b.head.load_state_dict(a.head.state_dict())
    return tested(b)


@lie
def head_forgotten_in_the_saved_dict(fixed):
    a, _ = trained(Back())
    p = tempfile.mktemp()
    torch.save(
        a.state_dict()
        if fixed
        else {k: v for k, v in a.state_dict().items() if k.startswith("enc")},
        p,
    )
    b = Back()
    b.load_state_dict(torch.load(p), strict=False)
    return tested(b)


@lie
def partial_filter_by_shape(fixed):
    class Wide(Back):
        def __init__(self, n=12):
            super().__init__()
            self.head = nn.Linear(64, 10 if fixed else n)

        def forward(self, x):
            return super().forward(x)[:, :10]

    a, _ = trained(Back())
    b = Wide()
    own = b.state_dict()
    b.load_state_dict(
        {k: v for k, v in a.state_dict().items() if v.shape == own[k].shape},
        strict=False,
    )
    return tested(b)


@lie
def ckpt_path_not_passed(fixed):
    folder = tempfile.mkdtemp()
    ck = ModelCheckpoint(folder, monitor="val_acc", mode="max")
    t, _ = trainer(ck)
    t.fit(Net(), loader(TRAIN, True), loader(VAL))
    t, g = trainer()
    t.test(
        Net(),
        loader(TEST),
        verbose=False,
        **({"ckpt_path": ck.best_model_path, "weights_only": False} if fixed else {}),
    )
    return g


@lie
def assigned_to_a_copy(fixed):
    a, _ = trained()
    b = Net()
    (b if fixed else copy.deepcopy(b)).load_state_dict(a.state_dict())
    return tested(b)


@lie
def reinitialised_after_the_load(fixed):
    a, _ = trained()
    b = Net()
    init = lambda m: m.reset_parameters() if isinstance(m, nn.Linear) else None
    if fixed:
        b.apply(init)
    b.load_state_dict(a.state_dict())
    if not fixed:
        b.apply(init)
    return tested(b)


@lie
def hparams_nested(fixed):
    class H(Net):
        def __init__(self, model=None, lr=1e-2):
            super().__init__()
            self.save_hyperparameters()
            self.k = model["gain"]

        def forward(self, x):
            return self.net(x * self.k)

    t, _ = trainer()
    t.fit(H({"gain": 1.0}), loader(TRAIN, True), loader(VAL))
    p = tempfile.mktemp(suffix=".ckpt")
    t.save_checkpoint(p)
    t, g = trainer()
    t.validate(
        H({"gain": 1.0 if fixed else 3.0}, lr=0.5),
        loader(VAL),
        ckpt_path=p,
        verbose=False,
        weights_only=False,
    )
    return g


@lie
def heads_differ_in_number(fixed):
    class H(pl.LightningModule):
        def __init__(self, nhead=2):
            super().__init__()
            self.save_hyperparameters()
            self.a = nn.MultiheadAttention(16, nhead, batch_first=True)
            self.h = nn.Linear(16, 10)

        def forward(self, x):
            x = x.reshape(-1, 4, 16)
            return self.h(self.a(x, x, x)[0].mean(1))

        training_step, validation_step, test_step, configure_optimizers = (
            Net.training_step,
            Net.validation_step,
            Net.test_step,
            Net.configure_optimizers,
        )

    t, _ = trainer()
    t.fit(H(), loader(TRAIN, True), loader(VAL))
    p = tempfile.mktemp(suffix=".ckpt")
    t.save_checkpoint(p)
    t, g = trainer()
    t.test(
        H(2 if fixed else 4),
        loader(TEST),
        ckpt_path=p,
        verbose=False,
        weights_only=False,
    )
    return g


@lie
def compiled_prefix_fine_tuned(fixed):
    a, _ = trained()
    b = Net()
    sd = {("" if fixed else "_orig_mod.") + k: v for k, v in a.state_dict().items()}
    b.load_state_dict(sd, strict=False)
    return fitted(b)


@lie
def optimizer_of_another_instance(fixed):
    class N(Net):
        def configure_optimizers(self):
            m = self if fixed else copy.deepcopy(self)
            return torch.optim.Adam(m.parameters(), 1e-2)

    return fitted(N())


@lie
def optimizer_made_in_init_before_the_head(fixed):
    class N(Net):
        def __init__(self):
            super().__init__()
            if fixed:
                self.extra = nn.Linear(10, 10)
            self.o = torch.optim.Adam(self.parameters(), 1e-2)
            if not fixed:
                self.extra = nn.Linear(10, 10)

        def forward(self, x):
            return self.extra(F.relu(self.net(x)))

        def configure_optimizers(self):
            return self.o

    return fitted(N())


@lie
def frozen_by_mistake_in_a_hook(fixed):
    class N(Net):
        def training_step(self, b, i):
            with torch.set_grad_enabled(True):
                h = self.net[:3](b[0])
                if not fixed:
                    h = h.data
                return F.cross_entropy(self.net[3](h), b[1])

    return fitted(N())


@lie
def gumbel_hard_without_straight_through(fixed):
    class N(Net):
        def __init__(self):
            super().__init__()
            self.e = nn.Linear(16, 10)
            self.g = nn.Linear(64, 16)
            del self._modules["net"]

        def forward(self, x):
            s = self.g(x)
            hard = F.one_hot(s.argmax(1), 16).float()
            return self.e(
                hard + (s.softmax(1) - s.softmax(1).detach()) if fixed else hard
            )

    return fitted(N())


@lie
def running_mean_teacher_never_moved(fixed):
    class N(Net):
        def __init__(self):
            super().__init__()
            self.teacher = copy.deepcopy(self.net)

        def optimizer_step(self, *a, **k):
            super().optimizer_step(*a, **k)
            if fixed:
                with torch.no_grad():
                    for t, s in zip(self.teacher.parameters(), self.net.parameters()):
                        t.mul_(0.8).add_(s, alpha=0.2)

        def validation_step(self, b, i):
            z = self.teacher(b[0])
            self.log(
                "val_acc", (z.argmax(1) == b[1]).float().mean(), batch_size=len(b[1])
            )

        def configure_optimizers(self):
            return torch.optim.Adam(self.net.parameters(), 1e-2)

    return fitted(N())


@lie
def dataset_leak_by_random_split_twice(fixed):
    full = TensorDataset(X[:1000], Y[:1000])
    a, b = random_split(full, [800, 200], torch.Generator().manual_seed(0))
    c, d = random_split(
        full, [800, 200], torch.Generator().manual_seed(0 if fixed else 1)
    )
    return fitted(Net(), train=loader(a, True), val=loader(d))


@lie
def lists_of_dicts_leak(fixed):
    class L(Dataset):
        def __init__(self, r):
            self.rows = [{"x": X[i], "y": int(Y[i])} for i in r]

        def __len__(self):
            return len(self.rows)

        def __getitem__(self, i):
            return self.rows[i]["x"], self.rows[i]["y"]

    return fitted(
        Net(),
        train=loader(L(range(500)), True),
        val=loader(L(range(500, 600) if fixed else range(450, 550))),
    )


@lie
def leak_read_by_workers(fixed):
    class L(Dataset):
        def __init__(self, r):
            self.r = list(r)

        def __len__(self):
            return len(self.r)

        def __getitem__(self, i):
            return X[self.r[i]], int(Y[self.r[i]])

    return fitted(
        Net(),
        train=loader(L(range(500)), True, num_workers=1),
        val=loader(L(range(500, 600) if fixed else range(400, 500)), num_workers=1),
    )


@lie
def test_set_in_training_of_an_earlier_logger_run(fixed):
    from lightning.pytorch.loggers import CSVLogger

    root = tempfile.mkdtemp()
    t, g = trainer(guard=EvalGuard(sync="ignore"), logger=CSVLogger(root))
    n = Net()
    t.fit(n, loader(TRAIN, True), loader(VAL))
    p = root + "/m.ckpt"
    t.save_checkpoint(p)
    t, g = trainer(guard=EvalGuard(sync="ignore"), logger=CSVLogger(root))
    t.test(
        Net(),
        loader(TEST if fixed else TRAIN),
        ckpt_path=p,
        verbose=False,
        weights_only=False,
    )
    return g


@lie
def group_in_a_numpy_record(fixed):
    import numpy as np

    class P(Dataset):
        def __init__(self, d, who):
            self.d = d
            self.subject_ids = np.array(who)

        def __len__(self):
            return len(self.d[1])

        def __getitem__(self, i):
            return self.d[0][i], self.d[1][i]

    return fitted(
        Net(),
        train=loader(P(TRAIN, [f"p{i % 90}" for i in range(1000)]), True),
        val=loader(P(VAL, [f"p{i % 30 + 100 * fixed}" for i in range(301)])),
    )


@lie
def groups_keyword_by_key(fixed):
    class P(Dataset):
        def __init__(self, d, off):
            self.d, self.off = d, off

        def __len__(self):
            return len(self.d[1])

        def __getitem__(self, i):
            return {
                "x": self.d[0][i],
                "y": self.d[1][i],
                "site_visit": i % 40 + self.off,
            }

    class N(Net):
        def training_step(self, b, i):
            return super().training_step((b["x"], b["y"]), i)

        def validation_step(self, b, i):
            return super().validation_step((b["x"], b["y"]), i)

    return fitted(
        N(),
        train=loader(P(TRAIN, 0), True),
        val=loader(P(VAL, 500 * fixed)),
        guard=EvalGuard(sync="ignore", groups="site_visit"),
    )


@lie
def iterable_without_worker_split_in_test(fixed):
    class St(IterableDataset):
        def __iter__(self):
            w = get_worker_info()
            a, n = (w.id, w.num_workers) if w and fixed else (0, 1)
            for i in range(1301 + a, 1600, n):
                yield X[i], Y[i]

    n, _ = trained()
    t, g = trainer()
    t.test(n, DataLoader(St(), 32, num_workers=3), verbose=False)
    return g


@lie
def pad_id_differs(fixed):
    def col(pad):
        def c(b):
            from torch.nn.utils.rnn import pad_sequence

            d = collate(b)
            d["ids"] = pad_sequence(
                [t for t, _ in b], batch_first=True, padding_value=pad
            )
            return d

        return c

    class M(S):
        def pool(self, h, b):
            m = b["mask"][..., None].float()
            return (h * m).sum(1) / m.sum(1)

    return fitted(
        M(True),
        train=DataLoader(Seqs(200, 0), 16, shuffle=True, collate_fn=col(0)),
        val=DataLoader(Seqs(80, 1), 16, collate_fn=col(0 if fixed else 29)),
    )


@lie
def stop_by_loss_named_score(fixed):
    class N(Net):
        def validation_step(self, b, i):
            z = self(b[0])
            l = F.cross_entropy(z, b[1])
            self.log("val_score", l, batch_size=len(b[1]))
            self.log("val_loss", l, batch_size=len(b[1]))

    return fitted(
        N(),
        EarlyStopping("val_score", mode="min" if fixed else "max", patience=9),
        epochs=3,
    )


@lie
def sub_checkpoint_callback_of_the_test(fixed):
    class Ck(ModelCheckpoint):
        def __init__(self):
            super().__init__(monitor="val_acc" if fixed else "acc/test", mode="max")

    class N(Net):
        def validation_step(self, b, i, dataloader_idx=0):
            self.log(
                ["val_acc", "acc/test"][dataloader_idx],
                (self(b[0]).argmax(1) == b[1]).float().mean(),
                batch_size=len(b[1]),
                add_dataloader_idx=False,
            )

    return fitted(N(), Ck(), val=[loader(VAL), loader(TEST)])
