"""Sets that only reading tells apart: scalers in a dataset, shuffled windows, keys of samples."""

import numpy as np
from lies.common import *
from lies.honest import honest
from lies.quiet import Table, at_random, by_time, on, table, walk
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import RobustScaler, StandardScaler
from torch.utils.data import Subset


# scalers in a dataset
class Scaled(Dataset):
    """Rows that are scaled as they are read, by statistics that `fit` has of `of`."""

    def __init__(self, x, y, fit, of=None):
        self.x, self.y = x, y
        self.scale = fit(x if of is None else of)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return torch.as_tensor(self.scale(self.x[i])).float(), self.y[i]


def each_its_own(name, fit, load=load_breast_cancer, prepare=lambda x: x):
    def f(fixed):
        x, y = table(load)
        x = prepare(x)
        n = int(0.7 * len(x))
        train = Scaled(x[:n], y[:n], fit)
        val = Scaled(x[n:], y[n:], fit, x[:n] if fixed else None)
        net = Table(train[0][0].numel(), int(y.max()) + 1)
        return fitted(net, train=loader(train, True), val=loader(val), epochs=1)

    f.__name__ = "each_dataset_scales_by_its_own_" + name
    lie(f)


def scikit(kind):
    def fit(x):
        scaler = kind().fit(x)
        return lambda row: scaler.transform(row[None])[0]

    return fit


def by_columns(x):
    mean, spread = x.mean(0), x.std(0)
    return lambda row: (row - mean) / (spread + 1e-8)


def by_all(x):
    mean, spread = float(x.mean()), float(x.std())
    return lambda row: (row - mean) / spread


def by_ends(x):
    low, high = x.min(0).values, x.max(0).values
    return lambda row: (row - low) / (high - low)


def by_channels(x):
    mean, spread = x.mean((0, 2, 3)), x.std((0, 2, 3))
    return lambda row: (row - mean[:, None, None]) / spread[:, None, None]


def coloured(x):
    return torch.stack([x[:, :16], 2 * x[:, 4:20] + 1], 1).view(-1, 2, 4, 4)


each_its_own("scaler", scikit(StandardScaler), prepare=lambda x: x.numpy())
each_its_own("quartiles", scikit(RobustScaler), load_wine, lambda x: x.numpy())
each_its_own("mean_and_deviation", by_columns)
each_its_own("mean_over_all", by_all)
each_its_own("ends", by_ends)
each_its_own("mean", lambda x: lambda row, m=x.mean(0): row - m, load_wine)
each_its_own("channels", by_channels, prepare=coloured)


class Transformed(Dataset):
    """Samples of another dataset, given to a transform."""

    def __init__(self, dataset, transform):
        self.dataset, self.transform = dataset, transform

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, i):
        x, y = self.dataset[i]
        return self.transform(x), y


def transformed(name, parts):
    def f(fixed):
        x, y = table(load_breast_cancer)
        sets, rows = parts(x, y), (x[:400], x[400:])
        transforms = [by_columns(rows[0]), by_columns(rows[0] if fixed else rows[1])]
        train, val = map(Transformed, sets, transforms)
        net = Table(30, 2)
        return fitted(net, train=loader(train, True), val=loader(val), epochs=1)

    f.__name__ = name
    lie(f)


transformed(
    "transforms_of_each_set",
    lambda x, y: (TensorDataset(x[:400], y[:400]), TensorDataset(x[400:], y[400:])),
)
transformed(
    "transforms_of_each_part_of_one_set",
    lambda x, y: (
        Subset(TensorDataset(x, y), range(400)),
        Subset(TensorDataset(x, y), range(400, len(x))),
    ),
)


def scaled(fit):
    x, y = table(load_breast_cancer)
    train, val = Scaled(x[:400], y[:400], fit), Scaled(x[400:], y[400:], fit)
    net = Table(30, 2)
    return fitted(net, train=loader(train, True), val=loader(val), epochs=1)


@honest
def scales_that_are_no_statistics_of_a_set():
    def itself(x):
        return lambda row: (row - row.mean()) / row.std()

    def never_used(x):
        mean = x.mean(0)
        return lambda row: row + 0 * mean

    def constants(x):
        return lambda row: (row - 0.1307) / 0.3081

    def logarithm(x):
        return lambda row: torch.log1p(row)

    guard = None
    for fit in (itself, never_used, constants, logarithm):
        guard = scaled(fit)
        assert not guard.report.findings
    return guard


# windows whose neighbours no index tells
def lags(series, width=16):
    x = series.unfold(0, width, 1).contiguous()
    if x.ndim == 3:
        x = x.transpose(1, 2).contiguous()
    return x, torch.arange(len(x)) % 2


def parted(name, make):
    def f(fixed):
        return on(*make(fixed))

    f.__name__ = name
    lie(f)


def order(n, fixed):
    if fixed:
        return torch.arange(n)
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))


def as_tensors(fixed, series=None, hop=1):
    x, y = lags(walk(420) if series is None else series)
    x, y = x[::hop], y[::hop]
    chosen, n = order(len(x), fixed), int(0.75 * len(x))
    return [TensorDataset(x[p], y[p]) for p in (chosen[:n], chosen[n:])]


def as_arrays(fixed):
    x, y = lags(walk(420, 3), 24)
    parts = train_test_split(
        x.numpy(), y.numpy(), shuffle=not fixed, random_state=None if fixed else 0
    )
    a, b, c, d = map(torch.from_numpy, parts)
    return TensorDataset(a, c), TensorDataset(b, d)


def shuffled_first(fixed):
    x, y = lags(walk(420))
    chosen = order(len(x), fixed)
    return (by_time if fixed else at_random)(TensorDataset(x[chosen], y[chosen]))


class Places(Dataset):
    """Windows of one series at places of its own."""

    def __init__(self, series, places):
        self.series, self.places = series, places

    def __len__(self):
        return len(self.places)

    def __getitem__(self, i):
        at = self.places[i]
        return self.series[at : at + 16], at % 2


def at_places(fixed):
    series, chosen = walk(420), order(400, fixed).tolist()
    return Places(series, chosen[:300]), Places(series, chosen[300:])


parted("shuffled_windows_split_as_tensors", as_tensors)
parted("shuffled_windows_some_steps_apart", lambda fixed: as_tensors(fixed, hop=4))
parted(
    "shuffled_windows_of_several_series", lambda fixed: as_tensors(fixed, walk(420, 2))
)
parted("shuffled_windows_split_as_arrays", as_arrays)
parted("windows_shuffled_before_they_are_split", shuffled_first)
parted("each_dataset_cuts_windows_at_places_of_its_own", at_places)


@lie
def windows_of_the_evaluation_are_not_scaled(fixed):
    x, y = lags(walk(420))
    scale = 20 if not fixed else 1
    train, val = (
        TensorDataset(x[:300], y[:300]),
        TensorDataset(scale * x[300:], y[300:]),
    )
    return on(train, val)


@honest
def blocks_of_a_series_as_tensors():
    x, y = lags(walk(420))
    block = torch.zeros(len(x), dtype=torch.bool)
    block[80:180] = True
    guard = on(TensorDataset(x[~block], y[~block]), TensorDataset(x[block], y[block]))
    assert not guard.report.findings
    few = order(len(x), True)[-20:]
    return on(TensorDataset(x[:-20], y[:-20]), TensorDataset(x[few], y[few]))


@honest
def series_that_go_further_in_the_evaluation():
    steps = walk(900) + torch.arange(900) / 4
    x, y = lags(steps)
    return on(TensorDataset(x[:700], y[:700]), TensorDataset(x[720:], y[720:]))


# groups in samples
class Records(Dataset):
    def __init__(self, d, who, key):
        self.d, self.w, self.k = d, who, key

    def __len__(self):
        return len(self.w)

    def __getitem__(self, i):
        return {"x": self.d[0][i], "y": self.d[1][i], self.k: self.w[i]}


class OfRecords(Net):
    def training_step(self, b, i):
        return super().training_step((b["x"], b["y"]), i)

    def validation_step(self, b, i):
        return super().validation_step((b["x"], b["y"]), i)


def grouped(name, make):
    def f(fixed):
        a, b = make([i % 50 for i in range(1000)], [i % 20 for i in range(301)], fixed)
        return fitted(OfRecords(), train=loader(a, True), val=loader(b), epochs=1)

    f.__name__ = name
    lie(f)


def listed(d, who):
    x, y = d
    return [{"x": x[i], "y": y[i], "subject": w} for i, w in enumerate(who)]


grouped(
    "groups_in_a_list_of_records",
    lambda a, b, fixed: (
        listed(TRAIN, a),
        listed(VAL, [w + 100 * fixed for w in b]),
    ),
)
grouped(
    "groups_in_the_samples_alone",
    lambda a, b, fixed: (
        Records(TRAIN, [f"p{w}" for w in a], "patient_id"),
        Records(VAL, [f"p{w + 100 * fixed}" for w in b], "patient_id"),
    ),
)


@honest
def who_speaks_is_the_label():
    class Speakers(OfRecords):
        def training_step(self, b, i):
            return Net.training_step(self, (b["x"], b["speaker"]), i)

        def validation_step(self, b, i):
            return Net.validation_step(self, (b["x"], b["speaker"]), i)

    def records(d):
        return [{"x": x, "speaker": int(y)} for x, y in zip(*d, strict=True)]

    return fitted(
        Speakers(),
        train=loader(records(TRAIN), True),
        val=loader(records(VAL)),
        epochs=1,
    )


# a label among the features
def with_column(kind, column, place=0):
    """A table with a column that `column` makes of the labels."""
    x, y = table(kind)
    x, y = torch.as_tensor(x), torch.as_tensor(y)
    x = ((x - x.mean(0)) / x.std(0)).float()
    added = column(y)
    if added is not None:
        x = torch.cat([x[:, :place], added[:, None], x[:, place:]], 1)
    half = len(x) // 2
    return fitted(
        Table(x.shape[1], int(y.max()) + 1),
        train=loader((x[:half], y[:half]), True, batch_size=32),
        val=loader((x[half:], y[half:]), batch_size=32),
    )


@lie
def label_is_a_feature(fixed):
    return with_column(load_breast_cancer, lambda y: None if fixed else y.float(), 30)


@lie
def scaled_label_is_a_feature(fixed):
    def scaled(y):
        return None if fixed else (0.9 - y.float()) / 0.77

    return with_column(load_wine, scaled, 3)


@honest
def column_that_is_nearly_the_label():
    def nearly(y):
        column = y.float()
        column[::20] = 1 - column[::20]
        return column

    return with_column(load_breast_cancer, nearly)


@honest
def code_of_one_class_among_three():
    return with_column(load_wine, lambda y: (y == 1).float())


@honest
def class_of_the_sample_before():
    return with_column(load_breast_cancer, lambda y: y.roll(1).float())


@honest
def group_beside_the_label_is_a_feature():
    x, y = table(load_breast_cancer)
    group = (x[:, 0] > x[:, 0].median()).long()
    x = torch.cat([(x - x.mean(0)) / x.std(0), group[:, None].float()], 1)
    sets = [(x[:300], y[:300], group[:300]), (x[300:], y[300:], group[300:])]
    train, val = (loader(TensorDataset(*one), batch_size=32) for one in sets)
    return fitted(Table(31, 2), train=train, val=val)
