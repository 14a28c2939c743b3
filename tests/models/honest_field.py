"""Honest programs with more than a module: online evaluators, swaps, caches, teachers, banks."""

from __future__ import annotations

import functools

import lightning.pytorch as pl
import torch
import torchmetrics
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Subset

from models.honest import TRAIN, VAL, Honest, Program, honest


class Online(pl.Callback):
    """Trains a head of its own on what the module sees, and logs its accuracy after each step."""

    def __init__(self):
        self.head = nn.Linear(8, 3)
        self.optimizer = torch.optim.SGD(self.head.parameters(), 0.1)

    def scores(self, module, batch):
        with torch.no_grad():
            features = module.body(batch[0])
        z = self.head(features)
        accuracy = torchmetrics.functional.accuracy(
            z, batch[1], task="multiclass", num_classes=3
        )
        return F.cross_entropy(z, batch[1]), accuracy

    def on_train_batch_end(self, trainer, module, outputs, batch, i):
        loss, accuracy = self.scores(module, batch)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        module.log("online_train_acc", accuracy)

    def on_validation_batch_end(
        self, trainer, module, outputs, batch, i, dataloader_idx=0
    ):
        with torch.no_grad():
            loss, accuracy = self.scores(module, batch)
        how = {"on_step": False, "on_epoch": True, "batch_size": len(batch[1])}
        module.log("online_val_acc", accuracy, **how)
        module.log("online_val_loss", loss, **how)


class Unsupervised(Honest):
    def training_step(self, batch, i):
        return self.body(batch[0]).pow(2).mean() + self.head.weight.pow(2).mean()

    def validation_step(self, batch, i):
        self.log("val_loss", self.body(batch[0]).pow(2).mean())


@honest
def an_online_evaluator_logs_after_each_step(folder):
    return Program(Unsupervised(), callbacks=[Online()])


@honest
def sizes_are_logged_after_each_step(folder):
    class M(Honest):
        def on_validation_batch_end(self, outputs, batch, i, dataloader_idx=0):
            self.log("val_norm", batch[0].norm(dim=1).mean(), batch_size=len(batch[0]))

    return M()


class Average(pl.Callback):
    """An average of the weights, loaded while the module is evaluated."""

    def on_fit_start(self, trainer, module):
        self.average = {k: v.clone() for k, v in module.state_dict().items()}

    def on_train_batch_end(self, trainer, module, *_):
        for key, value in module.state_dict().items():
            if value.is_floating_point():
                self.average[key].mul_(0.9).add_(value, alpha=0.1)
            else:
                self.average[key].copy_(value)

    def on_validation_start(self, trainer, module):
        self.own = {k: v.clone() for k, v in module.state_dict().items()}
        module.load_state_dict(self.average)

    def on_validation_end(self, trainer, module):
        module.load_state_dict(self.own)


@honest
def an_average_is_loaded_for_each_evaluation(folder):
    return Program(Honest(), callbacks=[Average()])


@honest
def a_head_begins_anew_in_each_epoch(folder):
    class Reset(pl.Callback):
        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch:
                module.head.reset_parameters()

    return Program(Honest(), callbacks=[Reset()])


@honest
def neighbours_in_a_bank_of_the_training_set(folder):
    class M(Honest):
        def on_validation_epoch_start(self):
            pairs = [(self.body(x), y) for x, y in DataLoader(TRAIN, 8)]
            features, labels = zip(*pairs, strict=True)
            self.bank, self.labels = F.normalize(torch.cat(features)), torch.cat(labels)

        def validation_step(self, batch, i):
            likeness = F.normalize(self.body(batch[0])) @ self.bank.T
            votes = F.one_hot(self.labels[likeness.topk(3, -1).indices], 3).sum(1)
            right = (votes.argmax(1) == batch[1]).float()
            self.log("knn_acc", right.mean(), batch_size=len(batch[1]))

        def on_validation_epoch_end(self):
            del self.bank, self.labels

    return M()


@functools.lru_cache(maxsize=8)
def positions(n, d):
    return torch.sin(torch.arange(n)[:, None] / (1 + torch.arange(d)[None]))


@honest
def positions_in_a_cache_of_a_function(folder):
    class M(Honest):
        def forward(self, x):
            return super().forward(x + positions(1, 8))

    return M()


@honest
def norms_of_the_weights_as_parametrizations(folder):
    layers = parametrizations.spectral_norm(nn.Linear(8, 8)), nn.ReLU()
    return Honest(nn.Sequential(*layers, parametrizations.weight_norm(nn.Linear(8, 8))))


@honest
def activations_are_checkpointed(folder):
    class M(Honest):
        def forward(self, x):
            return self.head(checkpoint(self.body, x, use_reentrant=False))

    return M()


@honest
def noise_of_a_seed_in_a_fork(folder):
    class M(Honest):
        def validation_step(self, batch, i):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(1234 + i)
                noise = torch.randn_like(batch[0])
            self.log(
                "val_loss", self(batch[0] + noise).pow(2).mean(), batch_size=len(noise)
            )

    return M()


@honest
def a_teacher_is_followed_and_agreed_with(folder):
    class M(Honest):
        def __init__(self):
            super().__init__()
            body = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3)
            self.teacher = nn.Sequential(*body).eval().requires_grad_(False)

        def on_train_epoch_start(self):
            self.teacher.eval()

        def training_step(self, batch, i):
            with torch.no_grad():
                soft = self.teacher(batch[0]).softmax(1)
            loss = super().training_step(batch, i)
            return loss + F.kl_div(
                self(batch[0]).log_softmax(1), soft, reduction="batchmean"
            )

        def validation_step(self, batch, i):
            mine, its = self(batch[0]), self.teacher(batch[0])
            self.log("val_loss", F.cross_entropy(mine, batch[1]))
            self.log("val_acc", (mine.argmax(1) == batch[1]).float().mean())
            self.log("val_agreement", (mine.argmax(1) == its.argmax(1)).float().mean())

    return M()


def guards_of(trainer):
    return [c for c in trainer.callbacks if type(c).__name__ == "EvalGuard"]


def another(trainer, **how):
    quiet = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": False,
    }
    quiet |= {"accelerator": "cpu", "enable_checkpointing": False, "max_epochs": 1}
    return pl.Trainer(callbacks=guards_of(trainer), **quiet, **how)


@honest
def folds_by_trainers_that_share_a_guard(folder):
    def then(trainer, module):
        losses = []
        for fold in range(2):
            kept = [i for i in range(24) if i % 2 != fold]
            held = [i for i in range(24) if i % 2 == fold]
            one = another(trainer)
            train, val = (
                DataLoader(Subset(TRAIN, kept), 4),
                DataLoader(Subset(TRAIN, held), 4),
            )
            one.fit(Honest(), train, val)
            losses.append(one.callback_metrics["val_loss"].item())
        return losses

    return Program(Honest(), then=then)


@honest
def an_error_in_an_evaluation_is_caught_and_training_goes_on(folder):
    class M(Honest):
        is_broken = False

        def validation_step(self, batch, i):
            if self.is_broken and i == 1:
                raise ValueError("a sample that cannot be read")
            super().validation_step(batch, i)

    def then(trainer, module):
        module.is_broken = True
        try:
            trainer.validate(module, DataLoader(VAL, 4), verbose=False)
        except ValueError:
            module.is_broken = False
        module.train()
        again = another(trainer)
        again.fit(module, DataLoader(TRAIN, 4), DataLoader(VAL, 4))
        return again.callback_metrics["val_loss"].item()

    return Program(M(), then=then)


@honest
def the_best_weights_are_put_back_at_the_end(folder):
    class Best(pl.Callback):
        loss = float("inf")

        def on_validation_end(self, trainer, module):
            loss = trainer.callback_metrics["val_loss"].item()
            if not trainer.sanity_checking and loss < self.loss:
                self.loss = loss
                self.weights = {k: v.clone() for k, v in module.state_dict().items()}

        def on_fit_end(self, trainer, module):
            module.load_state_dict(self.weights)

    def then(trainer, module):
        return trainer.validate(module, DataLoader(VAL, 4), verbose=False)

    return Program(Honest(), callbacks=[Best()], then=then)


@honest
def predictions_are_written_to_a_file_at_the_end(folder):
    class M(Honest):
        def on_validation_epoch_start(self):
            self.answers, self.labels = [], []

        def validation_step(self, batch, i):
            super().validation_step(batch, i)
            self.answers.append(self(batch[0]).argmax(1))
            self.labels.append(batch[1])

        def on_validation_epoch_end(self):
            p, t = torch.cat(self.answers).tolist(), torch.cat(self.labels).tolist()
            (folder / "answers.txt").write_text(f"{p} {t}")

    return M()


@honest
def extremes_and_counts_of_losses_are_logged(folder):
    class M(Honest):
        def validation_step(self, batch, i):
            each = F.cross_entropy(self(batch[0]), batch[1], reduction="none")
            self.log("val_loss", each.mean())
            self.log("val_worst", each.max(), reduce_fx="max")
            self.log("val_count", float(len(each)), reduce_fx="sum")

    return M()


@honest
def every_hook_logs(folder):
    class M(Honest):
        def on_validation_batch_start(self, batch, i, dataloader_idx=0):
            how = {"batch_size": len(batch[0]), "on_epoch": True}
            self.log("before", batch[0].norm(dim=1).mean(), **how)

        def on_validation_batch_end(self, outputs, batch, i, dataloader_idx=0):
            how = {"batch_size": len(batch[0]), "on_epoch": True}
            self.log("after", self(batch[0]).norm(dim=1).mean(), **how)

        def on_validation_epoch_end(self):
            self.log("weight", self.head.weight.norm())

    return M()
