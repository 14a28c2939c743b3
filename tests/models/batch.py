"""Evaluations in which a sample's answer depends on the batch it came in."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.program import FEATURES, Classifier, bug, near_miss


@bug("batch", "bn")
class UntrackedBatchNorm(Classifier):
    """``track_running_stats=False``: batch statistics in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(FEATURES, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.bn(x))  # <- here


@near_miss
class TrackedBatchNorm(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.bn(x))


@near_miss
class UntrackedInstanceNorm(Classifier):
    """Statistics of each sample alone."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm1d(2, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.norm(x.unflatten(1, (2, 4))).flatten(1))


@bug("batch", "norms[0]")
class BatchNormInTrainWithoutMomentum(Classifier):
    """In train mode for good, momentum 0: no statistic moves, every output follows the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = [nn.BatchNorm1d(FEATURES, momentum=0.0)]
        self.norms[0].num_batches_tracked = None

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.norms[0](x))  # <- here


@near_miss
class BatchNormInEvalWithoutMomentum(BatchNormInTrainWithoutMomentum):
    """Unregistered on purpose, and in eval mode for good."""

    def __init__(self) -> None:
        super().__init__()
        self.norms[0].eval()


@bug("batch")
class FunctionalBatchNormOfNoStatistics(Classifier):
    """`F.batch_norm(training=True)` over activations."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(F.batch_norm(x, None, None, training=True))  # <- here


@near_miss
class FunctionalBatchNormOfAWeight(Classifier):
    """Weight standardisation by the same operator: no sample enters it."""

    def forward(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(self.net.weight[None], None, None, training=True)[0]
        return F.linear(x, weight, self.net.bias)


@bug("batch", certain=False)
class Standardised(Classifier):
    """Standardises over dim 0: by the batch, not by what training saw."""

    def forward(self, x: Tensor) -> Tensor:
        x = (x - x.mean(0)) / (x.std(0) + 1e-5)  # <- here
        return self.net(x)


@near_miss
class StandardisedBySample(Classifier):
    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-5))


@near_miss
class StandardisedByTraining(Classifier):
    """By numbers of the training set, kept in buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.register_buffer("std", torch.ones(FEATURES))

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - self.mean) / self.std)


@bug("batch", certain=False)
class SoftmaxOverTheBatch(Classifier):
    """``softmax(0)``: samples compete with each other."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).softmax(0)  # <- here


@near_miss
class SoftmaxOverTheClasses(Classifier):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).softmax(1)


@bug("batch", certain=False)
class ScaledByTheBatchsMaximum(Classifier):
    """One loud sample makes all the others quiet."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x / x.abs().max())  # <- here


@near_miss
class ScaledByItsOwnMaximum(Classifier):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x / x.abs().amax(1, keepdim=True))


@bug("batch", certain=False)
class LayerNormOverEverything(Classifier):
    """`F.layer_norm(x, x.shape)` takes the batch for a feature."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(F.layer_norm(x, x.shape))  # <- here


@near_miss
class LayerNormOverTheFeatures(Classifier):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(F.layer_norm(x, x.shape[1:]))


@bug("batch", "attention", certain=False)
class AttentionOverTheBatch(Classifier):
    """``batch_first`` forgotten: samples attend to each other."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.unflatten(1, (2, 4))
        mixed, _ = self.attention(tokens, tokens, tokens)  # <- here
        return self.net(mixed.flatten(1))


@near_miss
class AttentionOverTheTokens(AttentionOverTheBatch):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)


@bug("batch", "gru", certain=False)
class RecurrenceOverTheBatch(Classifier):
    """``batch_first`` forgotten: one sample's state flows into the next."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.gru(x.unflatten(1, (2, 4)))  # <- here
        return self.net(out.flatten(1))


@near_miss
class RecurrenceOverTheTokens(RecurrenceOverTheBatch):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(4, 4, batch_first=True)


@bug("batch", certain=False)
class CapacityOfTheExpert(Classifier):
    """An expert takes the best half of the batch: who else came decides who is served."""

    def forward(self, x: Tensor) -> Tensor:
        score = x[:, 0]
        served = score >= score.median()  # <- here
        return self.net(x * served[:, None])


@near_miss
class ThresholdOfTheExpert(Classifier):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x * (x[:, :1] >= 0))


@bug("batch", certain=False)
class ClippedAtAQuantile(Classifier):
    """Outliers are clipped at a quantile of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.clamp(max=x.quantile(0.7)))  # <- here


@near_miss
class ClippedAtAConstant(Classifier):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.clamp(max=1.0))


@bug("batch", certain=False)
class ShiftedOverTheBatch(Classifier):
    """A temporal shift along the wrong axis."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + x.roll(1, dims=0))  # <- here


@near_miss
class ShiftedOverTheFeatures(Classifier):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + x.roll(1, dims=1))


@bug("batch", certain=False)
class MinibatchDiscrimination(Classifier):
    """A feature that says how close the rest of the batch is."""

    def forward(self, x: Tensor) -> Tensor:
        closeness = (-torch.cdist(x, x)).exp().sum(1, keepdim=True)  # <- here
        return self.net(x * closeness)


@near_miss
class DistanceToPrototypes(Classifier):
    """Distances to what the model knows, not to who else came."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(
            x * (-torch.cdist(x, self.net.weight)).exp().sum(1, keepdim=True)
        )


@near_miss
class ContrastiveLoss(Classifier):
    """A loss between samples is a number about the batch; embeddings are each sample's own."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        embedding = F.normalize(self(batch[0]), dim=1)
        similarity = embedding @ embedding.T
        self.log("val_loss", F.cross_entropy(similarity, torch.arange(len(embedding))))
        return {"preds": embedding}


@bug("batch", "bn", entry="validate", stage="validate", guard={"audit": "full"})
class UntrackedBatchNormInValidate(Classifier):
    """The same in `validate`, where no sanity check came before and a replay is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(FEATURES, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.bn(x))  # <- here


@near_miss
class TrackedBatchNormInValidate(TrackedBatchNorm):
    """The statistics of training."""
