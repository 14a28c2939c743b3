"""Programs whose modules are in the wrong mode, and honest ones that look alike.

``# <- here`` marks the line that a finding must name.
"""

from __future__ import annotations

import threading
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def loader(n: int = 32, batch_size: int = 8, seed: int = 0) -> DataLoader[Any]:
    """Labelled points: (N, 4) float32 and (N,) int64 in 0..2."""
    draw = torch.Generator().manual_seed(seed)
    points = torch.randn(n, 4, generator=draw)
    return DataLoader(
        TensorDataset(points, (points[:, 0] > 0).long()), batch_size=batch_size
    )


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5))


class Honest(pl.LightningModule):
    """Nothing is wrong."""

    subject: ClassVar[str] = ""
    allow: ClassVar[dict[str, list[str]] | None] = None

    def __init__(self) -> None:
        super().__init__()
        self.backbone = net()
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(x))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("loss", F.cross_entropy(self(batch[0]), batch[1]))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("loss", F.cross_entropy(self(batch[0]), batch[1]))

    def predict_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], 0.1)


# found at the first batch of the evaluation


class WokenInEveryStep(Honest):
    """Each evaluation step puts the whole model in train mode."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.train()  # <- here
        super().validation_step(batch, batch_idx)

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.train()  # <- predict
        return super().predict_step(batch, batch_idx)


class SubmoduleLeftOn(Honest):
    """A hook wakes the dropout for a warm-up and forgets it."""

    subject = "backbone.3"

    def on_validation_epoch_start(self) -> None:
        self.backbone[3].train()  # <- here

    on_test_epoch_start = on_predict_epoch_start = on_validation_epoch_start


class TrainWithoutSuper(Honest):
    """`train()` is overridden and never reaches the flags."""

    def train(self, mode: bool = True) -> TrainWithoutSuper:  # <- here
        return self


class EvalWithoutSuper(Honest):
    """`eval()` is overridden and never reaches the flags."""

    def eval(self) -> EvalWithoutSuper:  # <- here
        return self


class ModelEvalIsANoOp(Honest):
    """`on_*_model_eval` is overridden and does nothing."""

    def on_validation_model_eval(self) -> None:  # <- here
        pass

    def on_test_model_eval(self) -> None:  # <- test
        pass

    def on_predict_model_eval(self) -> None:  # <- predict
        pass


class WokenByAThread(Honest):
    """A background thread wakes a module while the evaluation starts."""

    subject = "backbone.1"

    def on_validation_epoch_start(self) -> None:
        thread = threading.Thread(target=self.wake)
        thread.start()
        thread.join()

    on_test_epoch_start = on_predict_epoch_start = on_validation_epoch_start

    def wake(self) -> None:
        self.backbone[1].train()  # <- here


class WokenByAPreHook(Honest):
    """A forward pre-hook wakes the module that it stands on."""

    subject = "backbone.3"

    def __init__(self) -> None:
        super().__init__()
        self.backbone[3].register_forward_pre_hook(self.wake)

    @staticmethod
    def wake(module: nn.Module, args: Any) -> None:
        module.train()  # <- here


class AlwaysTraining(nn.Dropout):
    """A property says True whatever is set."""

    @property
    def training(self) -> bool:  # type: ignore[override]
        return True

    @training.setter
    def training(self, mode: bool) -> None:
        pass


class FlagIsAProperty(Honest):
    """One module's `training` is computed and never False."""

    subject = "backbone.3"

    def __init__(self) -> None:
        super().__init__()
        self.backbone[3] = AlwaysTraining(0.5)


class FlagSetByHand(Honest):
    """The flag is assigned, no method is called."""

    subject = "backbone.1"

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.backbone[1].training = True
        super().validation_step(batch, batch_idx)

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.backbone[1].training = True
        return super().predict_step(batch, batch_idx)


class PutBackBeforeTheEnd(Honest):
    """`forward` wakes its dropout and puts it back: no flag is wrong around the step."""

    subject = "backbone.3"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        was = self.backbone[3].training
        self.backbone[3].train()  # <- here
        out = super().forward(x)
        self.backbone[3].train(was)
        return out


class MadeInTheStep(Honest):
    """A dropout is added while the evaluation runs, and so in train mode."""

    subject = "late"

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.late = nn.Dropout(0.5)
        super().validation_step(batch, batch_idx)

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.late = nn.Dropout(0.5)
        return super().predict_step(batch, batch_idx)


class WakingCallback(pl.Callback):
    """A callback puts the model in train mode and leaves it there."""

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        pl_module.train()  # <- here

    on_test_batch_start = on_predict_batch_start = on_validation_batch_start


IN_EVALUATION: tuple[type[Honest], ...] = (
    WokenInEveryStep,
    SubmoduleLeftOn,
    TrainWithoutSuper,
    EvalWithoutSuper,
    ModelEvalIsANoOp,
    WokenByAThread,
    WokenByAPreHook,
    FlagIsAProperty,
    FlagSetByHand,
    PutBackBeforeTheEnd,
    MadeInTheStep,
)


# found by the first training step, or the first after an evaluation


class FrozenBackbone(Honest):
    """A frozen backbone in eval mode under a head that trains."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone.requires_grad_(False).eval()


class LoadedInEval(Honest):
    """The model was in eval mode when fit began, as `from_pretrained` leaves it."""

    def __init__(self) -> None:
        super().__init__()
        self.eval()


class PartLoadedInEval(Honest):
    """Only the backbone, fine-tuned, came in eval mode."""

    subject = "backbone"

    def __init__(self) -> None:
        super().__init__()
        self.backbone.eval()


class OverridesTrain(nn.Sequential):
    """`train()` is overridden and passes on, as in transformers."""

    def train(self, mode: bool = True) -> OverridesTrain:
        super().train(mode)
        return self


class LoadedInEvalWithOverrides(Honest):
    """In eval mode from the start; that parts override `train()` is no excuse."""

    subject = "backbone"

    def __init__(self) -> None:
        super().__init__()
        self.backbone = OverridesTrain(OverridesTrain(*net()))
        self.backbone.eval()


class PutToSleepInTheStep(Honest):
    """The training step puts the backbone in eval mode."""

    subject = "backbone"

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.backbone.eval()  # <- here
        return super().training_step(batch, batch_idx)


class PutToSleepAtTheEpoch(Honest):
    """A hook puts the model in eval mode before the epoch's first step."""

    def on_train_epoch_start(self) -> None:
        self.eval()  # <- here


class ModelTrainIsANoOp(Honest):
    """`on_validation_model_train` is overridden: Lightning then restores nothing."""

    def on_validation_model_train(self) -> None:  # <- here
        pass


class ModelTrainWakesAll(FrozenBackbone):
    """`on_validation_model_train` calls `train()`: the frozen backbone wakes too."""

    subject = "backbone"

    def on_validation_model_train(self) -> None:  # <- here
        self.train()


class FreezeAndUnfreeze(FrozenBackbone):
    """`freeze()` before and `unfreeze()` after validation wake what was frozen on purpose."""

    subject = "backbone"

    def on_train_epoch_start(self) -> None:
        self.freeze()
        self.unfreeze()  # <- here

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.head.parameters(), 0.1)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.backbone.requires_grad_(False)


class SamplingCallback(pl.Callback):
    """A callback samples in eval mode after a batch and forgets `train()`."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        pl_module.eval()  # <- here


IN_TRAINING: tuple[type[Honest], ...] = (
    LoadedInEval,
    LoadedInEvalWithOverrides,
    PartLoadedInEval,
    PutToSleepInTheStep,
    PutToSleepAtTheEpoch,
    ModelTrainIsANoOp,
    ModelTrainWakesAll,
)


# honest


class KeptInEvalByTrain(FrozenBackbone):
    """A frozen backbone that an overridden `train()` keeps in eval mode."""

    def train(self, mode: bool = True) -> KeptInEvalByTrain:
        super().train(mode)
        self.backbone.eval()
        return self


class NormKeptInEval(Honest):
    """Batch norm whose affine parameters train while its statistics are kept by `train()`."""

    def __init__(self) -> None:
        super().__init__()
        self.train()

    def train(self, mode: bool = True) -> NormKeptInEval:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.eval()
        return self


class SamplesBetweenSteps(Honest):
    """Eval mode for a sample inside the training step, put back at once."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.eval()
        with torch.no_grad():
            self(batch[0])
        self.train()
        return super().training_step(batch, batch_idx)


class CalibratesBeforeValidation(Honest):
    """Batch norm statistics are calibrated in train mode before the first batch."""

    allow: ClassVar[dict[str, list[str]] | None] = {"state": ["backbone.1.*"]}

    def on_validation_epoch_start(self) -> None:
        self.backbone.train()
        with torch.no_grad():
            self.backbone(torch.randn(8, 4))
        self.backbone.eval()


class NoEffect(Honest):
    """Modules on which the mode has no effect are in eval mode in a model that trains."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Linear(4, 8),
            nn.LayerNorm(8),
            nn.Dropout(0.0),
            nn.InstanceNorm1d(8),
            nn.GRU(8, 8),
        )
        self.backbone.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(x.unsqueeze(0))[0].squeeze(0))


class Teacher(Honest):
    """A mean teacher in eval mode: frozen, and moved after each step."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = net().requires_grad_(False).eval()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        with torch.no_grad():
            aim = self.teacher(batch[0])
        return super().training_step(batch, batch_idx) + F.mse_loss(
            self.backbone(batch[0]), aim
        )

    def on_train_batch_end(self, *_: Any) -> None:
        pairs = zip(self.teacher.parameters(), self.backbone.parameters(), strict=True)
        with torch.no_grad():
            for mine, theirs in pairs:
                mine.lerp_(theirs, 0.1)


class TwoOptimizers(Honest):
    """A GAN: each side is frozen while the other one steps."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(
            nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)
        )
        self.critic = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        first, second = self.optimizers()
        for optimizer in (first, second):
            self.toggle_optimizer(optimizer)
            loss = self.critic(self.generator(torch.randn(8, 2))).mean()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.untoggle_optimizer(optimizer)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("score", self.critic(batch[0]).mean())

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [
            torch.optim.SGD(self.generator.parameters(), 0.01),
            torch.optim.SGD(self.critic.parameters(), 0.01),
        ]


class GrowsAtTheEpoch(Honest):
    """A module is replaced under the same name, and one is added, between evaluations."""

    def on_train_epoch_start(self) -> None:
        self.head = nn.Linear(8, 3)
        self.extra = nn.Dropout(0.1)
        optimizer = self.trainer.optimizers[0]
        optimizer.add_param_group({"params": self.head.parameters()})


class UnfrozenByHand(FrozenBackbone):
    """The backbone is unfrozen, in both senses, in the second epoch."""

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            self.backbone.requires_grad_(True).train()
            self.trainer.optimizers[0].add_param_group(
                {"params": self.backbone.parameters()}
            )


class MendsItself(LoadedInEval):
    """In eval mode until `on_train_start`, before any step."""

    def on_train_start(self) -> None:
        self.train()


class LazyHead(Honest):
    """A head without any mode-sensitive module, made in the first evaluation."""

    allow: ClassVar[dict[str, list[str]] | None] = {
        "stochastic": ["*"],
        "state": ["late*"],
    }

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if not hasattr(self, "late"):
            self.late = nn.Linear(3, 3)
        super().validation_step(batch, batch_idx)


HONEST: tuple[type[Honest], ...] = (
    Honest,
    FrozenBackbone,
    KeptInEvalByTrain,
    NormKeptInEval,
    SamplesBetweenSteps,
    CalibratesBeforeValidation,
    NoEffect,
    Teacher,
    TwoOptimizers,
    GrowsAtTheEpoch,
    UnfrozenByHand,
    MendsItself,
    LazyHead,
)
