"""Modes that matter and modes that do not: parts that learn, parts that do not, and plans."""

from __future__ import annotations

import copy
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import nn

from models.modes import Honest, net


def sgd(parameters: Any) -> torch.optim.Optimizer:
    """The optimizer of every program here."""
    return torch.optim.SGD(parameters, 0.1)


class Sleeps(Honest):
    """A hook of training puts the backbone in eval mode."""

    def on_train_epoch_start(self) -> None:
        self.backbone.eval()


# silent: no gradient reaches the part, or no optimizer holds it


class ProbeDetached(Sleeps):
    """The features are detached."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(x).detach())


class ProbeInInferenceMode(Sleeps):
    """The features are made in inference mode."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            features = self.backbone(x)
        return self.head(features.clone())


class ProbeFrozen(Sleeps):
    """The backbone requires no gradient, and the optimizer was given all parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone.requires_grad_(False)

    def configure_optimizers(self) -> Any:
        return sgd(self.parameters())


class ProbeByHand(Sleeps):
    """Manual optimization of the head alone."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
        optimizer.step()
        optimizer.zero_grad()

    def configure_optimizers(self) -> Any:
        return sgd(self.head.parameters())


class Adapter(nn.Module):
    """A frozen layer and a low-rank one beside it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.up(self.down(x))


class Adapted(Honest):
    """A frozen backbone in eval mode, as it was loaded, with an adapter that trains in it."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone.requires_grad_(False).eval()
        self.backbone[0] = Adapter(self.backbone[0])


class NoStatistics(Honest):
    """Batch norm without running statistics computes the same in both modes."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone[1] = nn.BatchNorm1d(8, track_running_stats=False)
        self.backbone[3] = nn.Dropout(0.0)
        self.backbone.eval()


SILENT = (
    ProbeDetached,
    ProbeInInferenceMode,
    ProbeFrozen,
    ProbeByHand,
    Adapted,
    NoStatistics,
)


# stopped: a gradient reaches the part, and an optimizer holds it


class SleepsInItsConstructor(Honest):
    """No plan of training: it was left so where it was made."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone.eval()


class SleepsByHand(SleepsInItsConstructor, ProbeByHand):
    """Manual optimization of everything, the gradients gone at the end of each step."""

    def on_train_epoch_start(self) -> None:
        pass

    def configure_optimizers(self) -> Any:
        return sgd(self.parameters())


class SleepsUnderTwoOptimizers(SleepsInItsConstructor):
    """Backbone and head have an optimizer each."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
        for optimizer in self.optimizers():
            optimizer.step()
            optimizer.zero_grad()

    def configure_optimizers(self) -> Any:
        return [sgd(self.backbone.parameters()), sgd(self.head.parameters())]


class AddedToTheOptimizerLater(SleepsInItsConstructor):
    """The backbone is added in the second epoch, and left in eval mode."""

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            self.optimizers().add_param_group({"params": self.backbone.parameters()})

    def configure_optimizers(self) -> Any:
        return sgd(self.head.parameters())


class TrainLeavesAllInEval(Honest):
    """An overridden `train()` leaves the whole model in eval mode, dropout too."""

    def train(self, mode: bool = True) -> TrainLeavesAllInEval:
        super().train(mode)
        for child in self.children():
            child.eval()
        return self

    def __init__(self) -> None:
        super().__init__()
        self.train()


class WholeModelInAHook(Honest):
    """The hook's `.eval()` reaches all that learns: that is no part."""

    def on_train_epoch_start(self) -> None:
        self.backbone.eval()
        self.head.eval()


class LoopsFreezeAndUnfreeze(Honest):
    """`freeze()` and `unfreeze()` around a look wake what was frozen on purpose."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone.requires_grad_(False).eval()

    def on_train_epoch_start(self) -> None:
        self.freeze()
        self.unfreeze()

    def configure_optimizers(self) -> Any:
        return sgd(self.head.parameters())


class FrozenTooEarly(Honest):
    """Frozen where validation ends: Lightning then puts back the modes from before it."""

    def on_validation_end(self) -> None:
        self.backbone.requires_grad_(False).eval()


STOPPED = (
    SleepsInItsConstructor,
    SleepsByHand,
    SleepsUnderTwoOptimizers,
    AddedToTheOptimizerLater,
    TrainLeavesAllInEval,
    WholeModelInAHook,
    LoopsFreezeAndUnfreeze,
    FrozenTooEarly,
)


# a plan, or so it seems: a suspicion


class BackboneInATrain(Honest):
    """An overridden `train()` keeps the backbone in eval mode while it learns."""

    def __init__(self) -> None:
        super().__init__()
        self.train()

    def train(self, mode: bool = True) -> BackboneInATrain:
        super().train(mode)
        self.backbone.eval()
        return self


class NormsInAHook(Honest):
    """A hook keeps each batch norm in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(net(), nn.Linear(8, 8), nn.BatchNorm1d(8))

    def on_train_epoch_start(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.eval()


class SleepsByACallback(pl.Callback):
    """A callback puts the backbone in eval mode."""

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        pl_module.backbone.eval()


class Finetunes(pl.callbacks.BaseFinetuning):
    """One that Lightning asks before the guard hears of anything."""

    def freeze_before_training(self, pl_module: Any) -> None:
        pl_module.backbone.eval()

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
        pass


class Unheard(Honest):
    """A backbone in no optimizer moves its statistics."""

    def configure_optimizers(self) -> Any:
        return sgd(self.head.parameters())


class Teaches(Honest):
    """A teacher in train mode, asked without gradients, with dropout alone."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5)).requires_grad_(
            False
        )

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        with torch.no_grad():
            aim = self.teacher(batch[0])
        return super().training_step(batch, batch_idx) + F.mse_loss(
            self.backbone(batch[0]), aim
        )


class TeachesInEval(Teaches):
    """The same teacher in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher.eval()


class Averages(Honest):
    """An average of the backbone in train mode, which is used."""

    def __init__(self) -> None:
        super().__init__()
        self.average = copy.deepcopy(self.backbone).requires_grad_(False)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        aim = self.average(batch[0]).detach()
        return super().training_step(batch, batch_idx) + F.mse_loss(
            self.backbone(batch[0]), aim
        )

    def on_train_batch_end(self, *_: Any) -> None:
        pairs = zip(self.average.parameters(), self.backbone.parameters(), strict=True)
        with torch.no_grad():
            for mine, theirs in pairs:
                mine.lerp_(theirs, 0.1)


class AveragesUnused(Averages):
    """The average is in train mode, and nobody asks it in training."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return Honest.training_step(self, batch, batch_idx)
