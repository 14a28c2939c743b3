"""More programs: loops by hand, schedules, other hooks, and what stands at the edge."""

from __future__ import annotations

import collections
import csv
import threading

import lightning.pytorch as pl
import numpy as np
import torch
import torchmetrics
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset, TensorDataset, WeightedRandomSampler

from models.honest import TRAIN, VAL, Honest, Program, honest


@honest
def manual_optimization_of_two_parts(folder):
    class M(Honest):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(super().training_step(batch, batch_idx))
                optimizer.step()

        def configure_optimizers(self):
            parts = self.body.parameters(), self.head.parameters()
            return [torch.optim.SGD(part, 0.1) for part in parts]

    return M()


@honest
def schedule_that_steps_by_the_loss(folder):
    class M(Honest):
        def configure_optimizers(self):
            optimizer = torch.optim.Adam(self.parameters(), 0.01)
            schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": schedule, "monitor": "val_loss"},
            }

    return M()


@honest
def stops_early_by_its_own_accuracy(folder):
    class M(Honest):
        def __init__(self):
            super().__init__()
            self.acc = torchmetrics.classification.MulticlassAccuracy(
                3, average="micro"
            )

        def validation_step(self, batch, batch_idx):
            self.acc.update(self(batch[0]), batch[1])
            self.log("val_acc", self.acc, prog_bar=True)

    stop = pl.callbacks.EarlyStopping("val_acc", mode="max", patience=5)
    return Program(M(), callbacks=[stop])


@honest
def gradients_with_respect_to_the_input(folder):
    class M(Honest):
        def validation_step(self, batch, batch_idx):
            with torch.enable_grad():
                x = batch[0].detach().clone().requires_grad_(True)
                (slope,) = torch.autograd.grad(self(x).sum(), x)
            self.log("val_slope", slope.norm())

    return M()


@honest
def queue_of_the_last_batches_in_training(folder):
    class M(Honest):
        def __init__(self):
            super().__init__()
            self.recent = collections.deque(maxlen=3)

        def training_step(self, batch, batch_idx):
            self.recent.append(batch[0].mean().item())
            return super().training_step(batch, batch_idx)

    return M()


@honest
def running_statistics_of_the_loss_in_training(folder):
    class M(Honest):
        def __init__(self):
            super().__init__()
            self.register_buffer("scale", torch.ones(()))

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.scale.lerp_(loss.detach(), 0.1)
            return loss / self.scale

    return M()


@honest
def predictions_as_rows_of_a_table(folder):
    class M(Honest):
        def on_validation_epoch_start(self):
            self.rows = []

        def validation_step(self, batch, batch_idx):
            preds = self(batch[0]).argmax(1)
            self.rows += list(zip(preds.tolist(), batch[1].tolist(), strict=True))
            super().validation_step(batch, batch_idx)

        def on_validation_epoch_end(self):
            with (folder / f"table{self.current_epoch}.txt").open("w") as file:
                csv.writer(file).writerows(self.rows)

    return M()


@honest
def lock_and_thread_on_the_module(folder):
    class M(Honest):
        def __init__(self):
            super().__init__()
            self.lock = threading.Lock()

        def validation_step(self, batch, batch_idx):
            with self.lock:
                super().validation_step(batch, batch_idx)

    return M()


@honest
def weighted_sampling_in_training(folder):
    made = torch.Generator().manual_seed(5)
    sampler = WeightedRandomSampler(torch.ones(24), 24, generator=made)
    return Program(Honest(), train=DataLoader(TRAIN, 4, sampler=sampler))


@honest
def folds_of_one_set(folder):
    both = TensorDataset(
        torch.cat((TRAIN.tensors[0], VAL.tensors[0])),
        torch.cat((TRAIN.tensors[1], VAL.tensors[1])),
    )
    train = DataLoader(Subset(both, range(30)), 5, shuffle=True)
    return Program(Honest(), train, DataLoader(Subset(both, range(30, 42)), 5))


@honest
def augmentation_only_in_training(folder):
    class M(Honest):
        def training_step(self, batch, batch_idx):
            return super().training_step(
                [batch[0] + torch.randn_like(batch[0]), batch[1]], 0
            )

    return M()


@honest
def test_time_augmentation_that_is_fixed(folder):
    class M(Honest):
        def validation_step(self, batch, batch_idx):
            z = (self(batch[0]) + self(-batch[0])) / 2
            self.log("val_loss", F.cross_entropy(z, batch[1]))
            self.log("val_acc", (z.argmax(1) == batch[1]).float().mean())

    return M()


@honest
def recurrent_state_that_starts_anew(folder):
    class M(Honest):
        def __init__(self):
            super().__init__()
            self.cell = nn.GRUCell(8, 8)

        def forward(self, x):
            h = torch.zeros(len(x), 8)
            for _ in range(3):
                h = self.cell(x, h)
            return self.head(h)

    module = M()
    module.body = nn.Identity()
    return module


@honest
def group_norm_and_weight_norm(folder):
    body = nn.Sequential(
        nn.Linear(8, 8),
        nn.GroupNorm(2, 8),
        nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)),
    )
    return Honest(body)


@honest
def metrics_that_are_cloned_for_each_stage(folder):
    class M(Honest):
        def __init__(self):
            super().__init__()
            acc = torchmetrics.classification.MulticlassAccuracy(3, average="micro")
            self.accs = nn.ModuleDict(
                {f"{stage}_acc": acc.clone() for stage in ("train", "val")}
            )

        def training_step(self, batch, batch_idx):
            z = self(batch[0])
            self.accs["train_acc"](z, batch[1])
            self.log("train/acc", self.accs["train_acc"], on_step=False, on_epoch=True)
            return F.cross_entropy(z, batch[1])

        def validation_step(self, batch, batch_idx):
            self.accs["val_acc"](self(batch[0]), batch[1])
            self.log("val/acc", self.accs["val_acc"])

    return M()


@honest
def arrays_instead_of_tensors(folder):
    class M(Honest):
        def validation_step(self, batch, batch_idx):
            z = self(batch[0]).numpy()
            self.log("val_top", float(np.max(z)), batch_size=len(z))

    return M()


@honest
def accumulates_gradients_and_clips(folder):
    return Program(
        Honest(), trainer={"accumulate_grad_batches": 2, "gradient_clip_val": 0.5}
    )


@honest
def stochastic_weight_averaging(folder):
    return Program(
        Honest(nn.Sequential(nn.Linear(8, 8), nn.ReLU())),
        callbacks=[pl.callbacks.StochasticWeightAveraging(0.05, swa_epoch_start=1)],
        trainer={"max_epochs": 3},
    )


@honest
def module_of_parameters_in_a_dict(folder):
    class M(Honest):
        def __init__(self):
            super().__init__()
            self.gates = nn.ParameterDict({"a": nn.Parameter(torch.ones(8))})

        def forward(self, x):
            return self.head(self.body(x) * self.gates["a"])

    return M()
