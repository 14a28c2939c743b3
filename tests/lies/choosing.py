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
