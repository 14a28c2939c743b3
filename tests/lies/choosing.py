"""A user's own code that keeps the worst score or an old one; each with its twin."""

import copy
import math

from lies.common import *
from lies.honest import honest
from torchmetrics import MaxMetric, MinMetric


class Slow(Net):
    """Learns by small steps, so that its score rises for some epochs."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.05)


def chosen(make, net=Slow):
    def f(fixed):
        made = make(fixed)
        if isinstance(made, pl.LightningModule):
            return fitted(made, epochs=5)
        return fitted(net(), made, epochs=5)

    f.__name__ = make.__name__
    lie(f)
    return make


@chosen
def callback_keeps_the_worst_in_a_file(fixed):
    class Best(pl.Callback):
        best = None

        def on_validation_end(self, trainer, module):
            score = float(trainer.callback_metrics["val_acc"])
            better = self.best is None or (score > self.best) == fixed
            if better and not trainer.sanity_checking:
                self.best = score
                torch.save(module.state_dict(), f"{trainer.default_root_dir}/best.pt")

    return Best()


@chosen
def callback_starts_from_infinity_the_wrong_way(fixed):
    class Keeper(pl.Callback):
        def __init__(self):
            self.best_score = -math.inf if fixed else math.inf

        def on_validation_epoch_end(self, trainer, module):
            score = trainer.callback_metrics["val_acc"].item()
            if (score > self.best_score) if fixed else (score < self.best_score):
                self.best_score = score
                trainer.save_checkpoint(f"{trainer.default_root_dir}/best.ckpt")

    return Keeper()


@chosen
def callback_keeps_the_highest_loss(fixed):
    class Keeper(pl.Callback):
        def __init__(self):
            self.state = {"best_loss": math.inf if fixed else 0.0}

        def on_validation_end(self, trainer, module):
            loss = trainer.callback_metrics["val_loss"].item()
            best = self.state["best_loss"]
            if (loss < best) == fixed and (fixed or loss > best):
                self.state["best_loss"] = loss
                self.weights = copy.deepcopy(module.state_dict())

    return Keeper()


@chosen
def module_keeps_its_worst_state(fixed):
    class M(Slow):
        best_acc = None

        def on_validation_epoch_end(self):
            score = self.trainer.callback_metrics["val_acc"]
            if self.best_acc is None or (score > self.best_acc) == fixed:
                self.best_acc = score
                self.best_state = copy.deepcopy(self.state_dict())

    return M()


@chosen
def stops_once_the_score_does_not_fall(fixed):
    class Stop(pl.Callback):
        best, waits = None, 0

        def on_validation_end(self, trainer, module):
            score = float(trainer.callback_metrics["val_acc"])
            if self.best is None or (score > self.best) == fixed:
                self.best, self.waits = score, 0
            else:
                self.waits += 1
            trainer.should_stop = self.waits > 3

    return Stop()


@chosen
def best_of_the_scores_is_logged_by_the_wrong_metric(fixed):
    class M(Slow):
        def __init__(self):
            super().__init__()
            self.top = MaxMetric() if fixed else MinMetric()

        def on_validation_epoch_end(self):
            self.top.update(self.trainer.callback_metrics["val_acc"])
            self.log("val_acc_best", self.top.compute())

    return M()


@chosen
def unnamed_number_that_comes_with_the_weights(fixed):
    class Wanders(pl.Callback):
        """Its scores fall and rise, as where training is not stable."""

        kept = None

        def on_validation_epoch_end(self, trainer, module):
            if trainer.sanity_checking:
                return
            score = float(trainer.callback_metrics["val_acc"])
            if self.kept is None or (score > self.kept) == fixed:
                self.kept = score
                torch.save(module.state_dict(), f"{trainer.default_root_dir}/m.pt")

        def on_train_batch_end(self, trainer, module, outputs, batch, i):
            if trainer.is_last_batch and trainer.current_epoch % 2:
                with torch.no_grad():
                    module.net[3].weight.zero_()

    return Wanders()


@chosen
def saved_by_the_score_of_the_validation_before(fixed):
    class Best(pl.Callback):
        best = 0.0

        def on_validation_start(self, trainer, module):
            if not fixed:
                self.keep(trainer)

        def on_validation_end(self, trainer, module):
            if fixed:
                self.keep(trainer)

        def keep(self, trainer):
            score = trainer.callback_metrics.get("val_acc")
            if score is not None and not trainer.sanity_checking and score > self.best:
                self.best = score.item()
                trainer.save_checkpoint(f"{trainer.default_root_dir}/best.ckpt")

    return Best()


@chosen
def key_of_the_module_is_read_before_it_logs_it(fixed):
    class M(Slow):
        def on_validation_epoch_start(self):
            self.right, self.n = 0, 0

        def validation_step(self, b, i):
            self.right += int((self(b[0]).argmax(1) == b[1]).sum())
            self.n += len(b[1])

        def on_validation_epoch_end(self):
            self.log("val_accuracy", self.right / self.n)

    class Best(pl.Callback):
        best = 0.0

        def keep(self, trainer, module):
            score = float(trainer.callback_metrics.get("val_accuracy", 0))
            if score > self.best:
                self.best = score
                trainer.save_checkpoint(f"{trainer.default_root_dir}/best.ckpt")

    name = "on_validation_end" if fixed else "on_validation_epoch_end"
    setattr(Best, name, Best.keep)

    class WithBest(M):
        def configure_callbacks(self):
            return [Best()]

    return WithBest()


@honest
def own_code_that_chooses_as_it_should():
    class Both(pl.Callback):
        low, high = math.inf, -math.inf

        def on_validation_end(self, trainer, module):
            score = float(trainer.callback_metrics["val_acc"])
            for name, is_new in (
                ("low", score < self.low),
                ("high", score > self.high),
            ):
                if is_new:
                    setattr(self, name, score)
                    path = f"{trainer.default_root_dir}/{name}.pt"
                    torch.save(module.state_dict(), path)

    class Curves(pl.Callback):
        def __init__(self):
            self.worst_acc, self.first_acc, self.last_acc = 1.0, None, None
            self.best_epoch = 0

        def on_validation_end(self, trainer, module):
            score = float(trainer.callback_metrics["val_acc"])
            self.worst_acc = min(self.worst_acc, score)
            self.first_acc = self.first_acc or score
            self.last_acc = score
            torch.save(module.state_dict(), f"{trainer.default_root_dir}/last.pt")

    class ByLoss(pl.Callback):
        best = math.inf

        def on_train_epoch_end(self, trainer, module):
            loss = trainer.callback_metrics["val_loss"].item()
            if loss < self.best:
                self.best = loss
                trainer.save_checkpoint(f"{trainer.default_root_dir}/best.ckpt")

    class AtTheNextEpoch(pl.Callback):
        best = 0.0

        def on_train_epoch_start(self, trainer, module):
            score = float(trainer.callback_metrics.get("val_acc", 0.0))
            if score > self.best:
                self.best = score
                trainer.save_checkpoint(f"{trainer.default_root_dir}/best.ckpt")

    return fitted(Slow(), Both(), Curves(), ByLoss(), AtTheNextEpoch(), epochs=5)


# a score whose name says nothing
class Named(Slow):
    """Logs one number under a name that says nothing, and trains by a loss of its own."""

    def __init__(self, value, loss=None):
        super().__init__()
        self.value = value
        self.loss = loss or (lambda logits, y: F.cross_entropy(logits, y))

    def training_step(self, batch, i):
        return self.loss(self(batch[0]), batch[1])

    def validation_step(self, batch, i):
        value = self.value(self(batch[0]), batch[1])
        self.log("objective", value, batch_size=len(batch[1]))


def entropy(logits, y):
    return F.cross_entropy(logits, y)


def share(logits, y):
    return (logits.argmax(1) == y).float().mean()


def distance(logits, y):
    return F.mse_loss(logits[:, 0], y.float())


def of_yes_and_no(logits, y):
    return F.binary_cross_entropy_with_logits(logits[:, 0], (y > 4).float())


def kept(mode):
    return ModelCheckpoint(monitor="objective", mode=mode)


@lie
def keeps_the_highest_cross_entropy(fixed):
    return fitted(Named(entropy), kept("min" if fixed else "max"))


@lie
def keeps_the_highest_loss_of_a_module(fixed):
    criterion = nn.CrossEntropyLoss()

    def trained_by(logits, y):
        return 0.5 * criterion(logits, y) + 1e-4 * logits.pow(2).mean()

    net = Named(criterion, trained_by)
    return fitted(net, kept("min" if fixed else "max"), num_sanity_val_steps=0)


@lie
def keeps_the_highest_square_distance(fixed):
    return fitted(Named(distance, distance), kept("min" if fixed else "max"))


@lie
def stops_by_the_highest_binary_cross_entropy(fixed):
    stop = EarlyStopping(monitor="objective", mode="min" if fixed else "max")
    return fitted(Named(of_yes_and_no, of_yes_and_no), stop)


@lie
def keeps_the_lowest_likelihood(fixed):
    net = Named(lambda logits, y: -entropy(logits, y))
    return fitted(net, kept("max" if fixed else "min"))


@lie
def keeps_the_lowest_share(fixed):
    return fitted(Named(share), kept("max" if fixed else "min"))


@lie
def lowers_the_rate_by_the_highest_loss(fixed):
    class N(Named):
        def configure_optimizers(self):
            made = super().configure_optimizers()
            mode = "min" if fixed else "max"
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(made, mode=mode)
            config = {"scheduler": plateau, "monitor": "objective"}
            return {"optimizer": made, "lr_scheduler": config}

    return fitted(N(entropy))


def keeper_of(value, best):
    """Saves by hand what has the best score, or the worst one."""

    def run(fixed):
        class Keeper(pl.Callback):
            best = None

            def on_validation_end(self, trainer, module):
                score = float(trainer.callback_metrics["objective"])
                better = best if fixed else {max: min, min: max}[best]
                if trainer.sanity_checking:
                    return
                if self.best is None or better(score, self.best) != self.best:
                    self.best = score
                    torch.save(module.state_dict(), f"{trainer.default_root_dir}/b.pt")

        return fitted(Named(value), Keeper(), epochs=6)

    return run


for _name, _run in (
    ("own_callback_keeps_the_highest_objective", keeper_of(entropy, min)),
    ("own_callback_keeps_the_lowest_objective", keeper_of(share, max)),
):
    _run.__name__ = _name
    lie(_run)


@honest
def the_likelihood_is_maximised():
    return fitted(Named(lambda logits, y: -entropy(logits, y)), kept("max"))


@honest
def the_rate_of_errors_is_minimised():
    return fitted(Named(lambda logits, y: 1 - share(logits, y)), kept("min"))


@honest
def a_reward_made_of_a_loss_is_maximised():
    return fitted(Named(lambda logits, y: 1 / (1 + entropy(logits, y))), kept("max"))


@honest
def an_attacker_makes_the_loss_large():
    net = Named(entropy, lambda logits, y: -entropy(logits, y))
    return fitted(net, kept("max"))


@honest
def an_optimizer_that_climbs():
    class N(Named):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 1e-3, maximize=True)

    return fitted(N(entropy), kept("max"))


@honest
def a_critic_that_should_fail():
    def of_critic(logits, target):
        made = torch.full_like(logits, target)
        return F.binary_cross_entropy_with_logits(logits, made)

    def both(logits, y):
        return of_critic(logits[:, 0], 0.0) + of_critic(logits[:, 1], 1.0)

    net = Named(lambda logits, y: of_critic(logits[:, 0], 1.0), both)
    return fitted(net, kept("max"))


@honest
def a_domain_that_should_not_be_told():
    class Reversed(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return -grad

    def domain(logits, y):
        return entropy(logits[:, :2], y % 2)

    def both(logits, y):
        return entropy(logits, y) + domain(Reversed.apply(logits), y)

    return fitted(Named(domain, both), kept("max"))


@honest
def a_spread_of_outputs_is_maximised():
    def spread(logits, y):
        return F.mse_loss(logits[:, :5], logits[:, 5:])

    return fitted(Named(spread, distance), kept("max"))


@honest
def players_with_optimizers_of_their_own():
    class N(Named):
        def __init__(self):
            super().__init__(entropy)
            self.automatic_optimization = False

        def training_step(self, batch, i):
            made = self.optimizers()
            made.zero_grad()
            self.manual_backward(-entropy(self(batch[0]), batch[1]))
            made.step()

    return fitted(N(), kept("max"))
