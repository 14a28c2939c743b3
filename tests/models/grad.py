"""Evaluations that record an autograd graph, or keep what they computed."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from models.program import CLASSES, FEATURES, Classifier, bug, near_miss


@bug("grad")
class EnableGradInTheStep(Classifier):
    """The graph of every validation loss is recorded, and returned."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        with torch.enable_grad():  # <- here
            loss = F.cross_entropy(self(batch[0]), batch[1])
        return {"loss": loss}


@near_miss
class NoGradInTheStep(Classifier):
    """Said twice does no harm."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        with torch.no_grad():
            loss = F.cross_entropy(self(batch[0]), batch[1])
        return {"loss": loss}


@near_miss
class ForcePrediction(Classifier):
    """Forces are a derivative by the input: a graph is needed, used up and gone."""

    def forces(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            energy = self(x).sum()
            return -torch.autograd.grad(energy, x)[0].detach()

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return {"forces": self.forces(batch[0])}


@bug("grad")
class SetGradEnabledInTheStep(Classifier):
    """Grad mode switched on by a constant, and left on for all that follows."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        torch.set_grad_enabled(True)  # <- here
        return super().validation_step(batch, batch_idx)


@near_miss
class SetGradEnabledByMode(Classifier):
    """Switched by the mode, and put back."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        with torch.set_grad_enabled(self.training):
            return super().validation_step(batch, batch_idx)


@bug("grad")
class GraphRecordedAndThrownAway(Classifier):
    """Nothing of the graph leaves the step: it costs memory and time for nothing."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        with torch.enable_grad():  # <- here
            logits = self(batch[0])
        self.log("val_loss", F.cross_entropy(logits.detach(), batch[1]))


@near_miss
class MetricThatSwitchesGradMode(Classifier):
    """torchmetrics enters its own grad mode inside `update`; that is none of the user's."""

    def __init__(self) -> None:
        super().__init__()
        self.accuracy = MulticlassAccuracy(CLASSES)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.accuracy(self(batch[0]), batch[1])
        self.log("val_acc", self.accuracy)


@bug("grad", "block")
class EnableGradInForward(Classifier):
    """A submodule's forward is decorated with `enable_grad`, for training's sake."""

    class Block(nn.Linear):
        @torch.enable_grad()
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)  # <- here

    def __init__(self) -> None:
        super().__init__()
        self.block = self.Block(FEATURES, FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.block(x))


@near_miss
class GradModeOfTheCaller(EnableGradInForward):
    """The caller's grad mode is kept."""

    class Block(nn.Linear):  # type: ignore[assignment]
        def forward(self, x: Tensor) -> Tensor:
            with torch.set_grad_enabled(torch.is_grad_enabled()):
                return super().forward(x)


@bug("grad", None)
class EnableGradInAForwardHook(Classifier):
    """A forward hook switches grad mode on for the layers after it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, FEATURES)
        self.first.register_forward_hook(self.switch)

    @staticmethod
    def switch(*_: Any) -> None:
        torch.set_grad_enabled(True)  # <- here

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.first(x))


@near_miss
class ForwardHookThatReads(EnableGradInAForwardHook):
    @staticmethod
    def switch(*_: Any) -> None:
        torch.is_grad_enabled()


@bug("grad", None)
class EnableGradInABatchHook(Classifier):
    """A hook of the batch switches grad mode on; the step only runs in it."""

    def on_validation_batch_start(self, *_: Any) -> None:
        torch.set_grad_enabled(True)  # <- here


@near_miss
class GradModeAskedInABatchHook(Classifier):
    def on_validation_batch_start(self, *_: Any) -> None:
        torch.is_grad_enabled()


@bug("grad", None)
class EnableGradInACallback(Classifier):
    """A callback switches grad mode on when the evaluation starts."""

    class Switch(pl.Callback):
        def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
            torch.set_grad_enabled(True)  # <- here

    def configure_callbacks(self) -> list[pl.Callback]:
        return [self.Switch()]


@near_miss
class CallbackWithGradModeOfItsOwn(Classifier):
    """A callback that differentiates in a context of its own."""

    class Slope(pl.Callback):
        def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
            with torch.enable_grad():
                x = torch.ones(2, requires_grad=True)
                torch.autograd.grad(x.square().sum(), x)

    def configure_callbacks(self) -> list[pl.Callback]:
        return [self.Slope()]


@bug("grad", entry="test", stage="test", guard={"weights": "ignore"})
class InferenceModeLeft(Classifier):
    """`inference_mode(False)` in a test step switches recording on again."""

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        with torch.inference_mode(False):  # <- here
            logits = self(batch[0].clone())
        return {"preds": logits}


@near_miss
class InferenceModeEntered(Classifier):
    def test_step(self, batch: Any, batch_idx: int) -> Any:
        with torch.inference_mode():
            return {"preds": self(batch[0])}


@bug("grad", "outputs", certain=False, stage="validate")
class OutputsHoarded(Classifier):
    """Outputs are appended and never cleared: seen when a second evaluation begins (PL#5735)."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[Tensor] = []

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        logits = self(batch[0])
        self.outputs.append(logits)  # <- here


@near_miss
class OutputsCleared(OutputsHoarded):
    """Lightning 2's documented way: append, use, clear."""

    def on_validation_epoch_end(self) -> None:
        self.log("mean", torch.cat(self.outputs).mean())
        self.outputs.clear()


@near_miss
class ScalarsHoarded(Classifier):
    """Python floats of each epoch for a plot cost nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.history: list[float] = []

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.history.append(float(F.cross_entropy(self(batch[0]), batch[1])))


@bug("grad", None)
class GraphsHoarded(Classifier):
    """A running total that keeps the graph of every batch alive."""

    def __init__(self) -> None:
        super().__init__()
        self.total: Any = 0.0

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        with torch.enable_grad():  # <- here
            self.total = self.total + F.cross_entropy(self(batch[0]), batch[1])


@near_miss
class RunningTotal(Classifier):
    """The same total, of a tensor without a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.total: Any = 0.0

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.total = self.total + F.cross_entropy(self(batch[0]), batch[1])


@bug("grad")
class GradModeEnteredForGood(Classifier):
    """A context entered by hand and never left."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        torch.enable_grad().__enter__()  # <- here
        return {"preds": self(batch[0])}


@near_miss
class GradientPenaltyLogged(Classifier):
    """A penalty on the slope is measured in validation: recorded, used up, detached."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        with torch.enable_grad():
            x = batch[0].clone().requires_grad_()
            (slope,) = torch.autograd.grad(self(x).sum(), x)
        self.log("penalty", slope.norm(dim=1).mean())
        return super().validation_step(batch, batch_idx)


@near_miss
class JacobianByTransforms(Classifier):
    """`torch.func` differentiates without recording a graph that anyone could keep."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        slope = torch.func.vmap(torch.func.jacrev(self.net))(batch[0])
        self.log("slope", slope.abs().mean())


@bug("grad", entry="predict", stage="predict", trainer={"inference_mode": False})
class EnableGradInPredict(Classifier):
    """Predictions come back with their graphs."""

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        with torch.enable_grad():  # <- here
            return self(batch[0])


@near_miss
class PredictWithoutInferenceMode(Classifier):
    """``inference_mode=False`` still means no_grad."""
