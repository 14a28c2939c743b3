"""Weights, folds, collate functions and losses, as people get them wrong. Each with its twin."""

import copy
from lies.common import *
from torch.utils.data import *
from torch.optim.swa_utils import AveragedModel, update_bn
from torch.optim.lr_scheduler import ReduceLROnPlateau

FULL = TensorDataset(X[:900], Y[:900])


def fold(k):
    held = [i for i in range(900) if i % 3 == k]
    return Subset(FULL, sorted(set(range(900)) - set(held))), Subset(FULL, held)


class Normed(Net):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10)
        )


class Spectral(Net):
    def __init__(self):
        super().__init__()
        first = nn.utils.spectral_norm(nn.Linear(64, 64))
        self.net = nn.Sequential(first, nn.ReLU(), nn.Linear(64, 10))


# weights
@lie
def unfrozen_after_the_optimizer_was_made(fixed):
    class N(Net):
        def __init__(self):
            super().__init__()
            self.net[0].requires_grad_(False)

        def configure_optimizers(self):
            return torch.optim.Adam(
                [p for p in self.parameters() if p.requires_grad], 1e-2
            )

        def on_train_epoch_start(self):
            if self.current_epoch == 1:
                self.net[0].requires_grad_(True)
                if fixed:
                    own = list(self.net[0].parameters())
                    self.optimizers().optimizer.add_param_group({"params": own})

    return fitted(N(), epochs=3)


@lie
def statistics_not_in_the_file(fixed):
    a, _ = trained(Normed())
    b = Normed()
    b.load_state_dict(
        a.state_dict() if fixed else dict(a.named_parameters()), strict=False
    )
    return tested(b)


@lie
def spectral_norm_never_estimated(fixed):
    class N(Spectral):
        def __init__(self, sd):
            super().__init__()
            with torch.no_grad():
                self.net[0].weight_orig.copy_(sd["net.0.weight"])
                self.net[0].bias.copy_(sd["net.0.bias"])
                self.net[2].weight.copy_(sd["net.3.weight"])
            for _ in range(10 * fixed):
                self.net[0](torch.randn(2, 64))

    return tested(N(trained()[0].state_dict()))


@lie
def spectral_norm_without_its_vectors(fixed):
    a, _ = trained(Spectral())
    b = Spectral()
    kept = {
        k: v for k, v in a.state_dict().items() if fixed or not k.endswith(("_u", "_v"))
    }
    b.load_state_dict(kept, strict=False)
    return tested(b)


@lie
def every_prefix_stripped(fixed):
    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.head = (
                nn.Sequential(nn.Linear(64, 64), nn.ReLU()),
                nn.Linear(64, 10),
            )

        def forward(self, x):
            return self.head(self.model(x))

    class N(Net):
        def __init__(self):
            super().__init__()
            self.model = Inner()
            del self._modules["net"]

        def forward(self, x):
            return self.model(x)

    a, _ = trained(N())
    b = N()
    cut = (
        (lambda k: k.removeprefix("model."))
        if fixed
        else lambda k: k.replace("model.", "")
    )
    b.model.load_state_dict(
        {cut(k): v for k, v in a.state_dict().items()}, strict=False
    )
    return tested(b)


@lie
def layers_made_anew_in_configure_model(fixed):
    class N(Net):
        def configure_model(self):
            if not fixed:
                self.net = Net().net

    b = N()
    b.load_state_dict(trained()[0].state_dict())
    return tested(b)


@lie
def generator_of_parameters_is_exhausted(fixed):
    class N(Net):
        def configure_optimizers(self):
            back = (p for n, p in self.named_parameters() if n.startswith("net.0"))
            self.many = sum(p.numel() for p in back)
            if fixed:
                back = self.net[0].parameters()
            return torch.optim.Adam(
                [{"params": [*back, *self.net[3].parameters()]}], 1e-2
            )

    return fitted(N())


@lie
def averaged_with_the_statistics_of_the_last(fixed):
    class N(Normed):
        def __init__(self):
            super().__init__()
            self.avg = AveragedModel(self.net)

        def on_train_epoch_end(self):
            self.avg.update_parameters(self.net)

        def test_step(self, b, i):
            loss = F.cross_entropy(self.avg(b[0]), b[1])
            self.log("test_loss", loss, batch_size=len(b[1]))

    t, g = trainer(epochs=3)
    n, tr = N(), loader(TRAIN, True)
    t.fit(n, tr, loader(VAL))
    if fixed:
        update_bn(tr, n.avg)
    t.test(n, loader(TEST), verbose=False)
    return g


# folds
@lie
def one_net_for_all_folds(fixed):
    g, n = None, Net()
    for k in range(3):
        n = Net() if fixed else n
        t, g = trainer(guard=g, epochs=1)
        t.fit(n, loader(fold(k)[0], True), loader(fold(k)[1]))
    return g


@lie
def one_net_for_all_folds_and_a_guard_for_each(fixed):
    n, guards = Net(), []
    first = copy.deepcopy(n.state_dict())
    for k in range(2):
        if fixed:
            n.load_state_dict(first)
        t, g = trainer(epochs=1)
        t.fit(n, loader(fold(k)[0], True), loader(fold(k)[1]))
        guards.append(g)
    return guards[1]


@lie
def weights_of_another_fold(fixed):
    n, kept = Net(), []
    first = copy.deepcopy(n.state_dict())
    for k in range(2):
        n.load_state_dict(first)
        t, g = trainer(epochs=1)
        t.fit(n, loader(fold(k)[0], True), loader(fold(k)[1]))
        kept.append(copy.deepcopy(n.state_dict()))
    n.load_state_dict(kept[0 if fixed else 1])
    t, g = trainer()
    t.validate(n, loader(fold(0)[1]), verbose=False)
    return g


@lie
def splits_anew_in_each_stage(fixed):
    class Data(pl.LightningDataModule):
        def setup(self, stage):
            drawn = torch.Generator().manual_seed(42 if fixed or stage == "fit" else 43)
            parts = random_split(
                TensorDataset(X[:1300], Y[:1300]), [900, 200, 200], drawn
            )
            self.tr, self.va, self.te = parts

        def train_dataloader(self):
            return loader(self.tr, True)

        def val_dataloader(self):
            return loader(self.va)

        def test_dataloader(self):
            return loader(self.te)

    t, g = trainer()
    n, data = Net(), Data()
    t.fit(n, datamodule=data)
    t.test(n, datamodule=data, verbose=False)
    return g


# collate functions
def collated(name, collate, honest=None):
    def plain(b):
        return torch.stack([x for x, _ in b]), torch.stack([y for _, y in b])

    def f(fixed):
        val = loader(
            TensorDataset(*VAL), collate_fn=(honest or plain) if fixed else collate
        )
        return fitted(
            Net(), train=loader(TensorDataset(*TRAIN), True, collate_fn=plain), val=val
        )

    f.__name__ = name
    return lie(f)


def stacked(b):
    return torch.stack([x for x, _ in b]), torch.stack([y for _, y in b])


def centred(b):
    x, y = stacked(b)
    return x - x.mean(0), y


def by_its_largest(b):
    x, y = stacked(b)
    return x / x.sum(0).clamp(min=1), y


def mixed_up(b):
    x, y = stacked(b)
    return 0.7 * x + 0.3 * x.flip(0), y


class Standardises:
    def __call__(self, b):
        x, y = stacked(b)
        return (x - x.mean()) / x.std(), y


def by_sample(b):
    x, y = stacked(b)
    return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True), y


def an_eighth(b):
    return stacked(b[: len(b) // 8 or 1])


def one_of_all(b):
    x, y = stacked(b)
    return x.mean(0, keepdim=True), y[:1]


collated("collate_that_centres", centred)
collated("collate_that_scales", by_its_largest)
collated("collate_that_mixes", mixed_up)
collated("collate_object_that_standardises", Standardises(), by_sample)
collated("collate_that_drops", an_eighth)
collated("collate_that_makes_one_of_all", one_of_all)


# losses
def loss_of(name, make):
    def f(fixed):
        class N(Net):
            def validation_step(self, b, i):
                self.log(
                    "val_loss", make(self(b[0]), b[1], fixed), batch_size=len(b[1])
                )

        return fitted(N())

    f.__name__ = name
    return lie(f)


loss_of(
    "softmax_before_cross_entropy",
    lambda z, y, fixed: F.cross_entropy(z if fixed else z.softmax(1), y),
)
loss_of(
    "softmax_before_a_module",
    lambda z, y, fixed: nn.CrossEntropyLoss(label_smoothing=0.1)(
        z if fixed else z.softmax(-1), y
    ),
)
loss_of(
    "probabilities_for_nll",
    lambda z, y, fixed: F.nll_loss(z.log_softmax(1) if fixed else z.softmax(1), y),
)


# batches
class Rows(Net):
    def __init__(self, fixed):
        super().__init__()
        self.fixed = fixed
        self.make()

    def forward(self, x):
        return self.net(self.rows(x.reshape(-1, 8, 8)).flatten(1))


def rows(kind):
    def f(fixed):
        return fitted(kind(fixed))

    f.__name__ = kind.__name__
    return lie(f)


@rows
class attention_over_the_batch(Rows):
    def make(self):
        self.a = nn.MultiheadAttention(8, 2, batch_first=self.fixed)

    def rows(self, x):
        return x + self.a(x, x, x)[0]


# choices
@lie
def plateau_by_hand_the_wrong_way(fixed):
    class N(Net):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, b, i):
            o = self.optimizers()
            o.zero_grad()
            self.manual_backward(super().training_step(b, i))
            o.step()

        def on_validation_epoch_end(self):
            if not self.trainer.sanity_checking:
                self.lr_schedulers().step(self.trainer.callback_metrics["val_acc"])

        def configure_optimizers(self):
            o = torch.optim.SGD(self.parameters(), 0.1)
            return [o], [ReduceLROnPlateau(o, "max" if fixed else "min", patience=0)]

    return fitted(N(), epochs=3)


@lie
def ratio_by_sample_minimised(fixed):
    class N(Net):
        def __init__(self):
            super().__init__()
            self.net[3] = nn.Linear(64, 64)

        def training_step(self, b, i):
            return F.mse_loss(self(b[0]), b[0])

        def validation_step(self, b, i):
            for p, x in zip(self(b[0]), b[0]):
                self.log("val_psnr", -10 * F.mse_loss(p, x).log10(), batch_size=1)

    keep = ModelCheckpoint(monitor="val_psnr", mode="max" if fixed else "min")
    return fitted(N(), keep, epochs=3)
