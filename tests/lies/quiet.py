"""Epochs that train nothing, ranks of decisions, scalers and windows; each with its twin."""

import sklearn.metrics
import torchmetrics.functional
from lies.common import *
from lies.honest import honest
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import MinMaxScaler, QuantileTransformer, StandardScaler
from torch.utils.data import Subset, SubsetRandomSampler, random_split
from torchmetrics.classification import (
    BinaryAUROC,
    BinaryAveragePrecision,
    MulticlassAccuracy,
    MulticlassAUROC,
)
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, PolynomialLR


# learning rates
def scheduled(make, interval="epoch", kind=torch.optim.Adam, **options):
    """A net whose optimizer is steered by the scheduler that `make` gives."""

    class N(Net):
        def configure_optimizers(self):
            optimizer = kind(self.parameters(), 1e-2, **options)
            return [optimizer], [{"scheduler": make(optimizer), "interval": interval}]

    return N()


def rises(steps):
    return lambda optimizer: LambdaLR(optimizer, lambda s: min(1.0, s / steps))


@lie
def warmup_by_epochs_begins_at_nothing(fixed):
    def made(optimizer):
        return LambdaLR(optimizer, lambda epoch: (epoch + fixed) / 3)

    return fitted(scheduled(made), epochs=2)


@lie
def warmup_of_steps_is_stepped_by_epochs(fixed):
    steps = scheduled(rises(20), "step" if fixed else "epoch", torch.optim.SGD)
    return fitted(steps, epochs=2)


@lie
def cosine_ends_before_the_fit(fixed):
    return fitted(scheduled(lambda o: CosineAnnealingLR(o, 2 + fixed)), epochs=3)


@lie
def polynomial_ends_before_the_fit(fixed):
    kind, options = torch.optim.AdamW, {"fused": True}
    made = scheduled(lambda o: PolynomialLR(o, 2 + fixed), kind=kind, **options)
    return fitted(made, epochs=3)


@lie
def rate_by_hand_begins_at_nothing(fixed):
    class N(Net):
        def on_train_epoch_start(self):
            for group in self.optimizers().param_groups:
                group["lr"] = 1e-2 * (self.current_epoch + fixed) / 3

    return fitted(N(), epochs=2)


@lie
def frozen_layers_beside_a_rate_of_nothing(fixed):
    class N(Net):
        def configure_optimizers(self):
            self.net[0].requires_grad_(False)
            groups = [{"params": self.net[i].parameters()} for i in (0, 3)]
            optimizer = torch.optim.SGD(groups, 0.1)
            rates = [lambda e: 1.0, lambda e: (e + fixed) / 3]
            return [optimizer], [LambdaLR(optimizer, rates)]

    return fitted(N(), accumulate_grad_batches=4)


@honest
def warmup_whose_epoch_is_one_step():
    return fitted(scheduled(rises(3)), limit_train_batches=1)


@honest
def warmup_by_steps_over_gathered_batches():
    return fitted(scheduled(rises(3), "step"), accumulate_grad_batches=16, epochs=3)


@honest
def one_group_of_two_waits_an_epoch():
    class N(Net):
        def configure_optimizers(self):
            groups = [{"params": self.net[i].parameters()} for i in (0, 3)]
            optimizer = torch.optim.SGD(groups, 0.1)
            rates = [lambda e: float(e > 0), lambda e: 1.0]
            return [optimizer], [LambdaLR(optimizer, rates)]

    return fitted(N())


@honest
def one_optimizer_of_two_waits_an_epoch():
    class N(Net):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.critic = nn.Linear(10, 1)

        def configure_optimizers(self):
            a = torch.optim.Adam(self.net.parameters(), 1e-3)
            b = torch.optim.SGD(self.critic.parameters(), 1e-3)
            return [a, b], [LambdaLR(a, lambda e: float(e > 0))]

        def training_step(self, b, i):
            z, optimizer = self(b[0]), self.optimizers()[i % 2]
            loss = self.critic(z.detach()).square().mean()
            if i % 2 == 0:
                loss = F.cross_entropy(z, b[1])
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

        def on_train_epoch_end(self):
            self.lr_schedulers().step()

    return fitted(N())


@honest
def rate_of_nothing_on_purpose():
    class N(Net):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.0)

    return fitted(N())


# a softmax over the batch
def right(answers, y):
    return (answers == y).float().mean()


class Logs(Net):
    """Logs what a function of the net, the logits and the labels gives."""

    def __init__(self, step, fixed=True):
        super().__init__()
        self.step, self.fixed = step, fixed
        self.acc = MulticlassAccuracy(10, average="micro")
        self.auroc = MulticlassAUROC(10)

    def validation_step(self, b, i):
        size = len(b[1])
        value = self.step(self, self(b[0]), b[1], int(self.fixed))
        self.log("val_it", value, batch_size=size)

    test_step = validation_step


def normalised(step, test=False):
    def f(fixed):
        net = Logs(step, fixed)
        if test:
            return tested(trained(net)[0])
        return fitted(net, epochs=1)

    f.__name__ = step.__name__ + ("_in_a_test" if test else "")
    return lie(f)


def softmax_over_the_batch(self, z, y, dim):
    return right(z.softmax(dim).argmax(1), y)


def softmax_module_over_the_batch(self, z, y, dim):
    return right(nn.Softmax(dim=dim)(z).max(dim=1)[1], y)


def best_three_over_the_batch(self, z, y, dim):
    three = F.softmax(z, dim - 2).topk(3, 1).indices
    return (three == y[:, None]).any(1).float().mean()


def metric_of_shares_of_the_batch(self, z, y, dim):
    self.acc(z.softmax(dim), y)
    return self.acc


def ranks_of_shares_of_the_batch(self, z, y, dim):
    self.auroc(z.softmax(dim), y)
    return self.auroc


def logarithms_over_the_batch(self, z, y, dim):
    return F.nll_loss(F.log_softmax(z, dim), y)


def implicit_dim_of_three(self, z, y, dim):
    words = z[:, None, :].expand(-1, 3, -1)
    probs = F.softmax(words, *([-1] if dim else []))
    return right(probs.argmax(-1), y[:, None])


for step in (
    softmax_over_the_batch,
    softmax_module_over_the_batch,
    metric_of_shares_of_the_batch,
    ranks_of_shares_of_the_batch,
    logarithms_over_the_batch,
    implicit_dim_of_three,
):
    normalised(step)
for step in (
    softmax_over_the_batch,
    best_three_over_the_batch,
    metric_of_shares_of_the_batch,
    logarithms_over_the_batch,
):
    normalised(step, test=True)


def balanced(self, z, y, dim):
    for _ in range(3):
        z = z.log_softmax(1).log_softmax(0)
    return right(z.argmax(1), y)


def pooled(self, z, y, dim):
    shares = z[:, :3].softmax(0)
    best = shares.argmax(0)
    return F.cross_entropy(z + 0 * (shares.T @ z).mean(0) + 0 * best.sum(), y)


def classes_come_first(self, z, y, dim):
    return right(z.T.contiguous().softmax(0).argmax(0), y)


def pairs_in_both_directions(self, z, y, dim):
    alike = z @ z.T
    own = torch.arange(len(z))
    there = right(alike.softmax(0).argmax(1), own)
    return there + F.cross_entropy(alike, own) + F.cross_entropy(alike.T, own)


@honest
def softmaxes_that_are_meant():
    guard = None
    for step in (balanced, pooled, classes_come_first, pairs_in_both_directions):
        guard = fitted(Logs(step), guard=guard, epochs=1)
    return guard


def as_many_as_classes(step):
    def f(fixed):
        val = loader((VAL[0][:300], VAL[1][:300]), batch_size=10)
        return fitted(Logs(step, fixed), val=val, epochs=1)

    f.__name__ = step.__name__
    return lie(f)


def argmax_over_the_batch(self, z, y, dim):
    self.log("val_loss", F.cross_entropy(z, y), batch_size=len(y))
    return right(z.argmax(dim=dim), y)


def largest_over_the_batch_before_the_loss(self, z, y, dim):
    _, answers = torch.max(z, dim)
    hits = right(answers, y)
    self.log("val_loss", F.cross_entropy(z, y), batch_size=len(y))
    return hits


for step in (argmax_over_the_batch, largest_over_the_batch_before_the_loss):
    as_many_as_classes(step)


def classes_come_first_of_as_many(self, z, y, dim):
    F.cross_entropy(z, y)
    return right(z.T.contiguous().argmax(0), y)


def most_alike_of_as_many(self, z, y, dim):
    own = torch.arange(len(z))
    alike = z @ z.T
    F.cross_entropy(z, y)
    return right(alike.argmax(0), own) + 0 * right(z.argmax(1), y)


@honest
def largest_over_dim_0_that_are_meant():
    val = loader((VAL[0][:300], VAL[1][:300]), batch_size=10)
    guard = None
    for step in (classes_come_first_of_as_many, most_alike_of_as_many):
        guard = fitted(Logs(step), val=val, guard=guard, epochs=1)
    return guard


@honest
def softmax_over_a_batch_of_one():
    return fitted(
        Logs(softmax_over_the_batch, False), val=loader(VAL, batch_size=1), epochs=1
    )


# decisions where scores are ranked
class Yes(Net):
    """Whether a digit is above four; what is logged is made of all answers when the epoch ends."""

    def __init__(self, answers, make=None, score=None):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1))
        self.answers, self.score = answers, score
        self.metric = make() if make else None
        self.kept = []

    def training_step(self, b, i):
        target = (b[1] > 4).float()
        return F.binary_cross_entropy_with_logits(self(b[0])[:, 0], target)

    def validation_step(self, b, i):
        answers, y = self.answers(self(b[0])[:, 0]), (b[1] > 4).long()
        if self.metric is not None and self.score is None:
            self.metric.update(answers, y)
            self.log("val_rank", self.metric, batch_size=len(y))
        self.kept.append((answers, y))

    def on_validation_epoch_end(self):
        answers, y = (torch.cat(parts) for parts in zip(*self.kept))
        self.kept.clear()
        if self.score is not None:
            self.log("val_rank", float(self.score(self, answers, y)))


def ranked(name, decide, score=None, make=None, honest=torch.sigmoid):
    def f(fixed):
        return fitted(Yes(honest if fixed else decide, make, score), epochs=1)

    f.__name__ = name
    lie(f)


def yes(z):
    return (z > 0).float()


def rounded(z):
    return z.sigmoid().round()


ranked("auroc_of_decisions", yes, make=BinaryAUROC)
ranked("precision_of_rounded", rounded, make=BinaryAveragePrecision)
ranked("binned_auroc_of_decisions", yes, make=lambda: BinaryAUROC(thresholds=50))
ranked(
    "auroc_of_decisions_at_the_end", yes, lambda s, a, y: s.metric(a, y), BinaryAUROC
)
ranked(
    "sklearn_auc_of_decisions",
    yes,
    lambda s, a, y: roc_auc_score(y.numpy(), a.numpy()),
)
ranked(
    "sklearn_precision_of_booleans",
    lambda z: z > 0,
    lambda s, a, y: sklearn.metrics.average_precision_score(y.numpy(), a.numpy()),
)
ranked(
    "sklearn_curve_of_signs",
    torch.sign,
    lambda s, a, y: sklearn.metrics.auc(
        *sklearn.metrics.roc_curve(y.tolist(), a.tolist())[:2]
    ),
)
ranked(
    "function_of_decisions",
    yes,
    lambda s, a, y: torchmetrics.functional.auroc(a.float(), y, task="binary"),
)


@lie
def auroc_of_one_hot_answers(fixed):
    def step(self, z, y, dim):
        best = F.one_hot(z.argmax(1), 10).float()
        self.auroc.update(z.softmax(1) if dim else best, y)
        return self.auroc

    return fitted(Logs(step, fixed), epochs=1)


@honest
def answers_that_saturate():
    def saturated(z):
        return (z * 80).sigmoid()

    def area(self, a, y):
        return roc_auc_score(y.numpy(), a.numpy())

    guard = fitted(Yes(saturated, BinaryAUROC), epochs=1)
    return fitted(Yes(saturated, score=area), guard=guard, epochs=1)


@honest
def decisions_of_a_few_samples():
    few = loader(tuple(t[:15] for t in VAL))
    return fitted(Yes(yes, BinaryAUROC), val=few, epochs=1)


@honest
def decisions_of_a_teacher_as_labels():
    def area(self, a, y):
        drawn = torch.rand(len(y), generator=torch.Generator().manual_seed(0))
        teacher = (y.float() + drawn > 0.9).long()
        return torchmetrics.functional.auroc(a, teacher, task="binary")

    return fitted(Yes(torch.sigmoid, score=area), epochs=1)


# scalers
class Table(Net):
    """Classes of rows or images."""

    def __init__(self, features, classes):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(features, classes))

    def validation_step(self, b, i):
        loss = F.cross_entropy(self(b[0]), b[1])
        self.log("val_loss", loss, batch_size=len(b[1]))


def table(load):
    x, y = load(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).numpy()
    return torch.tensor(x[order]).float(), torch.tensor(y[order])


def fitted_to(train, val, y, make=TensorDataset):
    net = Table(train[0].numel(), int(y.max()) + 1)
    sets = make(train, y[: len(train)]), make(val, y[len(train) :])
    return fitted(net, train=loader(sets[0], True), val=loader(sets[1]), epochs=1)


def by_sklearn(scaler, train, val, fixed):
    scale = scaler().fit(train)
    other = scale if fixed else scaler().fit(val)
    return [
        torch.tensor(s.transform(x)).float() for s, x in ((scale, train), (other, val))
    ]


def by_statistics(x, of=None, dims=0):
    of = x if of is None else of
    mean, spread = of.mean(dims, keepdim=True), of.std(dims, keepdim=True)
    return (x - mean) / spread


class Arrays(Dataset):
    def __init__(self, x, y):
        self.x, self.y = x.numpy().copy(), y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], int(self.y[i])


@lie
def scaler_fitted_to_each_set(fixed):
    x, y = table(load_wine)
    return fitted_to(*by_sklearn(StandardScaler, x[:120], x[120:], fixed), y)


@lie
def scaler_fitted_to_each_array(fixed):
    x, y = table(load_breast_cancer)
    return fitted_to(*by_sklearn(StandardScaler, x[:400], x[400:], fixed), y, Arrays)


@lie
def ranges_fitted_to_each_set(fixed):
    x, y = table(load_breast_cancer)
    return fitted_to(*by_sklearn(MinMaxScaler, x[:400], x[400:], fixed), y)


@lie
def mean_and_deviation_of_each_set(fixed):
    x, y = table(load_wine)
    train, val = x[:120], x[120:]
    scaled = by_statistics(val, train if fixed else None)
    return fitted_to(by_statistics(train), scaled, y)


def images():
    drawn = torch.Generator().manual_seed(0)
    x = torch.rand(300, 3, 8, 8, generator=drawn)
    return x * torch.tensor([1.0, 2.0, 3.0])[:, None, None], torch.arange(300) % 3


@lie
def channels_of_each_set(fixed):
    x, y = images()
    train, val = x[:200], x[200:]
    scaled = by_statistics(val, train if fixed else None, (0, 2, 3))
    return fitted_to(by_statistics(train, dims=(0, 2, 3)), scaled, y)


@lie
def some_columns_of_each_set(fixed):
    x, y = table(load_wine)
    flags = (x[:, :3] > x[:, :3].mean(0)).float()
    train, val = x[:120], x[120:]
    scaled = by_statistics(val, train if fixed else None)
    return fitted_to(
        torch.cat([by_statistics(train), flags[:120]], 1),
        torch.cat([scaled, flags[120:]], 1),
        y,
    )


@honest
def ranges_that_are_clipped():
    x, y = table(load_breast_cancer)
    guard = None
    for scaler in (
        lambda: MinMaxScaler(clip=True),
        lambda: QuantileTransformer(n_quantiles=50),
    ):
        train, val = by_sklearn(scaler, x[:300], x[300:], True)
        guard = fitted_to(train, val, y)
        assert not guard.report.findings
    return guard


@honest
def scaled_before_the_split():
    x, y = table(load_wine)
    whole = TensorDataset(by_statistics(x), y)
    parts = Subset(whole, range(120)), Subset(whole, range(120, len(x)))
    net = Table(13, 3)
    return fitted(net, train=loader(parts[0], True), val=loader(parts[1]), epochs=1)


@honest
def images_normalised_each_by_itself():
    x, y = images()
    x = by_statistics(x, dims=(2, 3))
    return fitted_to(x[:200], x[200:], y)


@honest
def rows_normalised_each_by_itself():
    x, y = table(load_wine)
    x = by_statistics(x, dims=1)
    return fitted_to(x[:120], x[120:], y)


@honest
def subjects_normalised_each_by_itself():
    drawn = torch.Generator().manual_seed(0)
    x = torch.randn(400, 6, generator=drawn) + torch.arange(400)[:, None] // 50
    x = torch.cat([by_statistics(part) for part in x.split(50)])
    return fitted_to(x[:300], x[300:], torch.arange(400) % 3)


@honest
def balanced_codes():
    x = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]]).repeat(100, 1)
    return fitted_to(x[:300], x[300:], torch.arange(400) % 2)


# windows of one series
class Windows(Dataset):
    """Cut as they are read."""

    def __init__(self, series, hop=1, read=lambda x: x):
        self.series, self.hop, self.read = series, hop, read

    def __len__(self):
        return (len(self.series) - 17) // self.hop

    def __getitem__(self, i):
        at = i * self.hop
        return self.read(self.series[at : at + 16]), i % 2


def walk(*shape):
    drawn = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=drawn).cumsum(0)


def cut(series, hop=1):
    x = series.unfold(0, 16, hop).contiguous()
    return TensorDataset(x, torch.arange(len(x)) % 2)


def at_random(data, share=0.8):
    n = int(share * len(data))
    drawn = torch.Generator().manual_seed(0)
    return random_split(data, [n, len(data) - n], drawn)


def by_time(data):
    n = int(0.8 * len(data))
    return Subset(data, range(n)), Subset(data, range(n, len(data)))


def on(train, val):
    net = Table(torch.as_tensor(train[0][0]).numel(), 2)
    return fitted(net, train=loader(train, True), val=loader(val), epochs=1)


def windowed(name, data):
    def f(fixed):
        return on(*(by_time if fixed else at_random)(data()))

    f.__name__ = name
    lie(f)


windowed("windows_of_a_series_at_random", lambda: Windows(walk(420)))
windowed("windows_some_steps_apart_at_random", lambda: Windows(walk(420), 4))
windowed("windows_cut_before_the_split", lambda: cut(walk(420)))
windowed("windows_of_arrays", lambda: Windows(walk(420), read=lambda x: x.numpy()))
windowed("windows_of_several_series", lambda: Windows(walk(420, 3)))
windowed(
    "windows_with_channels_first", lambda: Windows(walk(420, 3), read=lambda x: x.T)
)


@lie
def windows_by_two_samplers(fixed):
    data, n = Windows(walk(420)), 320
    order = torch.arange(len(data))
    if not fixed:
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    parts = order[:n].tolist(), order[n:].tolist()
    train = DataLoader(data, 32, sampler=SubsetRandomSampler(parts[0]))
    return fitted(
        Table(16, 2), train=train, val=loader(Subset(data, parts[1])), epochs=1
    )


@honest
def windows_that_do_not_overlap():
    return on(*at_random(Windows(walk(3000), 16)))


@honest
def a_block_in_the_middle():
    data = cut(walk(420))
    train = [i for i in range(len(data)) if not 80 <= i < 160]
    return on(Subset(data, train), Subset(data, range(80, 160)))


@honest
def images_of_equal_rows():
    rows = walk(300, 8)[:, None].expand(-1, 4, -1).contiguous()
    guard = on(*at_random(TensorDataset(rows, torch.arange(300) % 2)))
    assert not guard.report.findings
    same = TensorDataset(X[:600].view(-1, 8, 8), Y[:600] % 2)
    return on(*at_random(same))


@honest
def series_that_repeat_themselves():
    wave = (torch.arange(420) // 4 % 2).float()
    return on(*at_random(cut(wave)))
