"""Whose weights are scored? Each lie with its honest twin."""

import copy, os, tempfile, sys
from lies.common import *
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from lightning.pytorch.callbacks import (
    StochasticWeightAveraging,
    WeightAveraging,
    Callback,
)


def prefixed(prefix):
    def f(fixed):
        net, _ = trained()
        sd = {prefix + k: v for k, v in net.state_dict().items()}
        fresh = Net()
        fresh.load_state_dict(
            {k.removeprefix(prefix): v for k, v in sd.items()} if fixed else sd,
            strict=False,
        )
        return tested(fresh)

    f.__name__ = "prefix_" + prefix.strip(".")
    return lie(f)


for p in ("module.", "model.", "_orig_mod.", "net.", "student.model."):
    prefixed(p)


@lie
def manual_copy_of_matching_names(fixed):
    net, _ = trained()
    p = tempfile.mktemp()
    torch.save(
        {("" if fixed else "module.") + k: v for k, v in net.state_dict().items()}, p
    )
    sd = torch.load(p)
    fresh = Net()
    own = fresh.state_dict()
    own.update({k: v for k, v in sd.items() if k in own})
    fresh.load_state_dict(own)
    return tested(fresh)


@lie
def manual_copy_in_a_loop(fixed):
    net, _ = trained()
    sd = {("" if fixed else "backbone.") + k: v for k, v in net.state_dict().items()}
    fresh = Net()
    with torch.no_grad():
        for k, p in fresh.named_parameters():
            if k in sd:
                p.copy_(sd[k])
    return tested(fresh)


@lie
def load_from_checkpoint_not_strict(fixed):
    class Other(Net):
        def __init__(self):
            super().__init__()
            self.body = self.net
            del self._modules["net"]

        def forward(self, x):
            return self.body(x)

    net, t = trained()
    p = tempfile.mktemp(suffix=".ckpt")
    t.save_checkpoint(p)
    return tested((Net if fixed else Other).load_from_checkpoint(p, strict=False))


@lie
def load_from_checkpoint_on_an_instance_and_ignored(fixed):
    net, t = trained()
    p = tempfile.mktemp(suffix=".ckpt")
    t.save_checkpoint(p)
    fresh = Net()
    got = Net.load_from_checkpoint(p)
    return tested(got if fixed else fresh)


@lie
def safetensors_prefix(fixed):
    from safetensors.torch import save_file, load_file

    net, _ = trained()
    p = tempfile.mktemp(suffix=".safetensors")
    save_file(
        {("" if fixed else "model.") + k: v for k, v in net.state_dict().items()}, p
    )
    fresh = Net()
    fresh.load_state_dict(load_file(p), strict=False)
    return tested(fresh)


@lie
def safetensors_load_model_not_strict(fixed):
    from safetensors.torch import save_file, load_model

    net, _ = trained()
    p = tempfile.mktemp(suffix=".safetensors")
    save_file(
        {("" if fixed else "model.") + k: v for k, v in net.state_dict().items()}, p
    )
    fresh = Net()
    load_model(fresh, p, strict=False)
    return tested(fresh)


@lie
def only_the_backbone_loaded_and_validated(fixed):
    net, _ = trained()
    sd = net.state_dict()
    fresh = Net()
    fresh.load_state_dict(
        sd if fixed else {k: v for k, v in sd.items() if "0" in k}, strict=False
    )
    t, guard = trainer()
    t.validate(fresh, loader(VAL), verbose=False)
    return guard


class Hyper(Net):
    def __init__(self, scale=1.0, act="relu", lr=1e-2):
        super().__init__()
        self.save_hyperparameters()
        self.scale = scale
        self.act = {"relu": nn.ReLU(), "tanh": nn.Tanh()}[act]
        self.net = nn.Sequential(
            nn.Linear(64, 64), self.act, nn.Dropout(0.1), nn.Linear(64, 10)
        )

    def forward(self, x):
        return self.net(x * self.scale)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.hparams.lr)


def hyper(**other):
    def f(fixed):
        t, _ = trainer()
        t.fit(Hyper(), loader(TRAIN, True), loader(VAL))
        p = tempfile.mktemp(suffix=".ckpt")
        t.save_checkpoint(p)
        t, guard = trainer()
        t.test(
            Hyper(lr=0.5) if fixed else Hyper(**other),
            loader(TEST),
            ckpt_path=p,
            verbose=False,
            weights_only=False,
        )
        return guard

    f.__name__ = "ckpt_path_of_other_" + "_".join(other)
    return lie(f)


hyper(scale=4.0)
hyper(act="tanh")


@lie
def state_dict_of_a_checkpoint_with_other_hparams(fixed):
    t, _ = trainer()
    t.fit(Hyper(), loader(TRAIN, True), loader(VAL))
    p = tempfile.mktemp(suffix=".ckpt")
    t.save_checkpoint(p)
    m = Hyper() if fixed else Hyper(scale=0.25)
    m.load_state_dict(torch.load(p, weights_only=False)["state_dict"])
    return tested(m)


@lie
def fine_tuning_whose_load_missed_all(fixed):
    net, _ = trained()
    fresh = Net()
    fresh.load_state_dict(
        {("" if fixed else "encoder.") + k: v for k, v in net.state_dict().items()},
        strict=False,
    )
    return fitted(fresh)


@lie
def fine_tuning_backbone_load_missed(fixed):
    class Pre(Net):
        def __init__(self, path):
            super().__init__()
            self.backbone, self.head = (
                nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)),
                nn.Linear(64, 10),
            )
            del self._modules["net"]
            if path:
                sd = torch.load(path)
                self.backbone.load_state_dict(
                    {
                        (k if not fixed else k.removeprefix("backbone.")): v
                        for k, v in sd.items()
                    },
                    strict=False,
                )

        def forward(self, x):
            return self.head(F.relu(self.backbone(x)))

    first, _ = trained(Pre(None))
    p = tempfile.mktemp()
    torch.save(
        {k: v for k, v in first.state_dict().items() if k.startswith("backbone")}, p
    )
    return fitted(Pre(p))


@lie
def frozen_backbone_never_loaded(fixed):
    class Pre(Net):
        def __init__(self, sd):
            super().__init__()
            self.backbone, self.head = (
                nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)),
                nn.Linear(64, 10),
            )
            del self._modules["net"]
            if sd:
                self.backbone.load_state_dict(
                    {("" if fixed else "module.") + k: v for k, v in sd.items()},
                    strict=False,
                )
                self.backbone.requires_grad_(False)

        def forward(self, x):
            return self.head(F.relu(self.backbone(x)))

        def configure_optimizers(self):
            return torch.optim.Adam(
                [p for p in self.parameters() if p.requires_grad], 1e-2
            )

    first, _ = trained(Pre(None))
    return fitted(Pre(first.backbone.state_dict()))


# averages
class OwnEma(Net):
    updates = True

    def __init__(self):
        super().__init__()
        self.ema = copy.deepcopy(self.net).requires_grad_(False)

    def on_train_batch_end(self, *a):
        if self.updates:
            with torch.no_grad():
                for e, p in zip(self.ema.parameters(), self.net.parameters()):
                    e.lerp_(p, 0.1)

    def validation_step(self, batch, i):
        z = self.ema(batch[0])
        self.log("val_loss", F.cross_entropy(z, batch[1]), batch_size=len(batch[1]))


@lie
def own_ema_never_updated(fixed):
    net = OwnEma()
    net.updates = fixed
    return fitted(net)


@lie
def own_ema_of_state_dict_in_a_callback(fixed):
    class Ema(Callback):
        def on_fit_start(self, t, m):
            self.shadow = {k: v.clone() for k, v in m.state_dict().items()}

        def on_train_batch_end(self, t, m, *a):
            if fixed:
                for k, v in m.state_dict().items():
                    self.shadow[k].lerp_(v, 0.1)

        def on_validation_start(self, t, m):
            self.kept = {k: v.clone() for k, v in m.state_dict().items()}
            m.load_state_dict(self.shadow)

        def on_validation_end(self, t, m):
            m.load_state_dict(self.kept)

    return fitted(
        Net(),
        Ema(),
        guard=EvalGuard(
            sync="ignore",
            state="ignore",
            modes="warn",
            grad="warn",
            stochastic="warn",
            batch="warn",
        ),
        epochs=3,
    )


@lie
def averaged_model_never_updated(fixed):
    class Avg(Net):
        def __init__(self):
            super().__init__()
            self.avg = AveragedModel(self.net, multi_avg_fn=get_ema_multi_avg_fn(0.9))

        def on_train_batch_end(self, *a):
            if fixed:
                self.avg.update_parameters(self.net)

        def validation_step(self, batch, i):
            z = self.avg(batch[0])
            self.log("val_loss", F.cross_entropy(z, batch[1]), batch_size=len(batch[1]))

    return fitted(Avg())


@lie
def ema_callback_that_starts_late(fixed):
    return fitted(
        Net(),
        EMAWeightAveraging(decay=0.9, update_starting_at_step=0 if fixed else 10**6),
    )


@lie
def weight_averaging_never(fixed):
    class Late(WeightAveraging):
        def should_update(self, step_idx=None, epoch_idx=None):
            return fixed and step_idx is not None

    return fitted(Net(), Late())


@lie
def swa_stopped_before_its_end(fixed):
    class Stop(Callback):
        def on_train_epoch_end(self, t, m):
            if t.current_epoch == 2 and not fixed:
                t.should_stop = True

    return fitted(
        Net(), StochasticWeightAveraging(1e-2, swa_epoch_start=1), Stop(), epochs=5
    )


# optimizers
@lie
def parameter_created_after_the_optimizer(fixed):
    class Late(Net):
        def __init__(self):
            super().__init__()
            if fixed:
                self.scale = nn.Parameter(torch.ones(10))

        def configure_optimizers(self):
            o = super().configure_optimizers()
            if not fixed:
                self.scale = nn.Parameter(torch.ones(10))
            return o

        def forward(self, x):
            return self.net(x) * self.scale

    return fitted(Late())


@lie
def layer_created_in_the_first_step(fixed):
    class Lazy(Net):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(10, 10) if fixed else None

        def forward(self, x):
            if self.head is None:
                self.head = nn.Linear(10, 10)
            return self.head(F.relu(self.net(x)))

    return fitted(Lazy())


@lie
def head_swapped_at_fit_start(fixed):
    class Swap(Callback):
        def setup(self, t, m, stage):
            if fixed:
                m.net[3] = nn.Linear(64, 10)

        def on_train_start(self, t, m):
            if not fixed:
                m.net[3] = nn.Linear(64, 10)

    return fitted(Net(), Swap())


@lie
def list_of_layers(fixed):
    class L(Net):
        def __init__(self):
            super().__init__()
            ls = [nn.Linear(64, 64), nn.Linear(64, 10)]
            self.layers = nn.ModuleList(ls) if fixed else ls

        def forward(self, x):
            return self.net[3](F.relu(self.layers[0](self.net[:2](x)))) + self.layers[
                1
            ](x)

    return fitted(L())


@lie
def dict_of_heads(fixed):
    class L(Net):
        def __init__(self):
            super().__init__()
            d = {"a": nn.Linear(64, 10), "b": nn.Linear(64, 10)}
            self.heads = nn.ModuleDict(d) if fixed else d

        def forward(self, x):
            h = self.net[:2](x)
            return self.heads["a"](h) + self.heads["b"](x)

    return fitted(L())


@lie
def tuple_of_blocks_in_an_object(fixed):
    class Bag:
        pass

    class L(Net):
        def __init__(self):
            super().__init__()
            self.bag = Bag()
            self.bag.layers = (nn.Linear(10, 10),)
            if fixed:
                self.m = nn.ModuleList(self.bag.layers)

        def forward(self, x):
            return self.bag.layers[0](F.relu(self.net(x)))

    return fitted(L())


@lie
def detached_features(fixed):
    class D(Net):
        def forward(self, x):
            h = self.net[:2](x)
            return self.net[3](h if fixed else h.detach())

    return fitted(D())


@lie
def features_under_no_grad(fixed):
    class D(Net):
        def forward(self, x):
            with torch.set_grad_enabled(fixed and torch.is_grad_enabled()):
                h = self.net[:2](x)
            return self.net[3](h)

    return fitted(D())


@lie
def through_numpy(fixed):
    class D(Net):
        def forward(self, x):
            h = self.net[:2](x)
            return self.net[3](h if fixed else torch.from_numpy(h.detach().numpy()))

    return fitted(D())


@lie
def group_missing(fixed):
    class D(Net):
        def configure_optimizers(self):
            return torch.optim.AdamW(
                [
                    {"params": [p for n, p in self.named_parameters() if p.ndim > 1]},
                    *(
                        [
                            {
                                "params": [
                                    p for n, p in self.named_parameters() if p.ndim < 2
                                ],
                                "weight_decay": 0,
                            }
                        ]
                        if fixed
                        else []
                    ),
                ],
                1e-2,
            )

    return fitted(D())


@lie
def by_name_that_matches_nothing(fixed):
    class D(Net):
        def configure_optimizers(self):
            return torch.optim.Adam(
                [
                    p
                    for n, p in self.named_parameters()
                    if n.startswith("net.3")
                    or (fixed and n.startswith("net.0"))
                    or n.startswith("layers.")
                ],
                1e-2,
            )

    return fitted(D())


@lie
def argmax_between(fixed):
    class D(Net):
        def __init__(self):
            super().__init__()
            self.emb = nn.Embedding(10, 10)

        def forward(self, x):
            z = self.net(x)
            return z.softmax(1) @ self.emb.weight if fixed else self.emb(z.argmax(1))

    return fitted(D())


@lie
def loss_on_another_output(fixed):
    class D(Net):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(64, 10)

        def training_step(self, batch, i):
            h = self.net[:3](batch[0])
            return F.cross_entropy(self.head(h) if fixed else self.net[3](h), batch[1])

        def validation_step(self, batch, i):
            z = self.head(self.net[:3](batch[0]))
            self.log("val_loss", F.cross_entropy(z, batch[1]), batch_size=len(batch[1]))

    class Honest(D):
        def __init__(self):
            super().__init__()
            self.net[3].requires_grad_(False)

    return fitted((Honest if fixed else D)())


@lie
def two_optimizers_one_stepped(fixed):
    class D(Net):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def configure_optimizers(self):
            return [
                torch.optim.SGD(self.net[0].parameters(), 0.1),
                torch.optim.SGD(self.net[3].parameters(), 0.1),
            ]

        def training_step(self, batch, i):
            a, b = self.optimizers()
            loss = super().training_step(batch, i)
            a.zero_grad()
            b.zero_grad()
            self.manual_backward(loss)
            a.step()
            if fixed:
                b.step()

    return fitted(D())


@lie
def best_weights_kept_by_reference(fixed):
    class D(Net):
        best = None

        def on_validation_epoch_end(self):
            if not self.trainer.sanity_checking and self.best is None:
                self.best = (
                    copy.deepcopy(self.state_dict()) if fixed else self.state_dict()
                )

    net = D()
    t, guard = trainer()
    t.fit(net, loader(TRAIN, True), loader(VAL))
    net.load_state_dict(net.best)
    t.test(net, loader(TEST), verbose=False)
    return guard


@lie
def the_record_says_another_score(fixed):
    class Other(Net):
        scale = 1.0

        def forward(self, x):
            return self.net(x * self.scale)

    folder = tempfile.mkdtemp()

    def guard():
        return EvalGuard(sync="ignore", record=folder)

    net, v = Other(), loader(VAL)
    t, _ = trainer(guard=guard())
    t.fit(net, loader(TRAIN, True), v)
    net.scale = 1.0 if fixed else 0.3
    t, g = trainer(guard=guard())
    t.validate(net, v, verbose=False)
    return g
