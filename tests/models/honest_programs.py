"""The programs: plans, frozen parts, iterators, counters, files, and what has nothing to count."""

from __future__ import annotations

import copy
import itertools
import random

import torch
import torchmetrics
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from models.honest import TRAIN, VAL, Honest, Program, honest

# --- parts that are frozen, probed, followed -----------------------------------------------------


@honest
def probe_under_inference_mode(folder):
    class M(Honest):
        def on_train_start(self):
            self.body.eval()

        def forward(self, x):
            with torch.inference_mode():
                features = self.body(x)
            return self.head(features.clone())

    return M()


@honest
def backbone_frozen_in_init_with_an_overridden_train(folder):
    class M(Honest):
        def __init__(self):
            super().__init__()
            self.body.requires_grad_(False)

        def train(self, mode=True):
            super().train(mode)
            self.body.eval()
            return self

        def configure_optimizers(self):
            return torch.optim.SGD(self.head.parameters(), 0.1)

    module = M()
    module.train()
    return module


@honest
def frozen_norms_inside_a_trained_body(folder):
    class Frozen(nn.BatchNorm1d):
        def train(self, mode=True):
            return super().train(False)

    module = Honest(nn.Sequential(nn.Linear(8, 8), Frozen(8), nn.ReLU()))
    for parameter in module.body[1].parameters():
        parameter.requires_grad_(False)
    module.body[1].eval()
    return module


@honest
def exponential_moving_average_as_the_evaluated_model(folder):
    class M(Honest):
        def __init__(self):
            super().__init__()
            self.ema = copy.deepcopy(self.head).requires_grad_(False).eval()

        def on_train_batch_end(self, outputs, batch, batch_idx):
            with torch.no_grad():
                for mine, theirs in zip(
                    self.ema.parameters(), self.head.parameters(), strict=True
                ):
                    mine.lerp_(theirs, 0.1)

        def validation_step(self, batch, batch_idx):
            z = self.ema(self.body(batch[0]))
            self.log("val_loss", F.cross_entropy(z, batch[1]))

        def configure_optimizers(self):
            return torch.optim.SGD(
                [*self.body.parameters(), *self.head.parameters()], 0.1
            )

    return M()


@honest
def weights_are_swapped_around_validation(folder):
    class M(Honest):
        def on_validation_epoch_start(self):
            self.own = [p.detach().clone() for p in self.head.parameters()]
            with torch.no_grad():
                for p in self.head.parameters():
                    p.mul_(0.5)

        def on_validation_epoch_end(self):
            with torch.no_grad():
                for p, own in zip(self.head.parameters(), self.own, strict=True):
                    p.copy_(own)

    return M()


@honest
def teacher_in_a_list_so_that_it_is_not_saved(folder):
    class M(Honest):
        def __init__(self):
            super().__init__()
            self.teacher = [nn.Sequential(nn.Linear(8, 3)).eval().requires_grad_(False)]

        def training_step(self, batch, batch_idx):
            soft = self.teacher[0](batch[0]).softmax(1)
            return F.cross_entropy(self(batch[0]), soft)

    return M()


class Lora(nn.Module):
    """Low-rank weights beside a frozen layer, merged in eval mode as loralib does."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(2, layer.in_features) * 0.1)
        self.b = nn.Parameter(torch.zeros(layer.out_features, 2))

    def forward(self, x):
        return self.layer(x) + x @ self.a.T @ self.b.T


@honest
def low_rank_adapters(folder):
    class M(Honest):
        def __init__(self):
            super().__init__(nn.Sequential(Lora(nn.Linear(8, 8)), nn.ReLU()))

        def configure_optimizers(self):
            return torch.optim.Adam(
                [p for p in self.parameters() if p.requires_grad], 0.01
            )

    return M()


@honest
def gradual_unfreezing(folder):
    class M(Honest):
        def __init__(self):
            super().__init__(nn.Sequential(nn.Linear(8, 8), nn.ReLU()))
            self.body.requires_grad_(False)

        def on_train_epoch_start(self):
            if self.current_epoch == 1:
                self.body.requires_grad_(True)

    return M()


@honest
def identity_and_norm_without_statistics_are_woken(folder):
    class M(Honest):
        def __init__(self):
            super().__init__(
                nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Dropout(0.0))
            )
            self.augment = nn.Identity()

        def on_validation_epoch_start(self):
            self.body.train()
            self.augment.train()

        def on_validation_epoch_end(self):
            self.body.eval()

    return M()


# --- what cannot be undone -----------------------------------------------------------------------


@honest
def endless_iterator_on_the_module(folder):
    class M(Honest):
        def __init__(self):
            super().__init__()
            self.more = itertools.cycle(range(5))

        def validation_step(self, batch, batch_idx):
            self.log("val_turn", float(next(self.more)))
            super().validation_step(batch, batch_idx)

    return M()


def _counting():
    number = 0
    while True:
        number += 1
        yield number


NUMBERS = {"steps": 0}


@honest
def counter_in_globals(folder):
    NUMBERS["steps"] = 0

    class M(Honest):
        def validation_step(self, batch, batch_idx):
            NUMBERS["steps"] += 1
            self.log("val_steps", float(NUMBERS["steps"]), reduce_fx="max")
            super().validation_step(batch, batch_idx)

    return M()


@honest
def generator_in_a_closure(folder):
    numbers = _counting()

    class M(Honest):
        def validation_step(self, batch, batch_idx):
            self.log("val_n", float(next(numbers)), reduce_fx="max")
            super().validation_step(batch, batch_idx)

    return M()


@honest
def counter_on_the_class(folder):
    class M(Honest):
        calls = 0

        def validation_step(self, batch, batch_idx):
            type(self).calls += 1
            self.log("val_calls", float(self.calls), reduce_fx="max")
            super().validation_step(batch, batch_idx)

    return M()


class Slotted:
    """State in slots."""

    __slots__ = ("count",)

    def __init__(self):
        self.count = 0

    def tick(self):
        self.count += 1
        return float(self.count)


@honest
def counter_in_slots(folder):
    class M(Honest):
        def __init__(self):
            super().__init__()
            self.meter = Slotted()

        def validation_step(self, batch, batch_idx):
            self.log("val_ticks", self.meter.tick(), reduce_fx="max")
            super().validation_step(batch, batch_idx)

    return M()


@honest
def lines_are_appended_to_a_file(folder):
    class M(Honest):
        def validation_step(self, batch, batch_idx):
            with (folder / "predictions.txt").open("a") as file:
                file.writelines(f"{p}\n" for p in self(batch[0]).argmax(1).tolist())
            super().validation_step(batch, batch_idx)

    return M()


@honest
def predictions_are_kept_and_written_at_the_end(folder):
    class M(Honest):
        def on_validation_epoch_start(self):
            self.kept = []

        def validation_step(self, batch, batch_idx):
            self.kept.append(self(batch[0]).argmax(1))
            super().validation_step(batch, batch_idx)

        def on_validation_epoch_end(self):
            torch.cat(self.kept).numpy().tofile(folder / "all.txt", sep=",")
            self.kept.clear()

    return M()


@honest
def another_callback_counts_batches(folder):
    import lightning.pytorch as pl

    class Counts(pl.Callback):
        def __init__(self):
            self.numbers = _counting()
            self.seen = []

        def on_validation_batch_end(
            self, trainer, pl_module, outputs, batch, batch_idx, *_
        ):
            self.seen.append(next(self.numbers))
            pl_module.log("val_seen", float(self.seen[-1]), reduce_fx="max")

    return Program(Honest(), callbacks=[Counts()])


@honest
def private_generator_for_a_sampled_figure(folder):
    class M(Honest):
        def __init__(self):
            super().__init__()
            self.random = random.Random(4)

        def validation_step(self, batch, batch_idx):
            chosen = self.random.randrange(len(batch[0]))
            self.log("val_chosen", float(batch[0][chosen, 0]))
            super().validation_step(batch, batch_idx)

    return M()


@honest
def running_mean_of_what_was_validated(folder):
    class M(Honest):
        def __init__(self):
            super().__init__()
            self.history = []

        def validation_step(self, batch, batch_idx):
            loss = F.cross_entropy(self(batch[0]), batch[1])
            self.history.append(float(loss))
            self.log("val_loss", loss)

        def on_validation_epoch_end(self):
            self.history.clear()

    return M()


class Stream(IterableDataset):
    """Counts how often it was read."""

    def __init__(self):
        self.reads = 0

    def __iter__(self):
        self.reads += 1
        yield from (VAL[i] for i in range(len(VAL)))


@honest
def stream_of_validation_samples(folder):
    stream = Stream()

    class M(Honest):
        def on_validation_epoch_end(self):
            self.log("val_reads", float(stream.reads))

    return Program(M(), val=DataLoader(stream, 4))


# --- attributes that raise, load, or are not there -----------------------------------------------


@honest
def configuration_that_raises_on_unknown_keys(folder):
    class Config:
        lr = 0.1

        def __getattr__(self, name):
            raise KeyError(name)

    class M(Honest):
        def __init__(self):
            super().__init__()
            self.config = Config()

    return M()


@honest
def property_that_may_not_be_read_yet(folder):
    class M(Honest):
        @property
        def vocabulary(self):
            raise RuntimeError("not built yet")

        @property
        def num_classes(self):
            raise RuntimeError("not built yet")

    return M()


LOADED = []


@honest
def lazy_package_that_loads_on_access(folder):
    LOADED.clear()

    class Lazy:
        def __getattr__(self, name):
            if name.startswith("__"):
                raise AttributeError(name)
            LOADED.append(name)
            return nn.Linear(1, 1)

    class M(Honest):
        def __init__(self):
            super().__init__()
            self.lazy = [Lazy()]
            object.__setattr__(self, "registry", Lazy())

        def on_validation_epoch_end(self):
            self.log("val_loads", float(len(LOADED)))

    return M()


class Batch:
    """A batch that is no container."""

    def __init__(self, rows):
        self.x = torch.stack([row[0] for row in rows])
        self.y = torch.tensor([int(row[1]) for row in rows])

    def __getattr__(self, name):
        raise AttributeError(f"no field {name}")

    def __len__(self):
        raise TypeError("a batch has no length")


@honest
def batch_without_a_length(folder):
    class M(Honest):
        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self(batch.x), batch.y)

        def validation_step(self, batch, batch_idx):
            loss = F.cross_entropy(self(batch.x), batch.y)
            self.log("val_loss", loss, batch_size=batch.y.shape[0])

    return Program(
        M(),
        DataLoader(TRAIN, 4, collate_fn=Batch),
        DataLoader(VAL, 4, collate_fn=Batch),
    )


# --- evaluations that are hardly one -------------------------------------------------------------


@honest
def no_validation_batches(folder):
    return Program(Honest(), trainer={"limit_val_batches": 0})


@honest
def empty_validation_set(folder):
    empty = TensorDataset(torch.zeros(0, 8), torch.zeros(0, dtype=torch.long))
    return Program(Honest(), val=DataLoader(empty, 4))


@honest
def one_of_two_loaders_is_empty(folder):
    class M(Honest):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            super().validation_step(batch, batch_idx)

    empty = TensorDataset(torch.zeros(0, 8), torch.zeros(0, dtype=torch.long))
    return Program(M(), val=[DataLoader(VAL, 4), DataLoader(empty, 4)])


@honest
def only_every_third_batch_is_scored(folder):
    class M(Honest):
        def validation_step(self, batch, batch_idx):
            self.log("val_mean", self(batch[0]).mean())

    return M()


@honest
def fast_development_run(folder):
    return Program(Honest(), trainer={"fast_dev_run": True})


@honest
def validation_within_the_epoch(folder):
    return Program(
        Honest(), trainer={"val_check_interval": 2, "num_sanity_val_steps": 1}
    )


@honest
def two_loaders_with_different_tasks(folder):
    class M(Honest):
        def __init__(self):
            super().__init__()
            self.value = nn.Linear(8, 1)

        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            features = self.body(batch[0])
            if dataloader_idx == 0:
                self.log("val_ce", F.cross_entropy(self.head(features), batch[1]))
            else:
                self.log(
                    "val_mse", F.mse_loss(self.value(features)[:, 0], batch[0][:, 0])
                )

        def training_step(self, batch, batch_idx):
            features = self.body(batch[0])
            loss = F.cross_entropy(self.head(features), batch[1])
            return loss + F.mse_loss(self.value(features)[:, 0], batch[0][:, 0])

    return Program(M(), val=[DataLoader(VAL, 4), DataLoader(VAL, 6)])


@honest
def tests_and_predicts_after_the_fit(folder):
    made = torch.Generator().manual_seed(9)
    held_out = TensorDataset(
        torch.randn(10, 8, generator=made), torch.randint(0, 3, (10,), generator=made)
    )

    class M(Honest):
        def test_step(self, batch, batch_idx):
            self.log("test_loss", F.cross_entropy(self(batch[0]), batch[1]))

        def predict_step(self, batch, batch_idx):
            return self(batch[0]).argmax(1)

    def then(trainer, module):
        trainer.test(module, DataLoader(held_out, 4), verbose=False)
        return trainer.predict(module, DataLoader(held_out, 4))

    return Program(M(), then=then)


# --- scores --------------------------------------------------------------------------------------


@honest
def collection_of_micro_scores_logged_by_batch(folder):
    class M(Honest):
        def __init__(self):
            super().__init__()
            c = torchmetrics.classification
            self.acc = c.MulticlassAccuracy(3, average="micro")
            self.recall = c.MulticlassRecall(3, average="weighted")

        def validation_step(self, batch, batch_idx):
            z = self(batch[0])
            n = len(batch[1])
            self.log("valid/acc", self.acc(z, batch[1]), batch_size=n)
            self.log("valid/recall_weighted", self.recall(z, batch[1]), batch_size=n)

    return M()


@honest
def accuracy_in_percent_with_a_sign(folder):
    class M(Honest):
        def validation_step(self, batch, batch_idx):
            z = self(batch[0])
            right = (z.argmax(1) == batch[1]).float().mean()
            self.log("val_acc%", 100 * right, batch_size=len(batch[1]))
            self.log("val_error", 1 - right, batch_size=len(batch[1]))

    return M()


@honest
def best_accuracy_so_far(folder):
    class M(Honest):
        def __init__(self):
            super().__init__()
            self.acc = torchmetrics.classification.MulticlassAccuracy(
                3, average="micro"
            )
            self.best = torchmetrics.MaxMetric()

        def validation_step(self, batch, batch_idx):
            self.acc(self(batch[0]), batch[1])
            self.log("val_acc", self.acc)

        def on_validation_epoch_end(self):
            self.best(self.acc.compute())
            self.log("val_acc_best", self.best.compute())

    return M()


@honest
def mean_over_tokens_of_ragged_lengths(folder):
    def tokens(rows):
        x = torch.cat([row[0].repeat(2 + i, 1) for i, row in enumerate(rows)])
        y = torch.cat([row[1].repeat(2 + i) for i, row in enumerate(rows)])
        return {"x": x, "y": y}

    class M(Honest):
        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self(batch["x"]), batch["y"])

        def validation_step(self, batch, batch_idx):
            loss = F.cross_entropy(self(batch["x"]), batch["y"])
            self.log("val_loss", loss, batch_size=len(batch["y"]))

    return Program(
        M(),
        DataLoader(TRAIN, 4, collate_fn=tokens),
        DataLoader(VAL, 4, collate_fn=tokens),
    )


@honest
def scores_of_each_class(folder):
    class M(Honest):
        def __init__(self):
            super().__init__()
            self.f1 = torchmetrics.classification.MulticlassF1Score(3, average=None)

        def validation_step(self, batch, batch_idx):
            self.f1.update(self(batch[0]), batch[1])

        def on_validation_epoch_end(self):
            for i, value in enumerate(self.f1.compute()):
                self.log(f"val_f1/{i}", value)
            self.f1.reset()

    return M()


@honest
def macro_scores_through_a_collection_with_a_prefix(folder):
    class M(Honest):
        def __init__(self):
            super().__init__()
            c = torchmetrics.classification
            metrics = torchmetrics.MetricCollection(
                {
                    "acc": c.MulticlassAccuracy(3),
                    "f1": c.MulticlassF1Score(3, average="weighted"),
                }
            )
            self.val_metrics = metrics.clone(prefix="val/")

        def validation_step(self, batch, batch_idx):
            z = self(batch[0])
            self.val_metrics.update(z, batch[1])
            return {"loss": F.cross_entropy(z, batch[1])}

        def on_validation_epoch_end(self):
            self.log_dict(self.val_metrics.compute())
            self.val_metrics.reset()

    return M()


# --- nothing to count ----------------------------------------------------------------------------


class Pictures(Dataset):
    """Inputs alone."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return torch.randn(8, generator=torch.Generator().manual_seed(index))


@honest
def autoencoder(folder):
    class M(Honest):
        def training_step(self, batch, batch_idx):
            return F.mse_loss(self.body(batch), batch)

        def validation_step(self, batch, batch_idx):
            self.log("val_mse", F.mse_loss(self.body(batch), batch))

    class Held(Pictures):
        def __getitem__(self, index):
            return super().__getitem__(100 + index)

    module = M(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)))
    module.head.requires_grad_(False)
    return Program(module, DataLoader(Pictures(), 4), DataLoader(Held(), 4))


@honest
def counting_regression(folder):
    class M(Honest):
        def training_step(self, batch, batch_idx):
            return F.poisson_nll_loss(self(batch[0])[:, 0], batch[1].float())

        def validation_step(self, batch, batch_idx):
            rate = self(batch[0])[:, 0]
            self.log("val_nll", F.poisson_nll_loss(rate, batch[1].float()))
            return {"preds": rate.exp(), "target": batch[1].float()}

    return M()
