"""Evaluations that leave something behind: the model that trains on is not the one that came."""

from __future__ import annotations

import copy
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.ao.quantization import MinMaxObserver
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from models.program import BATCH, CLASSES, FEATURES, Classifier, bug, near_miss

# --- running statistics -------------------------------------------------------------------------


class Normed(Classifier):
    """A classifier behind a BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.bn(x))


@bug("state", "bn.running_mean", also=("batch",), guard={"modes": "ignore"})
class BatchNormLeftInTrain(Normed):
    """A hook puts the BatchNorm back to train mode: validation batches move its statistics."""

    def on_validation_start(self) -> None:
        self.bn.train()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.bn(x))  # <- here


@near_miss
class BatchNormInEval(Normed):
    """The statistics of training are used, and stay."""


@bug("state", None, also=("batch",))
class BatchNormInADict(Classifier):
    """Unregistered: always in train mode, and its statistics are in no checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = {"a": nn.BatchNorm1d(FEATURES)}

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.norms["a"](x))  # <- here


@near_miss
class BatchNormInAModuleDict(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleDict({"a": nn.BatchNorm1d(FEATURES)})

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.norms["a"](x))


@bug("state", "bn.running_mean", also=("batch",))
class BatchNormTracedInTrain(Classifier):
    """The trace kept ``training=True``: eval mode does not stop the statistics."""

    def __init__(self) -> None:
        super().__init__()
        example = torch.ones(BATCH, FEATURES)
        self.bn = torch.jit.trace(
            nn.BatchNorm1d(FEATURES).train(), example, check_trace=False
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.bn(x))  # <- here


@near_miss
class BatchNormTracedInEval(Normed):
    def __init__(self) -> None:
        super().__init__()
        self.bn = torch.jit.trace(self.bn.eval(), torch.ones(BATCH, FEATURES)).train()


@bug("state", "mean", also=("batch",))
class FunctionalBatchNorm(Classifier):
    """`F.batch_norm` with a constant ``training=True``."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.register_buffer("var", torch.ones(FEATURES))

    def forward(self, x: Tensor) -> Tensor:
        x = F.batch_norm(x, self.mean, self.var, training=True)  # <- here
        return self.net(x)


@near_miss
class FunctionalBatchNormFollowsTheMode(FunctionalBatchNorm):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(F.batch_norm(x, self.mean, self.var, training=self.training))


@near_miss
class WeightStandardisation(Classifier):
    """`F.batch_norm(training=True)` over a weight: no statistics, no samples, no fault."""

    def forward(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(self.net.weight[None], None, None, training=True)[0]
        return F.linear(x, weight, self.net.bias)


@near_miss
class InstanceNorm(Classifier):
    """Arrives as a batch norm in train mode, over each sample alone."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm1d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.norm(x.unflatten(1, (2, 4))).flatten(1))


@bug("state", "count")
class RunningNormaliser(Classifier):
    """A normaliser that counts every sample it sees, those of validation too."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def observe(self, x: Tensor) -> None:
        self.count += len(x)  # <- here

    def forward(self, x: Tensor) -> Tensor:
        self.observe(x)
        return self.net(x)


@near_miss
class RunningNormaliserOfTraining(RunningNormaliser):
    def observe(self, x: Tensor) -> None:
        if self.training:
            super().observe(x)


# --- momentum encoders, codebooks, queues, centres, observers -------------------------------------


class WithTeacher(Classifier):
    """A classifier and its slow copy."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = copy.deepcopy(self.net).requires_grad_(False)

    @torch.no_grad()
    def follow(self) -> None:
        for slow, fast in zip(
            self.teacher.parameters(), self.net.parameters(), strict=True
        ):
            slow.mul_(0.9).add_(fast + 0.01, alpha=0.1)


@bug("state", "teacher.weight")
class MomentumEncoder(WithTeacher):
    """The EMA teacher moves in the step that training and validation share (bolts#419)."""

    @torch.no_grad()
    def follow(self) -> None:
        for slow, fast in zip(
            self.teacher.parameters(), self.net.parameters(), strict=True
        ):
            slow.lerp_(fast + 0.01, 0.1)  # <- here

    def forward(self, x: Tensor) -> Tensor:
        self.follow()
        return self.net(x)


@near_miss
class MomentumEncoderOfTraining(WithTeacher):
    """The teacher follows after each training batch."""

    def on_train_batch_end(self, *_: Any) -> None:
        self.follow()


@bug("state", "codebook.embedding")
class CodebookUpdate(Classifier):
    """The codebook of a VQ-VAE moves towards whatever is encoded."""

    class Codebook(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("embedding", torch.randn(4, FEATURES))

        def forward(self, x: Tensor) -> Tensor:
            nearest = torch.cdist(x, self.embedding).argmin(1)
            self.update(x, nearest)
            return x + (self.embedding[nearest] - x).detach()

        def update(self, x: Tensor, nearest: Tensor) -> None:
            centres = torch.zeros_like(self.embedding).index_add_(
                0, nearest, x.detach()
            )
            self.embedding.mul_(0.99).add_(centres, alpha=0.01)  # <- here

    def __init__(self) -> None:
        super().__init__()
        self.codebook = self.Codebook()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.codebook(x))


@near_miss
class CodebookUpdateOfTraining(CodebookUpdate):
    class Codebook(CodebookUpdate.Codebook):
        def update(self, x: Tensor, nearest: Tensor) -> None:
            if self.training:
                super().update(x, nearest)


@bug("state", "queue")
class MomentumQueue(Classifier):
    """Keys of validation enter the queue of negatives (bolts#630)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("queue", torch.zeros(2 * BATCH, FEATURES))
        self.enqueued = 0

    def enqueue(self, keys: Tensor) -> None:
        start = self.enqueued % (2 * BATCH)
        self.queue[start : start + len(keys)] = keys.detach()  # <- here
        self.enqueued += len(keys)

    def forward(self, x: Tensor) -> Tensor:
        self.enqueue(x)
        return self.net(x)


@near_miss
class MomentumQueueOfTraining(MomentumQueue):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.enqueue(x)
        return self.net(x)


@bug("state", "centre")
class TeacherCentre(Classifier):
    """DINO's centre is replaced by a new tensor at every call, in every mode (lightly)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(FEATURES))

    def move(self, x: Tensor) -> None:
        self.centre = 0.9 * self.centre + 0.1 * x.detach().mean(0)  # <- here

    def forward(self, x: Tensor) -> Tensor:
        out = self.net(x - self.centre)
        self.move(x)
        return out


@near_miss
class TeacherCentreOfTraining(TeacherCentre):
    def move(self, x: Tensor) -> None:
        if self.training:
            super().move(x)


@bug("state", None)
class QuantizationObserver(Classifier):
    """Observers widen their range on validation data (PL#8507)."""

    def val_dataloader(self) -> Any:
        loader = super().val_dataloader()
        loader.dataset.tensors[0].abs_().mul_(10)  # beyond all that training saw
        return loader

    def __init__(self) -> None:
        super().__init__()
        self.observer = MinMaxObserver()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.observer(x))  # <- here


@near_miss
class QuantizationObserverOfTraining(QuantizationObserver):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.observer(x) if self.training else x)


@bug("state", "hidden")
class HiddenStateKept(Classifier):
    """The recurrent state of one sequence is kept in a buffer for the next, whatever the stage."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(FEATURES, FEATURES)
        self.register_buffer("hidden", torch.zeros(BATCH, FEATURES))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.cell(x, self.hidden.clone())
        self.hidden.copy_(hidden.detach())  # <- here
        return self.net(hidden)


@near_miss
class HiddenStateOfTheCall(HiddenStateKept):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.cell(x, self.hidden))


@bug("state", "emb.weight")
class EmbeddingMaxNorm(Classifier):
    """``nn.Embedding(max_norm=...)`` renormalises its weight in place at every look-up."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(FEATURES, FEATURES, max_norm=0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + self.emb(x.argmax(1)))  # <- here


@near_miss
class EmbeddingWithoutMaxNorm(EmbeddingMaxNorm):
    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(FEATURES, FEATURES)


@near_miss
class SpectralNorm(Classifier):
    """Its power iteration runs in train mode only."""

    def __init__(self) -> None:
        super().__init__()
        self.net = spectral_norm(self.net)


@near_miss
class WeightNorm(Classifier):
    """Its weight is computed afresh at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.net = weight_norm(self.net)


@near_miss
class OldWeightNorm(Classifier):
    """The hook that rebinds ``weight`` at every call: the same product of what did not change."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.utils.weight_norm(self.net)


class MaskedLinear(nn.Module):
    """A layer of which some connections are cut."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.layer = nn.Linear(columns, rows)
        self.register_buffer("mask", torch.ones(rows, columns).tril())

    def forward(self, x: Tensor) -> Tensor:
        self.layer.weight.data *= self.mask  # <- here
        return self.layer(x)


class MaskedFunctionally(MaskedLinear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.layer.weight * self.mask, self.layer.bias)


@bug("state", "net.layer.weight", certain=False, marked=MaskedLinear)
class WeightsMaskedInPlace(Classifier):
    """Each call puts the weights back where a mask wants them, in training too."""

    kind: type[MaskedLinear] = MaskedLinear

    def __init__(self) -> None:
        super().__init__()
        self.body, self.net = (
            self.kind(FEATURES, FEATURES),
            self.kind(CLASSES, FEATURES),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.body(x).relu())


@near_miss
class WeightsMaskedForTheCall(WeightsMaskedInPlace):
    kind = MaskedFunctionally


# --- writes that version counters do not see ------------------------------------------------------


@bug("state", "net.weight")
class DataWrite(Classifier):
    """A write through `.data` moves no version counter."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.net.weight.data.mul_(0.99)  # <- here
        return super().validation_step(batch, batch_idx)


@near_miss
class DataRead(Classifier):
    """`.data` read, and its copy written."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("norm", self.net.weight.data.clone().mul_(0.99).norm())
        return super().validation_step(batch, batch_idx)


@bug("state", "scale")
class NumpyViewWrite(Classifier):
    """A numpy view of a buffer is the buffer; no operator of torch runs."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(FEATURES))

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        view = self.scale.numpy()
        view *= 1.01  # <- here
        return super().validation_step(batch, batch_idx)


@near_miss
class NumpyCopyWrite(NumpyViewWrite):
    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        own = self.scale.numpy().copy()
        own *= 1.01
        return Classifier.validation_step(self, batch, batch_idx)


@bug("state", "scale")
class StorageWrite(Classifier):
    """Written through its storage."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(FEATURES, dtype=torch.uint8))

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.scale.untyped_storage().fill_(batch_idx + 2)  # <- here
        return super().validation_step(batch, batch_idx)


@near_miss
class StorageRead(StorageWrite):
    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("bytes", float(self.scale.untyped_storage().nbytes()))
        return Classifier.validation_step(self, batch, batch_idx)


@bug("state", "net.weight")
class ForeachDecay(Classifier):
    """One fused call over all parameters."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        torch._foreach_mul_(list(self.net.parameters()), 0.99)  # <- here
        return super().validation_step(batch, batch_idx)


@near_miss
class ForeachNorm(Classifier):
    """One fused call that only reads."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        norms = torch._foreach_norm(list(self.net.parameters()))
        self.log("norm", torch.stack(norms).norm())
        return super().validation_step(batch, batch_idx)


@bug("state", "net.weight")
class SwappedContents(Classifier):
    """Weights set from a flat vector in the step, not put back."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        flat = parameters_to_vector(self.net.parameters())
        vector_to_parameters(flat * 0.99, self.net.parameters())  # <- here
        return super().validation_step(batch, batch_idx)


@near_miss
class FlatVectorRead(Classifier):
    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("norm", parameters_to_vector(self.net.parameters()).norm())
        return super().validation_step(batch, batch_idx)


# --- rebinding ------------------------------------------------------------------------------------


@bug("state", "net.weight")
class ReassignedParameter(Classifier):
    """A new Parameter in the place of the old one: the optimizer goes on with the old one."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.net.weight = nn.Parameter(self.net.weight.detach() * 0.99)  # <- here
        return super().validation_step(batch, batch_idx)


@near_miss
class FunctionalCall(Classifier):
    """Other weights for one call, which torch puts back."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        scaled = {name: p * 0.99 for name, p in self.named_parameters()}
        with torch.no_grad():
            self.log("other", torch.func.functional_call(self, scaled, batch[0]).mean())
        return super().validation_step(batch, batch_idx)


@bug("state", "last")
class ReassignedBuffer(Classifier):
    """The last batch kept in a registered buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(BATCH, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        out = self.net(x)
        self.last = out.detach()  # <- here
        return out


@near_miss
class LastBatchInAPlainAttribute(Classifier):
    """In a plain attribute it is nobody's state: neither saved nor trained."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.net(x)
        self.last = out.detach()
        return out


@near_miss
class CountsBatchesInAPlainAttribute(Classifier):
    """Bookkeeping of the step."""

    seen = 0

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen += len(batch[0])
        return super().validation_step(batch, batch_idx)


@bug("state", "net.weight")
class WeightsSwappedInTheStep(Classifier):
    """A teacher's weights are put in for the step, by `load_state_dict`, and stay."""

    def __init__(self) -> None:
        super().__init__()
        self.best = {
            k: v + 0.1 for k, v in copy.deepcopy(self.net.state_dict()).items()
        }

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.net.load_state_dict(self.best)  # <- here
        return super().validation_step(batch, batch_idx)


@near_miss
class WeightsSwappedAndPutBack(WeightsSwappedInTheStep):
    """In for the evaluation, back after it, as EMA and SWA do."""

    def on_validation_start(self) -> None:
        self.kept = copy.deepcopy(self.net.state_dict())
        self.net.load_state_dict(self.best)

    def on_validation_end(self) -> None:
        self.net.load_state_dict(self.kept)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return Classifier.validation_step(self, batch, batch_idx)


@bug("state", "net.weight")
class BestWeightsNotPutBack(Classifier):
    """The best weights are loaded for the evaluation; training goes on from them."""

    def __init__(self) -> None:
        super().__init__()
        self.best = {
            k: v + 0.1 for k, v in copy.deepcopy(self.net.state_dict()).items()
        }

    def on_validation_start(self) -> None:
        self.net.load_state_dict(self.best)  # <- here


if hasattr(pl.callbacks, "EMAWeightAveraging"):  # Lightning >= 2.6

    @near_miss
    class LightningsOwnAverage(Classifier):
        """`EMAWeightAveraging` swaps the average in and the trained weights back."""

        def configure_callbacks(self) -> list[pl.Callback]:
            return [pl.callbacks.EMAWeightAveraging(decay=0.5)]


@bug("state", "teacher.weight")
class TeacherSyncedAfterValidation(WithTeacher):
    """The teacher is replaced by the student inside the evaluation."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.zeros_(self.teacher.weight)

    def on_validation_epoch_end(self) -> None:
        self.teacher.load_state_dict(self.net.state_dict())  # <- here


@near_miss
class TeacherSyncedAfterTraining(WithTeacher):
    def on_train_epoch_end(self) -> None:
        self.teacher.load_state_dict(self.net.state_dict())


@bug("state", "net.weight")
class PrecisionLost(Classifier):
    """Evaluated in half precision; the round trip rounds the weights that are trained."""

    def on_validation_start(self) -> None:
        self.net.bfloat16()

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.log(
            "val_loss", F.cross_entropy(self(batch[0].bfloat16()).float(), batch[1])
        )

    def on_validation_end(self) -> None:
        self.net.float()  # <- here


@near_miss
class PrecisionRaised(Classifier):
    """A round trip through float64 loses nothing."""

    def on_validation_start(self) -> None:
        self.net.double()

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("val_loss", F.cross_entropy(self(batch[0].double()).float(), batch[1]))

    def on_validation_end(self) -> None:
        self.net.float()


@near_miss
class CopyInHalfPrecision(Classifier):
    """A copy for the evaluation."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        half = copy.deepcopy(self.net).bfloat16()
        self.log(
            "val_loss", F.cross_entropy(half(batch[0].bfloat16()).float(), batch[1])
        )


@bug("state", None)
class DtypeLeftBehind(Classifier):
    """A teacher is cast for the evaluation and stays cast."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = nn.Linear(FEATURES, CLASSES)

    def on_validation_end(self) -> None:
        self.teacher.double()  # <- here


@near_miss
class DtypeOfTheInput(Classifier):
    """The batch is cast, not the model."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return super().validation_step([batch[0].double().float(), batch[1]], batch_idx)


class MergedLayer(nn.Module):
    """Low-rank adaptation that folds its product into the weight for eval mode (loralib)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(FEATURES, FEATURES))
        self.delta = nn.Parameter(torch.ones(FEATURES, FEATURES))
        self.merged = False

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight if self.merged else self.weight + self.delta)


@bug("state", "lora.weight")
class MergesInEval(Classifier):
    """Lightning restores the flag and not through `train()`: it trains on merged weights."""

    class Lora(MergedLayer):
        @torch.no_grad()
        def train(self, mode: bool = True) -> MergedLayer:
            if self.merged == mode:
                self.weight.add_(self.delta, alpha=-1.0 if mode else 1.0)  # <- here
                self.merged = not mode
            return super().train(mode)

    def __init__(self) -> None:
        super().__init__()
        self.lora = self.Lora()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.lora(x))


@near_miss
class MergesForTheCall(MergesInEval):
    """The sum is made where it is used."""

    Lora = MergedLayer  # type: ignore[assignment]


@bug("state", "block.weight")
class RescalesInEval(Classifier):
    """The first forward in eval mode divides the weights, the first in train mode multiplies."""

    class Block(nn.Linear):
        rescaled = False

        @torch.no_grad()
        def rescale(self) -> None:
            if self.rescaled == self.training:
                self.weight.mul_(2.0 if self.training else 0.5)  # <- here
                self.rescaled = not self.training

        def forward(self, x: Tensor) -> Tensor:
            self.rescale()
            return super().forward(x) * (1.0 if self.training else 2.0)

    def __init__(self) -> None:
        super().__init__()
        self.block = self.Block(FEATURES, FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.block(x))


@near_miss
class RescalesTheResult(RescalesInEval):
    class Block(nn.Linear):  # type: ignore[assignment]
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x / 2) * 2


# --- optimizers, schedulers, gradients ------------------------------------------------------------


@bug("state", "net.weight", also=("grad",))
class OptimizerStepInTheStep(Classifier):
    """Test-time training on the validation batch."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)
        with torch.enable_grad():
            F.cross_entropy(self(batch[0]), batch[1]).backward()
        optimizer.step()  # <- here
        optimizer.zero_grad()


@near_miss
class OptimizerStepOnACopy(Classifier):
    """Test-time training of a copy: the model itself is only read."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        other = copy.deepcopy(self.net)
        with torch.enable_grad():
            loss = F.cross_entropy(other(batch[0]), batch[1])
            grads = torch.autograd.grad(loss, list(other.parameters()))
        for p, g in zip(other.parameters(), grads, strict=True):
            p.data.sub_(g)
        self.log("val_loss", F.cross_entropy(other(batch[0]), batch[1]))


@bug("state", "net.weight", also=("grad",))
class FusedOptimizerStep(Classifier):
    """A fused optimizer moves no version counter."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer = torch.optim.Adam(self.net.parameters(), lr=0.1, fused=True)
        with torch.enable_grad():
            F.cross_entropy(self(batch[0]), batch[1]).backward()
        optimizer.step()  # <- here
        optimizer.zero_grad()


@near_miss
class FusedOptimizerOfTraining(Classifier):
    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.1, fused=True)


@bug("state", None, stage="validate")
class SchedulerStepInValidation(Classifier):
    """The schedule advances once for each evaluation, the sanity check apart."""

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.lr_schedulers().step()  # <- here


@near_miss
class PlateauScheduler(Classifier):
    """Lightning steps it after the evaluation, on what was logged."""

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"},
        }


@bug("state", None, stage="validate")
class LearningRateChanged(Classifier):
    """The learning rate is cut by hand when validation ends."""

    def on_validation_end(self) -> None:
        if not self.trainer.sanity_checking:
            for group in self.optimizers().param_groups:
                group["lr"] *= 0.1  # <- here


@near_miss
class LearningRateChangedAfterTheEpoch(Classifier):
    """Between evaluations it is training's business."""

    def on_train_epoch_end(self) -> None:
        for group in self.optimizers().param_groups:
            group["lr"] *= 0.1


@bug("state", None, stage="validate")
class ParamGroupAdded(Classifier):
    """A layer is unfrozen when validation ends."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(CLASSES, CLASSES)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net.parameters(), lr=0.1)

    def on_validation_end(self) -> None:
        optimizer = self.trainer.optimizers[0]
        if len(optimizer.param_groups) == 1 and not self.trainer.sanity_checking:
            optimizer.add_param_group(  # <- here
                {"params": list(self.head.parameters())}
            )


@near_miss
class ParamGroupAddedBeforeTraining(ParamGroupAdded):
    """Unfrozen where `BaseFinetuning` does it: at the start of a training epoch."""

    def on_train_epoch_start(self) -> None:
        self.trainer.optimizers[0].add_param_group(
            {"params": list(self.head.parameters())}
        )

    def on_validation_end(self) -> None:
        pass


@bug("state", "net.weight", also=("grad",))
class GradientsLeftBehind(Classifier):
    """An adversarial evaluation by `backward()`: its gradients join the next optimizer step."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        with torch.enable_grad():
            x = x.clone().requires_grad_()
            F.cross_entropy(self(x), y).backward()  # <- here
        return super().validation_step([x.detach() + 0.1 * x.grad.sign(), y], batch_idx)


@near_miss
class GradientsOfTheInput(Classifier):
    """`torch.autograd.grad` leaves nothing behind."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        with torch.enable_grad():
            x = x.clone().requires_grad_()
            (slope,) = torch.autograd.grad(F.cross_entropy(self(x), y), x)
        return super().validation_step([x.detach() + 0.1 * slope.sign(), y], batch_idx)


@bug(
    "state",
    "net.weight",
    stage="validate",
    trainer={"accumulate_grad_batches": 2, "val_check_interval": 1},
)
class AccumulatedGradientsDropped(Classifier):
    """Validation in the middle of an accumulation zeroes what was accumulated."""

    def on_validation_start(self) -> None:
        self.zero_grad()  # <- here


@near_miss
class AccumulatedGradientsKept(Classifier):
    """The same validation in the middle, hands off."""


# --- what else leaks ------------------------------------------------------------------------------


@bug("state", "backbone.weight")
class FrozenForEvaluation(Classifier):
    """`requires_grad` is switched off for the evaluation and stays off."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(FEATURES, FEATURES)

    def on_validation_start(self) -> None:
        self.backbone.requires_grad_(False)  # <- here

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.backbone(x))


@near_miss
class FrozenAndThawed(FrozenForEvaluation):
    def on_validation_end(self) -> None:
        self.backbone.requires_grad_(True)


@bug("state", "net.bias")
class FrozenInTheStep(Classifier):
    """One parameter frozen in passing."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.net.bias.requires_grad = False  # <- here
        return super().validation_step(batch, batch_idx)


@near_miss
class DetachedInTheStep(Classifier):
    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("bias", self.net.bias.detach().mean())
        return super().validation_step(batch, batch_idx)


@bug("state", "head", also=("stochastic",), certain=False, guard={"weights": "ignore"})
class LazyModuleMaterialised(Classifier):
    """A lazy head gets its shape, and its random weights, from a validation batch."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.LazyLinear(CLASSES)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net.parameters(), lr=0.1)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("aux", F.cross_entropy(self.head(batch[0]), batch[1]))  # <- here


@near_miss
class LazyModuleDryRun(LazyModuleMaterialised):
    """Materialised once, where PyTorch says: by a dry run before anything else."""

    def __init__(self) -> None:
        super().__init__()
        self.head(torch.ones(1, FEATURES))


@bug("state", "net")
class HooksLeaked(Classifier):
    """One more forward hook for each batch, never removed."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.net.register_forward_hook(lambda *_: None)  # <- here
        return super().validation_step(batch, batch_idx)


@near_miss
class HooksRemoved(Classifier):
    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        seen: list[Tensor] = []
        hook = self.net.register_forward_hook(
            lambda _m, _i, out: seen.append(out.detach())
        )
        try:
            return super().validation_step(batch, batch_idx)
        finally:
            hook.remove()


@bug("state", "extra", also=("modes", "stochastic"))
class ModuleAddedInTheStep(Classifier):
    """A layer made at the first validation batch: the optimizer never hears of it."""

    def __init__(self) -> None:
        super().__init__()
        self.extra: nn.Module | None = None

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        if self.extra is None:
            self.extra = nn.Linear(CLASSES, CLASSES)  # <- here
        self.log("aux", self.extra(self(batch[0])).mean())


@near_miss
class ModuleAddedInConfigureModel(Classifier):
    """Made where Lightning says."""

    def __init__(self) -> None:
        super().__init__()
        self.extra: nn.Module | None = None

    def configure_model(self) -> None:
        if self.extra is None:
            self.extra = nn.Linear(CLASSES, CLASSES)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("aux", self.extra(self(batch[0])).mean())


@bug("state", "centroids")
class BufferAddedInTheStep(Classifier):
    """A buffer that appears at the first validation batch: checkpoints before it do not load."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.register_buffer("centroids", batch[0].mean(0))  # <- here
        return super().validation_step(batch, batch_idx)


@near_miss
class TensorMadeInTheStep(Classifier):
    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        centroids = batch[0].mean(0)
        self.log("spread", centroids.std())
        return super().validation_step(batch, batch_idx)


@bug("state", "drop")
class DropoutRateChanged(Classifier):
    """Dropout is switched off for the evaluation by its rate; training goes on without it."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def on_validation_start(self) -> None:
        self.drop.p = 0.0  # <- here

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.drop(x))


@near_miss
class DropoutRateChangedAndPutBack(DropoutRateChanged):
    def on_validation_end(self) -> None:
        self.drop.p = 0.5


@bug("state", "bn")
class MomentumChanged(Normed):
    """BatchNorm's momentum is set for a calibration and stays."""

    def on_validation_start(self) -> None:
        self.bn.momentum = None  # <- here


@near_miss
class MomentumChangedAndPutBack(Normed):
    def on_validation_start(self) -> None:
        self.bn.momentum = None

    def on_validation_end(self) -> None:
        self.bn.momentum = 0.1


@bug("state", None)
class DefaultDtypeChanged(Classifier):
    """Metrics in double precision, for the whole process and for good."""

    def on_validation_epoch_end(self) -> None:
        torch.set_default_dtype(torch.float64)  # <- here


@near_miss
class DefaultDtypeChangedAndPutBack(Classifier):
    def on_validation_epoch_end(self) -> None:
        torch.set_default_dtype(torch.float64)
        self.log("one", torch.ones(()).float())
        torch.set_default_dtype(torch.float32)


@bug("state", None)
class DeterministicFlagLeft(Classifier):
    """Deterministic algorithms for the evaluation, and from then on for training."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        torch.use_deterministic_algorithms(True)  # <- here
        return super().validation_step(batch, batch_idx)


@near_miss
class DeterministicFlagPutBack(Classifier):
    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        torch.use_deterministic_algorithms(True)
        try:
            return super().validation_step(batch, batch_idx)
        finally:
            torch.use_deterministic_algorithms(False)


@bug("state", None)
class MatmulPrecisionLowered(Classifier):
    """Faster evaluation by a lower matmul precision, and from then on faster training too."""

    def on_validation_start(self) -> None:
        torch.set_float32_matmul_precision("medium")  # <- here


@near_miss
class MatmulPrecisionPutBack(Classifier):
    def on_validation_start(self) -> None:
        torch.set_float32_matmul_precision("medium")

    def on_validation_end(self) -> None:
        torch.set_float32_matmul_precision("highest")


class Cached(Classifier):
    """Prototypes are a product of parameters; the question is how long they are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(FEATURES, CLASSES)
        self.prototypes: Tensor | None = None

    def product(self) -> Tensor:
        return self.mix.weight + self.net.weight

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.product().T


@bug("state", "prototypes", certain=False, needs_sanity=True)
class CachedProductReused(Cached):
    """Prototypes computed in the evaluation are reused in training: no gradient reaches them."""

    def forward(self, x: Tensor) -> Tensor:
        if self.prototypes is None:
            self.prototypes = self.product()  # <- here
        return x @ self.prototypes.T + self.net.bias


@near_miss
class CachedProductDropped(Cached):
    """The cache is dropped when the evaluation ends, and training never reads it."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return super().forward(x)
        if self.prototypes is None:
            self.prototypes = self.product()
        return x @ self.prototypes.T

    def on_validation_end(self) -> None:
        self.prototypes = None


@near_miss
class CachedConstant(Classifier):
    """A mask made once: of no parameter, the same in every mode."""

    mask: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.mask is None:
            self.mask = torch.arange(FEATURES) < 4
        return self.net(x * self.mask)


@bug("state", "the batch", certain=False)
class BatchChangedInPlace(Classifier):
    """Normalises the caller's tensor: whoever reads the batch next reads something else."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        x -= 0.5  # <- here
        return super().validation_step([x, y], batch_idx)


@near_miss
class BatchCopied(Classifier):
    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        x = x - 0.5
        x *= 2
        return super().validation_step([x, y], batch_idx)


@bug("state", "net.weight", entry="predict", stage="predict")
class WriteInPredictAlone(Classifier):
    """A tied copy refreshed in prediction."""

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        self.net.weight.clamp_(-0.1, 0.1)  # <- here
        return self(batch[0])


@near_miss
class ClampedInPredict(Classifier):
    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return F.linear(batch[0], self.net.weight.clamp(-0.1, 0.1), self.net.bias)


@bug("state", "net.weight")
class WriteFromTheSecondBatchOn(Classifier):
    """The first batch is clean."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 1:
            with torch.no_grad():
                self.net.weight.mul_(0.9)  # <- here
        return super().validation_step(batch, batch_idx)


@near_miss
class WriteFromTheSecondTrainingBatchOn(Classifier):
    """Training may write."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 1:
            self.net.weight.data.mul_(0.9)
        return super().training_step(batch, batch_idx)


@bug("state", "net.weight")
class CallbackThatPrunes(Classifier):
    """Weights pruned by a callback while the evaluation runs."""

    class Prune(pl.Callback):
        def on_validation_epoch_start(
            self, trainer: pl.Trainer, pl_module: Any
        ) -> None:
            with torch.no_grad():
                pl_module.net.weight[0] = 0  # <- here

    def configure_callbacks(self) -> list[pl.Callback]:
        return [self.Prune()]


@near_miss
class CallbackThatPrunesAfterTraining(Classifier):
    class Prune(pl.Callback):
        def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
            with torch.no_grad():
                pl_module.net.weight[0] = 0

    def configure_callbacks(self) -> list[pl.Callback]:
        return [self.Prune()]
