"""Evaluations of weights that nobody means: never loaded, never trained, never averaged."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import callbacks as pl_callbacks
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn

from models.program import CLASSES, FEATURES, Classifier, bug, near_miss

HIDDEN = 16
LOADED: dict[str, Any] = {
    "guard": {"weights": "error"},
    "entry": "test",
    "stage": "test",
}
OUTSIDE: dict[str, Any] = {**LOADED, "inside": False}
TRAINED: dict[str, Any] = {
    "guard": {"weights": "error"}, "stage": "fit", "inside": False, "trainer": {"max_epochs": 3},
}  # fmt: skip


class TwoLayers(Classifier):
    """A body and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(FEATURES, HIDDEN)
        self.head = nn.Linear(HIDDEN, CLASSES)
        del self.net

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu())


def checkpoint(**renamed: str) -> dict[str, Tensor]:
    """What a trained model of two layers leaves, its first names given other ones."""
    made = TwoLayers().state_dict()
    return {renamed.get(k.partition(".")[0], k.partition(".")[0]) + "." + k.partition(".")[2]: v
            for k, v in made.items()}  # fmt: skip


# --- loaded -------------------------------------------------------------------------------------


@bug("weights", "", **LOADED)
class WrongPrefix(TwoLayers):
    """Each key of the file has a prefix that the model has not: nothing is loaded."""

    def __init__(self) -> None:
        super().__init__()
        state = {"model." + k: v for k, v in checkpoint().items()}
        self.load_state_dict(state, strict=False)  # <- here


@near_miss
class PrefixTakenOff(TwoLayers):
    def __init__(self) -> None:
        super().__init__()
        state = {"model." + k: v for k, v in checkpoint().items()}
        self.load_state_dict(
            {k.removeprefix("model."): v for k, v in state.items()}, strict=False
        )


@near_miss
class KeysToSpare(TwoLayers):
    """The file holds a projection too that is needed no more."""

    def __init__(self) -> None:
        super().__init__()
        self.load_state_dict(
            {**checkpoint(), "projection": torch.ones(3)}, strict=False
        )


@near_miss
class LoadedInTheEnd(TwoLayers):
    """A first load missed, and a second one found all."""

    def __init__(self) -> None:
        super().__init__()
        self.load_state_dict(
            {"model." + k: v for k, v in checkpoint().items()}, strict=False
        )
        self.load_state_dict(checkpoint())


@near_miss
class LoadedInParts(TwoLayers):
    """The body from one file, the head from another."""

    def __init__(self) -> None:
        super().__init__()
        body = {k: v for k, v in checkpoint().items() if k.startswith("body")}
        self.load_state_dict(body, strict=False)
        self.head.load_state_dict(nn.Linear(HIDDEN, CLASSES).state_dict())


@bug("weights", "head", **LOADED)
class RenamedHead(TwoLayers):
    """The head has another name in the file, and stays as initialised."""

    def __init__(self) -> None:
        super().__init__()
        self.load_state_dict(checkpoint(head="fc"), strict=False)  # <- here


@near_miss
class NameTranslated(TwoLayers):
    def __init__(self) -> None:
        super().__init__()
        state = checkpoint(head="fc")
        self.load_state_dict({k.replace("fc.", "head."): v for k, v in state.items()})


@near_miss
class HeadSetByHand(TwoLayers):
    """The missing layer is written by other means."""

    def __init__(self) -> None:
        super().__init__()
        state = checkpoint(head="fc")
        self.load_state_dict(state, strict=False)
        with torch.no_grad():
            self.head.weight.copy_(state["fc.weight"])
            self.head.bias.copy_(state["fc.bias"])


@near_miss
class HeadPutInPlace(TwoLayers):
    """The same through `.data`, which torch does not count."""

    def __init__(self) -> None:
        super().__init__()
        state = checkpoint(head="fc")
        self.load_state_dict(state, strict=False)
        self.head.weight.data = state["fc.weight"].clone()
        self.head.bias.data.copy_(state["fc.bias"])


@near_miss
class UnusedHeadMissing(TwoLayers):
    """A projection of pretraining, which no evaluation uses, is not in the file."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Linear(HIDDEN, HIDDEN)
        self.load_state_dict(checkpoint(), strict=False)


@bug("weights", "head", **LOADED)
class OtherShapesDropped(TwoLayers):
    """What does not fit is filtered out: the head of another number of classes."""

    def __init__(self) -> None:
        super().__init__()
        state = {
            **checkpoint(),
            "head.weight": torch.ones(9, HIDDEN),
            "head.bias": torch.ones(9),
        }
        own = self.state_dict()
        fitting = {k: v for k, v in state.items() if v.shape == own[k].shape}
        self.load_state_dict(fitting, strict=False)  # <- here


@near_miss
class NoneDropped(TwoLayers):
    def __init__(self) -> None:
        super().__init__()
        state, own = checkpoint(), self.state_dict()
        fitting = {k: v for k, v in state.items() if v.shape == own[k].shape}
        self.load_state_dict(fitting, strict=False)


@bug("weights", "", **LOADED)
class EmptyStateDict(TwoLayers):
    """The weights stand one level deeper in the file."""

    def __init__(self) -> None:
        super().__init__()
        file = {"epoch": 3, "model": checkpoint()}
        self.load_state_dict(file.get("state_dict", {}), strict=False)  # type: ignore[arg-type] # <- here


@near_miss
class OneLevelDeeper(TwoLayers):
    def __init__(self) -> None:
        super().__init__()
        file = {"epoch": 3, "model": checkpoint()}
        self.load_state_dict(file["model"], strict=False)  # type: ignore[arg-type]


@bug("weights", "body", **LOADED)
class SubmoduleLoadedWrongly(TwoLayers):
    """The pretrained body gets nothing: its keys begin with the name that it had elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.head.load_state_dict(nn.Linear(HIDDEN, CLASSES).state_dict())
        self.body.load_state_dict(checkpoint(), strict=False)  # <- here


@near_miss
class SubmoduleLoaded(TwoLayers):
    def __init__(self) -> None:
        super().__init__()
        self.head.load_state_dict(nn.Linear(HIDDEN, CLASSES).state_dict())
        self.body.load_state_dict(
            nn.Linear(FEATURES, HIDDEN).state_dict(), strict=False
        )


# --- as initialised -----------------------------------------------------------------------------


@bug("weights", "", **OUTSIDE)
class NeverLoaded(TwoLayers):  # <- here
    """Tested without a checkpoint."""


@near_miss
class Unpickled(TwoLayers):
    """Read from a file as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = unpickled(self.body), unpickled(self.head)


@near_miss
class Copied(TwoLayers):
    """Built on weights that were trained elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.head.weight = nn.Parameter(torch.randn(CLASSES, HIDDEN))
        self.body.weight = nn.Parameter(torch.randn(HIDDEN, FEATURES))


@near_miss
class WithoutWeights(Classifier):
    """A rule, not a model."""

    def __init__(self) -> None:
        super().__init__()
        del self.net

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :CLASSES]


def unpickled(module: nn.Module) -> nn.Module:
    import io

    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    read: nn.Module = torch.load(file, weights_only=False)
    return read


@bug("weights", "", **OUTSIDE)
class InitialisedByHand(TwoLayers):
    """The author's own initialisation is all that the weights ever saw."""

    def __init__(self) -> None:  # <- here
        super().__init__()
        for layer in (self.body, self.head):
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)


@near_miss
class FiltersByHand(TwoLayers):
    """Weights that are set to what they should be."""

    def __init__(self) -> None:
        super().__init__()
        for layer in (self.body, self.head):
            nn.init.eye_(layer.weight)
            nn.init.zeros_(layer.bias)


@bug("weights", "head", **OUTSIDE)
class HeadReplacedAfterTheLoad(TwoLayers):
    """All was loaded, and then the head made new."""

    def __init__(self) -> None:
        super().__init__()
        self.load_state_dict(checkpoint())
        self.head = nn.Linear(HIDDEN, CLASSES)  # <- here


@near_miss
class HeadReplacedBeforeTheLoad(TwoLayers):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(HIDDEN, CLASSES)
        self.load_state_dict(checkpoint())


@bug("weights", "body", **OUTSIDE)
class ResetAfterTheLoad(TwoLayers):
    """All was loaded, and then a layer initialised."""

    def __init__(self) -> None:
        super().__init__()
        self.load_state_dict(checkpoint())
        self.body.reset_parameters()  # <- here


@near_miss
class ResetBeforeTheLoad(TwoLayers):
    def __init__(self) -> None:
        super().__init__()
        self.body.reset_parameters()
        self.load_state_dict(checkpoint())


# --- trained ------------------------------------------------------------------------------------


@bug("weights", "head", **TRAINED)
class ReplacedAfterTheOptimizer(TwoLayers):
    """The optimizer trains the head that was there before."""

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        self.head = nn.Linear(HIDDEN, CLASSES)  # <- here
        return optimizer


@near_miss
class ReplacedBeforeTheOptimizer(TwoLayers):
    def configure_optimizers(self) -> Any:
        self.head = nn.Linear(HIDDEN, CLASSES)
        return super().configure_optimizers()


@bug("weights", "head", **TRAINED)
class HeadInNoOptimizer(TwoLayers):
    """The optimizer was made when the model was the body alone."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.body.parameters(), lr=0.1)  # <- here


@near_miss
class ProbeOfABodyInEvalMode(TwoLayers):
    """The optimizer holds the head alone, and the body stays as it is on purpose."""

    def on_train_epoch_start(self) -> None:
        self.body.eval()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.head.parameters(), lr=0.1)


@near_miss
class FrozenBody(TwoLayers):
    def __init__(self) -> None:
        super().__init__()
        self.body.requires_grad_(False)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.head.parameters(), lr=0.1)


@near_miss
class PretrainedBody(TwoLayers):
    """A body that was loaded, and left out of the optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.body.load_state_dict(nn.Linear(FEATURES, HIDDEN).state_dict())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.head.parameters(), lr=0.1)


@near_miss
class HeadTakenInLater(TwoLayers):
    """The body first, from the second epoch on all of it."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.body.parameters(), lr=0.1)

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            optimizer: Any = self.optimizers()
            optimizer.add_param_group({"params": list(self.head.parameters())})


@near_miss
class UpdatedByHand(TwoLayers):
    """A part without an optimizer, which the step updates itself."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.body.parameters(), lr=0.1)

    def on_before_zero_grad(self, optimizer: Any) -> None:
        for parameter in self.head.parameters():
            if parameter.grad is not None:
                parameter.data.sub_(0.1 * parameter.grad)
                parameter.grad = None


@bug("weights", "body", **TRAINED)
class Detached(TwoLayers):
    """A `detach` too many: the body is in the optimizer, and no gradient reaches it."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu().detach())  # <- here


@near_miss
class DetachedAndFrozen(Detached):
    def on_train_epoch_start(self) -> None:
        self.body.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu().detach())


@near_miss
class DetachedForTheSecondLoss(TwoLayers):
    """One of two branches is detached."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        features = self.body(x).relu()
        return (
            F.cross_entropy(self.head(features.detach()), y) + features.square().mean()
        )


@near_miss
class UnusedLayer(TwoLayers):
    """A layer kept for later, in the optimizer and in no step."""

    def __init__(self) -> None:
        super().__init__()
        self.later = nn.Linear(HIDDEN, CLASSES)


@bug("weights", "body", **TRAINED)
class WithoutGradientByItsDecorator(TwoLayers):
    """A feature extractor that was written for inference."""

    @torch.no_grad()  # <- here
    def features(self, x: Tensor) -> Tensor:
        return self.body(x).relu()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


@near_miss
class WithoutGradientInTheFirstPhase(TwoLayers):
    """The body is trained in the second epoch."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.current_epoch > 0):
            features = self.body(x).relu()
        return self.head(features)


# --- registered ---------------------------------------------------------------------------------


@bug("weights", "layers[0]", **TRAINED)
class LayersInAList(Classifier):
    """A plain list of layers: the optimizer never gets them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: Any = [nn.Linear(FEATURES, FEATURES) for _ in range(2)]  # <- here

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).tanh()
        return self.net(x)


@near_miss
class LayersInAModuleList(LayersInAList):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(self.layers)


@near_miss
class FrozenTeacherInAList(Classifier):
    """Kept out of the checkpoint on purpose, and of the training too."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = [nn.Linear(FEATURES, CLASSES).eval().requires_grad_(False)]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        wanted = self.teacher[0](batch[0]).softmax(1)
        return super().training_step(batch, batch_idx) + F.cross_entropy(
            self(batch[0]), wanted
        )


@bug("weights", "heads['cat']", **TRAINED)
class HeadsInADict(TwoLayers):
    """A plain dict of heads."""

    def __init__(self) -> None:
        super().__init__()
        self.heads: Any = {"cat": nn.Linear(HIDDEN, CLASSES)}  # <- here

    def forward(self, x: Tensor) -> Tensor:
        return self.heads["cat"](self.body(x).relu())


@near_miss
class HeadsInAModuleDict(HeadsInADict):
    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleDict(self.heads)


@bug("weights", "scale", **TRAINED)
class PlainTensor(Classifier):
    """A tensor that asks for a gradient, and is no parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.ones(FEATURES, requires_grad=True)  # <- here

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x * self.scale)


@near_miss
class PlainParameter(PlainTensor):
    def __init__(self) -> None:
        super().__init__()
        scale = self.scale.detach()
        del self.scale
        self.scale = nn.Parameter(scale)


@near_miss
class GradientOfTheInput(Classifier):
    """The input asks for a gradient, and is kept."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen = batch[0].clone().requires_grad_()
        return F.cross_entropy(self(self.seen), batch[1])


@bug("weights", "layers[0]", **TRAINED)
class TrainedAndNotSaved(LayersInAList):
    """The layers are given to the optimizer by hand: they train, and no checkpoint has them."""

    def configure_optimizers(self) -> Any:
        hidden = [p for layer in self.layers for p in layer.parameters()]
        return torch.optim.SGD([*self.parameters(), *hidden], lr=0.1)  # <- here


@near_miss
class TrainedAndSavedByHand(LayersInAList):
    def configure_optimizers(self) -> Any:
        hidden = [p for layer in self.layers for p in layer.parameters()]
        return torch.optim.SGD([*self.parameters(), *hidden], lr=0.1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["layers"] = [layer.state_dict() for layer in self.layers]


# --- averaged -----------------------------------------------------------------------------------

AVERAGED: dict[str, Any] = {**TRAINED, "stage": "validate"}


class Averaged(Classifier):
    """Validates the average of its weights."""

    def __init__(self, use_buffers: bool = False) -> None:
        super().__init__()
        self.net: Any = nn.Sequential(
            nn.Linear(FEATURES, CLASSES), nn.BatchNorm1d(CLASSES)
        )
        self.average = AveragedModel(self.net, use_buffers=use_buffers)
        self.average.requires_grad_(False)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        self.log("val_loss", F.cross_entropy(self.average(x), y))


class Updated(Averaged):
    def on_train_batch_end(self, *args: Any) -> None:
        self.average.update_parameters(self.net)


@bug("weights", "average", also=("modes",), **AVERAGED)
class NeverUpdated(Averaged):  # <- here
    """Nobody calls `update_parameters`."""


@near_miss
class UpdatedAfterEachBatch(Averaged):
    def __init__(self) -> None:
        super().__init__(use_buffers=True)

    def on_train_batch_end(self, *args: Any) -> None:
        self.average.update_parameters(self.net)


@near_miss
class UpdatedWithinEachStep(UpdatedAfterEachBatch):
    """The step writes the statistics of the average, and never calls it."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.average.update_parameters(self.net)
        return super().training_step(batch, batch_idx)

    def on_train_batch_end(self, *args: Any) -> None:
        pass


@bug("weights", "average", **AVERAGED)
class StatisticsOfTheOthers(Updated):  # <- here
    """The weights are averaged, and the batch statistics are those of the last step."""


@near_miss
class StatisticsOfItsOwn(Updated):
    """They are computed anew as an epoch ends."""

    def on_train_batch_end(self, *args: Any) -> None:
        super().on_train_batch_end(*args)
        update_bn(self.train_dataloader(), self.average)


@near_miss
class StatisticsFrozen(Updated):
    """Statistics of pretraining, which nobody updates."""

    def on_train_epoch_start(self) -> None:
        self.net[1].eval()
        self.net[1].requires_grad_(False)


if hasattr(pl_callbacks, "EMAWeightAveraging"):  # Lightning >= 2.6

    @bug("weights", "EMAWeightAveraging", **AVERAGED)
    class AveragedTooLate(Classifier):
        """The callback validates its copy before it averages anything (PL#21724)."""

        def configure_callbacks(self) -> Any:
            return [
                pl_callbacks.EMAWeightAveraging(update_starting_at_step=100)
            ]  # <- here

    @near_miss
    class AveragedFromTheStart(Classifier):
        def configure_callbacks(self) -> Any:
            return [pl_callbacks.EMAWeightAveraging(decay=0.5)]


@bug("weights", "shadow", **TRAINED)
class ShadowNeverUpdated(Classifier):
    """A copy that should follow the weights, and that nothing updates, is validated."""

    def __init__(self) -> None:
        super().__init__()
        self.shadow = copy.deepcopy(self.net).requires_grad_(False)  # <- here

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("val_loss", F.cross_entropy(self.shadow(batch[0]), batch[1]))


@near_miss
class ShadowUpdated(ShadowNeverUpdated):
    def __init__(self) -> None:
        super().__init__()

    def on_train_batch_end(self, *args: Any) -> None:
        for slow, fast in zip(
            self.shadow.parameters(), self.net.parameters(), strict=True
        ):
            slow.data.mul_(0.9).add_(0.1 * fast.data)
