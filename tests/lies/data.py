"""Which samples are scored? Each lie with its honest twin."""

import functools
import copy, os, tempfile, sys
from lies.common import *
from lies.common import fitted as fitted_in_epochs
from torch.utils.data import *
import numpy as np, random

fitted = functools.partial(fitted_in_epochs, epochs=1)

IMG_T, IMG_V, IMG_E = ((x.reshape(-1, 1, 8, 8), y) for x, y in (TRAIN, VAL, TEST))


def rgb(d):  # colourful
    x, y = d
    x = x.reshape(-1, 1, 8, 8)
    return torch.cat([x, x * 0.5 + 0.1, x * 0.1 + 0.7], 1), y


class Conv(Net):
    def __init__(self, c=3):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(c, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)
        )

    def forward(self, x):
        return self.net(x.float())


class Tr(Dataset):
    def __init__(self, d, f=lambda x: x, **kw):
        self.d, self.f = d, f
        self.__dict__.update(kw)

    def __len__(self):
        return len(self.d[1])

    def __getitem__(self, i):
        return self.f(self.d[0][i]), self.d[1][i]


def pair(name, lie_f, twin_f, train_f=None, data=rgb, net=Conv, **kw):
    def f(fixed):
        return fitted(
            net(),
            train=loader(Tr(data(TRAIN), train_f or twin_f), True),
            val=loader(Tr(data(VAL), twin_f if fixed else lie_f)),
        )

    f.__name__ = name
    return lie(f)


M, S = (
    torch.tensor([0.5, 0.4, 0.7])[:, None, None],
    torch.tensor([0.3, 0.2, 0.05])[:, None, None],
)
pair("bgr_in_validation", lambda x: x.flip(0), lambda x: x)
pair("bgr_normalised", lambda x: (x.flip(0) - M) / S, lambda x: (x - M) / S)
pair("normalised_on_one_side", lambda x: x, lambda x: (x - M) / S)
pair("normalised_twice", lambda x: ((x - M) / S - M) / S, lambda x: (x - M) / S)
pair("bytes_on_one_side", lambda x: (x * 255).round(), lambda x: x)
pair("uint8_on_one_side", lambda x: (x * 255).to(torch.uint8), lambda x: x)
pair("scaled_twice", lambda x: x / 255, lambda x: x)
pair("mean_forgotten", lambda x: x / S, lambda x: (x - M) / S)
pair("std_forgotten", lambda x: x - M, lambda x: (x - M) / S)
pair("inverted", lambda x: 1 - x, lambda x: x)
pair(
    "imagenet_of_vit",
    lambda x: (x - 0.5) / 0.5,
    lambda x: (
        (x - torch.tensor([0.485, 0.456, 0.406])[:, None, None])
        / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    ),
)
pair(
    "grey_inverted",
    lambda x: 1 - x,
    lambda x: x,
    data=lambda d: (d[0].reshape(-1, 1, 8, 8), d[1]),
    net=lambda: Conv(1),
)
pair(
    "grey_bytes",
    lambda x: x * 255,
    lambda x: x,
    data=lambda d: (d[0].reshape(-1, 1, 8, 8), d[1]),
    net=lambda: Conv(1),
)
pair(
    "augmented_train_only",
    lambda x: x * 255,
    lambda x: x,
    train_f=lambda x: (
        (x.flip(2) if torch.rand(()) < 0.5 else x) + 0.05 * torch.randn_like(x)
    ),
)
pair(
    "channels_last_on_one_side",
    lambda x: x.permute(1, 2, 0),
    lambda x: x,
    net=lambda: ChanAny(),
)


class ChanAny(Net):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(192, 10)

    def forward(self, x):
        return self.net(x.float().flatten(1))


pair("float64_on_one_side", lambda x: x.double() * 255, lambda x: x)


# tables
def table(d):
    return d


def std(stats_of):
    m, s = stats_of[0].mean(0), stats_of[0].std(0) + 1e-3
    return lambda x: (x - m) / s


class Flat(Net):
    def forward(self, x):
        return self.net(x.float())


pair(
    "table_not_standardised",
    lambda x: x,
    std((TRAIN[0] * 16,)),
    data=lambda d: (d[0] * 16, d[1]),
    net=Flat,
)
pair(
    "table_standardised_on_raw_stats",
    lambda x: x * 16,
    std(TRAIN),
    data=table,
    net=Flat,
)


# classes
class Fold(Dataset):
    def __init__(self, d, names, **kw):
        self.classes = list(names)
        self.class_to_idx = {c: i for i, c in enumerate(self.classes)}
        self.x, self.targets = d[0], [self.class_to_idx[str(int(c))] for c in d[1]]
        self.__dict__.update(kw)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], self.targets[i]


names = [str(i) for i in range(10)]


@lie
def order_of_classes_differs(fixed):
    return fitted(
        Net(),
        train=loader(Fold(TRAIN, names), True),
        val=loader(Fold(VAL, names if fixed else names[::-1])),
    )


@lie
def label_encoder_fitted_twice(fixed):
    from sklearn.preprocessing import LabelEncoder

    class D(Dataset):
        def __init__(self, d, enc=None):
            labels = [f"c{int(v)}" for v in d[1]]
            self.enc = enc or LabelEncoder().fit(labels)
            self.x, self.y = d[0], self.enc.transform(labels)

        def __len__(self):
            return len(self.x)

        def __getitem__(self, i):
            return self.x[i], int(self.y[i])

    keep = VAL[1] != 3
    v = (VAL[0][keep], VAL[1][keep])
    tr = D(TRAIN)
    return fitted(
        Net(), train=loader(tr, True), val=loader(D(v, tr.enc if fixed else None))
    )


@lie
def mapping_in_a_local_attribute(fixed):
    class D(Dataset):
        def __init__(self, d, m):
            self.label2id = m
            self.x = d[0]
            self.y = [m[f"d{int(v)}"] for v in d[1]]

        def __len__(self):
            return len(self.x)

        def __getitem__(self, i):
            return self.x[i], self.y[i]

    m = {f"d{i}": i for i in range(10)}
    return fitted(
        Net(),
        train=loader(D(TRAIN, m), True),
        val=loader(D(VAL, m if fixed else {f"d{i}": (i + 1) % 10 for i in range(10)})),
    )


@lie
def vocabulary_built_on_each_side(fixed):
    class Text(Dataset):
        def __init__(self, d, vocab=None):
            words = [[f"w{int(v * 15)}" for v in row] for row in d[0]]
            self.vocab = vocab or {
                w: i for i, w in enumerate(dict.fromkeys(w for r in words for w in r))
            }
            self.ids = [torch.tensor([self.vocab.get(w, 0) for w in r]) for r in words]
            self.y = d[1]

        def __len__(self):
            return len(self.y)

        def __getitem__(self, i):
            return self.ids[i], self.y[i]

    class T(Net):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(
                nn.Embedding(40, 8), nn.Flatten(), nn.Linear(512, 10)
            )

    tr = Text(TRAIN)
    return fitted(
        T(), train=loader(tr, True), val=loader(Text(VAL, tr.vocab if fixed else None))
    )


# groups
class Patients(Dataset):
    def __init__(self, d, who, **kw):
        self.d = d
        self.__dict__.update(who)

    def __len__(self):
        return len(self.d[1])

    def __getitem__(self, i):
        return self.d[0][i], self.d[1][i]


def who(name, make):
    def f(fixed):
        a = make([i % 50 for i in range(1000)])
        b = make([(i % 20) + (1000 if fixed else 0) for i in range(301)])
        return fitted(
            Net(),
            train=loader(Patients(TRAIN, {name: a}), True),
            val=loader(Patients(VAL, {name: b})),
        )

    f.__name__ = "group_in_" + name
    return lie(f)


who("patient_ids", list)
who("subject", torch.tensor)
who("speaker_id", lambda v: [f"s{x}" for x in v])
who("pids", np.array)
who("rows", lambda v: [{"patient": x, "age": 3} for x in v])
who("groups", np.array)


@lie
def group_by_file_name(fixed):
    a = [f"/d/patient{i % 50:03d}_slice{i}.png" for i in range(1000)]
    b = [
        f"/d/patient{(i % 20) + (100 if fixed else 0):03d}_slice{i + 5000}.png"
        for i in range(301)
    ]
    return fitted(
        Net(),
        train=loader(Patients(TRAIN, {"files": a}), True),
        val=loader(Patients(VAL, {"files": b})),
    )


@lie
def group_by_callable(fixed):
    class G(Dataset):
        def __init__(self, d, who):
            self.d, self.w = d, who

        def __len__(self):
            return len(self.w)

        def __getitem__(self, i):
            return self.d[0][i], self.d[1][i], self.w[i]

    class N(Net):
        def training_step(self, b, i):
            return super().training_step(b[:2], i)

        def validation_step(self, b, i):
            return super().validation_step(b[:2], i)

    g = EvalGuard(sync="ignore", groups=lambda s: s[2])
    return fitted(
        N(),
        train=loader(G(TRAIN, [i % 50 for i in range(1000)]), True),
        val=loader(G(VAL, [i % 20 + 500 * fixed for i in range(301)])),
        guard=g,
    )


@lie
def random_split_of_windows_of_one_recording(fixed):
    full = Patients((X[:600], Y[:600]), {"recording": [i // 30 for i in range(600)]})
    a, b = (
        (Subset(full, range(480)), Subset(full, range(480, 600)))
        if fixed
        else random_split(full, [480, 120], torch.Generator().manual_seed(0))
    )
    return fitted(Net(), train=loader(a, True), val=loader(b))


# repetition
@lie
def sampler_with_replacement(fixed):
    ds = TensorDataset(*VAL)
    return fitted(
        Net(),
        val=DataLoader(
            ds,
            64,
            sampler=None
            if fixed
            else RandomSampler(ds, replacement=True, num_samples=301),
        ),
    )


@lie
def own_sampler_twice(fixed):
    ds = TensorDataset(*VAL)

    class S(Sampler):
        def __iter__(self):
            return iter([i for i in range(301) for _ in range(1 if fixed else 2)])

        def __len__(self):
            return 301 * (1 if fixed else 2)

    return fitted(Net(), val=DataLoader(ds, 64, sampler=S()))


@lie
def own_batch_sampler_overlapping(fixed):
    ds = TensorDataset(*VAL)
    bs = [list(range(i, min(i + 64, 301))) for i in range(0, 301, 64 if fixed else 32)]
    return fitted(Net(), val=DataLoader(ds, batch_sampler=bs))


class Stream(IterableDataset):
    def __init__(self, d, split, twice=False):
        self.d, self.split, self.twice = d, split, twice

    def __iter__(self):
        info = get_worker_info()
        a, n = (info.id, info.num_workers) if info and self.split else (0, 1)
        for _ in range(2 if self.twice else 1):
            for i in range(a, len(self.d[1]), n):
                yield self.d[0][i], self.d[1][i]


@lie
def stream_read_by_every_worker(fixed):
    return fitted(Net(), val=loader(Stream(VAL, fixed), num_workers=2))


@lie
def stream_twice(fixed):
    return fitted(Net(), val=loader(Stream(VAL, True, not fixed)))


@lie
def subset_with_repeated_indices(fixed):
    return fitted(
        Net(),
        val=loader(
            Subset(
                TensorDataset(*VAL),
                list(range(301)) + ([] if fixed else list(range(100))),
            )
        ),
    )


@lie
def dataset_that_repeats_itself(fixed):
    class Rep(Dataset):
        def __len__(self):
            return 301 * (1 if fixed else 3)

        def __getitem__(self, i):
            return VAL[0][i % 301], VAL[1][i % 301]

    return fitted(Net(), val=loader(Rep()))


# leaks
@lie
def test_on_validation(fixed):
    t, g = trainer()
    net = Net()
    v = TensorDataset(*VAL)
    t.fit(net, loader(TRAIN, True), loader(v))
    t.test(net, loader(TEST) if fixed else loader(v), verbose=False)
    return g


@lie
def validated_on_train_alone(fixed):
    t, g = trainer()
    net = Net()
    tr = loader(TRAIN, True)
    t.fit(net, tr, loader(VAL))
    t.validate(net, loader(VAL) if fixed else loader(TRAIN), verbose=False)
    return g


@lie
def leak_through_a_transform(fixed):
    a = Tr((X[:1000], Y[:1000]), lambda x: (x - 0.3) / 0.4)
    b = Tr(
        (
            X[1000:1301] if fixed else X[800:1101],
            Y[1000:1301] if fixed else Y[800:1101],
        ),
        lambda x: (x - 0.3) / 0.4,
    )
    return fitted(Net(), train=loader(a, True), val=loader(b))


@lie
def leak_of_augmented_rows(fixed):
    a = Tr((X[:1000], Y[:1000]), lambda x: x + 0.1 * torch.randn_like(x))
    s = slice(1000, 1301) if fixed else slice(800, 1101)
    return fitted(Net(), train=loader(a, True), val=loader(Tr((X[s], Y[s]))))


@lie
def oversampled_before_the_split(fixed):
    g = torch.Generator().manual_seed(0)
    idx = torch.arange(1000)
    if fixed:
        tr, va = idx[:800].repeat(2), idx[800:]
    else:
        big = idx.repeat(2)[torch.randperm(2000, generator=g)]
        tr, va = big[:1600], big[1600:].unique()
    return fitted(Net(), train=loader((X[tr], Y[tr]), True), val=loader((X[va], Y[va])))


@lie
def numpy_files_shared(fixed):
    d = tempfile.mkdtemp()
    for i in range(120):
        np.save(f"{d}/{i}.npy", X[i].numpy())

    class Files(Dataset):
        def __init__(self, ids):
            self.paths = [f"{d}/{i}.npy" for i in ids]
            self.ids = list(ids)

        def __len__(self):
            return len(self.paths)

        def __getitem__(self, i):
            return torch.from_numpy(np.load(self.paths[i])), int(Y[self.ids[i]])

    return fitted(
        Net(),
        train=loader(Files(range(80)), True),
        val=loader(Files(range(80, 120) if fixed else range(60, 100))),
    )


@lie
def earlier_process_training_set(fixed):
    folder = tempfile.mkdtemp()
    t, g = trainer(guard=EvalGuard(sync="ignore", record=folder))
    net = Net()
    t.fit(net, loader(TRAIN, True), loader(VAL))
    p = folder + "/w.ckpt"
    t.save_checkpoint(p)
    del t, g
    t, g = trainer(guard=EvalGuard(sync="ignore", record=folder))
    n2 = Net.load_from_checkpoint(p)
    t.test(
        n2,
        loader(TEST)
        if fixed
        else loader(
            (TRAIN[0][torch.randperm(1000)[:0].tolist() + list(range(1000))], TRAIN[1])
        ),
        verbose=False,
    )
    return g


@lie
def earlier_process_part_of_the_training_set(fixed):
    folder = tempfile.mkdtemp()
    t, g = trainer(guard=EvalGuard(sync="ignore", record=folder))
    net = Net()
    t.fit(net, loader(TRAIN, True), loader(VAL))
    p = folder + "/w.ckpt"
    t.save_checkpoint(p)
    t, g = trainer(guard=EvalGuard(sync="ignore", record=folder))
    n2 = Net.load_from_checkpoint(p)
    s = slice(1301, 1600) if fixed else slice(900, 1000)
    t.validate(n2, loader((X[s].clone(), Y[s].clone())), verbose=False)
    return g


@lie
def second_loader_is_the_training_set(fixed):
    tr = loader(TRAIN, True)

    class N(Net):
        def validation_step(self, b, i, dataloader_idx=0):
            return super().validation_step(b, i)

    t, g = trainer()
    t.fit(
        N(),
        tr,
        [loader(VAL), loader(tr.dataset)]
        if fixed
        else [loader(tr.dataset), loader(VAL)],
    )
    return g
