"""What is chosen by a score, and evaluations by hand inside training. Each lie with its twin."""

from lies.common import *
import tempfile
from lightning.pytorch.callbacks import Callback
from torch.optim.lr_scheduler import ReduceLROnPlateau


def logs(name, value, stage="validation"):
    class N(Net):
        def validation_step(self, b, i):
            z = self(b[0])
            self.log(name, value(z, b[1]), batch_size=len(b[1]))
            self.log("aux_loss", F.cross_entropy(z, b[1]), batch_size=len(b[1]))

    return N


acc = lambda z, y: (z.argmax(1) == y).float().mean()
err = lambda z, y: 100 * (z.argmax(1) != y).float().mean()
ce = lambda z, y: F.cross_entropy(z, y)


def chooser(name, net, make):
    def f(fixed):
        return fitted(net(), make(fixed), epochs=3)

    f.__name__ = name
    return lie(f)


chooser(
    "silent_name_accuracy",
    logs("score", acc),
    lambda fx: ModelCheckpoint(monitor="score", mode="max" if fx else "min"),
)
chooser(
    "silent_name_error",
    logs("metric", err),
    lambda fx: ModelCheckpoint(monitor="metric", mode="min" if fx else "max"),
)
chooser(
    "silent_name_percent",
    logs("quality", lambda z, y: 100 * acc(z, y)),
    lambda fx: EarlyStopping(
        monitor="quality", mode="max" if fx else "min", patience=5
    ),
)
chooser(
    "silent_name_loss",
    logs("objective", ce),
    lambda fx: ModelCheckpoint(monitor="objective", mode="min" if fx else "max"),
)
chooser(
    "loss_max",
    logs("val_loss", ce),
    lambda fx: ModelCheckpoint(monitor="val_loss", mode="min" if fx else "max"),
)
chooser(
    "stop_acc_default_mode",
    logs("valid_accuracy", acc),
    lambda fx: EarlyStopping(
        "valid_accuracy", patience=5, **({"mode": "max"} if fx else {})
    ),
)


class MyCkpt(ModelCheckpoint):
    pass


chooser(
    "subclass_of_checkpoint",
    logs("val_top1", acc),
    lambda fx: MyCkpt(monitor="val_top1", mode="max" if fx else "min"),
)


def plateau(name, key, value, strategy):
    def f(fixed):
        class N(logs(key, value)):
            def configure_optimizers(self):
                o = torch.optim.SGD(self.parameters(), 0.1)
                return {
                    "optimizer": o,
                    "lr_scheduler": {
                        "scheduler": ReduceLROnPlateau(o, mode=strategy(fixed)),
                        "monitor": key,
                    },
                }

        return fitted(N(), epochs=3)

    f.__name__ = name
    return lie(f)


plateau("plateau_of_accuracy", "val_acc", acc, lambda fx: "max" if fx else "min")
plateau(
    "plateau_of_a_silent_name", "monitor_me", acc, lambda fx: "max" if fx else "min"
)


@lie
def torchmetrics_with_silent_name(fixed):
    class N(Net):
        def __init__(self):
            super().__init__()
            self.m = torchmetrics.classification.MulticlassF1Score(10)

        def validation_step(self, b, i):
            self.m.update(self(b[0]), b[1])
            self.log("target_metric", self.m)

    return fitted(
        N(),
        ModelCheckpoint(monitor="target_metric", mode="max" if fixed else "min"),
        epochs=3,
    )


@lie
def regression_r2_silent(fixed):
    class N(Net):
        def __init__(self):
            super().__init__()
            self.r2 = torchmetrics.R2Score()

        def validation_step(self, b, i):
            self.r2.update(self(b[0])[:, 0], b[1].float())
            self.log("fit", self.r2)

    return fitted(
        N(), EarlyStopping("fit", mode="max" if fixed else "min", patience=9), epochs=3
    )


@lie
def stale_monitor_stepwise(fixed):
    kw = {} if fixed else {"every_n_train_steps": 5}
    return fitted(
        logs("val_acc", acc)(),
        ModelCheckpoint(monitor="val_acc", mode="max", save_top_k=2, **kw),
        epochs=3,
    )


@lie
def train_time_interval(fixed):
    import datetime

    kw = {} if fixed else {"train_time_interval": datetime.timedelta(milliseconds=1)}
    return fitted(
        logs("val_loss", ce)(),
        ModelCheckpoint(monitor="val_loss", save_top_k=-1, **kw),
        epochs=3,
    )


@lie
def filename_with_a_stale_score(fixed):
    return fitted(
        logs("val_acc", acc)(),
        ModelCheckpoint(
            filename="{epoch}-{val_acc:.3f}",
            save_top_k=-1,
            **({} if fixed else {"every_n_train_steps": 5}),
        ),
        epochs=3,
    )


@lie
def monitored_by_training_only(fixed):
    class N(Net):
        def training_step(self, b, i):
            l = super().training_step(b, i)
            if i == 0 or fixed:
                self.log("loss_now", l, on_step=True)
            return l

    return fitted(
        N(),
        ModelCheckpoint(monitor="loss_now", every_n_train_steps=5, save_top_k=-1),
        epochs=2,
    )


@lie
def test_score_monitored(fixed):
    class N(Net):
        def validation_step(self, b, i, dataloader_idx=0):
            self.log(
                "val_acc" if dataloader_idx == 0 else "test_acc",
                acc(self(b[0]), b[1]),
                batch_size=len(b[1]),
                add_dataloader_idx=False,
            )

    return fitted(
        N(),
        ModelCheckpoint(monitor="val_acc" if fixed else "test_acc", mode="max"),
        val=[loader(VAL), loader(TEST)],
        epochs=2,
    )


@lie
def validation_set_is_the_test_set(fixed):
    t, g = trainer(ModelCheckpoint(monitor="val_acc", mode="max"), epochs=2)
    net = Net()
    t.fit(net, loader(TRAIN, True), loader(VAL if fixed else TEST))
    t.test(net, loader(TEST), verbose=False)
    return g


@lie
def many_checkpoints_tested(fixed):
    folder = tempfile.mkdtemp()
    ck = ModelCheckpoint(
        folder, monitor="val_acc", mode="max", save_top_k=-1, filename="{epoch}"
    )
    t, g = trainer(ck, epochs=4)
    net = Net()
    t.fit(net, loader(TRAIN, True), loader(VAL))
    for p in [ck.best_model_path] if fixed else sorted(ck.best_k_models):
        t.test(net, loader(TEST), ckpt_path=p, verbose=False, weights_only=False)
    return g


@lie
def resumed_with_stale_best(fixed):
    folder = tempfile.mkdtemp()
    ck = ModelCheckpoint(folder, monitor="val_acc", mode="max", save_last=True)
    t, g = trainer(ck, epochs=2)
    t.fit(Net(), loader(TRAIN, True), loader(VAL))
    ck2 = ModelCheckpoint(
        folder,
        monitor="val_acc",
        mode="max",
        **({} if fixed else {"every_n_train_steps": 3}),
    )
    t, g = trainer(ck2, epochs=4)
    t.fit(
        Net(),
        loader(TRAIN, True),
        loader(VAL),
        ckpt_path=folder + "/last.ckpt",
        weights_only=False,
    )
    return g


@lie
def same_callback_for_two_models(fixed):
    es = EarlyStopping("val_loss", patience=1)
    fitted(Net(), es)
    return fitted(Net(), EarlyStopping("val_loss", patience=1) if fixed else es)


# by hand inside training
def hook(name, body, honest, where="on_train_epoch_end"):
    def f(fixed):
        class N(Net):
            pass

        setattr(N, where, honest if fixed else body)
        return fitted(N())

    f.__name__ = name
    return lie(f)


def good(self):
    self.eval()
    with torch.no_grad():
        n = sum((self(x).argmax(1) == y).sum().item() for x, y in loader(VAL))
    self.train()


def graph(self):
    self.eval()
    total = 0.0
    for x, y in loader(VAL):
        total = total + F.cross_entropy(self(x), y)
    self.kept = float(total)
    self.train()


def awake(self):
    with torch.no_grad():
        self.kept = sum((self(x).argmax(1) == y).sum().item() for x, y in loader(VAL))


def unrestored(self):
    self.eval()
    with torch.no_grad():
        for x, y in loader(VAL):
            self(x)


def changed(self):
    self.eval()
    with torch.no_grad():
        for x, y in loader(VAL):
            self(x)
            self.net[0].weight.mul_(0.999)
    self.train()


def partly(self):
    self.net[0].eval()
    with torch.no_grad():
        self.kept = sum((self(x).argmax(1) == y).sum().item() for x, y in loader(VAL))
    self.net[0].train()


hook("graph_kept_by_hand", graph, good)
hook("dropout_on_by_hand", awake, good)
hook("not_restored", unrestored, good)
hook("half_asleep", partly, good)


@lie
def forward_changes_state_by_hand(fixed):
    class N(Net):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x):
            if not fixed:
                self.seen += 1
            return self.net(x)

        on_train_epoch_end = good

    return fitted(N(), val=[], guard=None)


@lie
def sampler_callback_leaves_eval(fixed):
    class C(Callback):
        def on_train_batch_end(self, t, m, o, b, i):
            if i == 5:
                m.eval()
                with torch.no_grad():
                    m(VAL[0][:8])
                if fixed:
                    m.train()

    return fitted(Net(), C())


@lie
def callback_evaluates_with_dropout(fixed):
    class C(Callback):
        def on_train_epoch_end(self, t, m):
            was = m.training
            if fixed:
                m.eval()
            with torch.no_grad():
                self.n = sum(int((m(x).argmax(1) == y).sum()) for x, y in loader(VAL))
            m.train(was)

    return fitted(Net(), C())


@lie
def inside_the_training_step_every_n(fixed):
    class N(Net):
        def training_step(self, b, i):
            if i % 8 == 0:
                if fixed:
                    self.eval()
                with torch.no_grad():
                    self.n = sum(
                        int((self(x).argmax(1) == y).sum())
                        for x, y in self.trainer.val_dataloaders
                    )
                self.train()
            return super().training_step(b, i)

    return fitted(N())


@lie
def on_fit_end_with_dropout(fixed):
    class N(Net):
        def on_train_end(self):
            self.train(not fixed)
            with torch.no_grad():
                self.n = sum(
                    int((self(x).argmax(1) == y).sum()) for x, y in loader(TEST)
                )

    return fitted(N())
