"""Scores that are not what they claim: of other samples or stages, averaged as no mean is."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import MaxMetric, MeanMetric, Metric, MetricCollection
from torchmetrics.classification import (
    BinaryAccuracy,
    MulticlassAccuracy,
    MulticlassF1Score,
)

from models.program import CLASSES, Classifier, bug, near_miss, samples

LATER: dict[str, Any] = {
    "guard": {"scores": "error"},
    "inside": False,
    "stage": "validate",
}
COUNTED: dict[str, Any] = LATER | {"guard": {"scores": "error", "metrics": "auto"}}

# --- how a step's values are weighed ------------------------------------------------------------


class Quarters(Classifier):
    """Validates in four batches."""

    def val_dataloader(self) -> Any:
        return DataLoader(samples(2), batch_size=4)


@bug("scores", None, certain=False, **(LATER | {"inside": True}))
class SkipsABatch(Quarters):
    """A batch that looks odd is passed over: its samples are in no score."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:  # <- here
        return super().validation_step(batch, batch_idx) if batch_idx < 3 else None


@near_miss
class ReturnsNothing(Quarters):
    """Most steps return None, and log."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        super().validation_step(batch, batch_idx)


@near_miss
class ShowsTheFirst(Quarters):
    """Returns a sample to draw, of the first batch alone."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))
        return {"image": batch[0][0]} if batch_idx == 0 else None


@near_miss
class KeepsForTheEnd(Quarters):
    """Logs nothing before the epoch ends."""

    def on_validation_epoch_start(self) -> None:
        self.losses: list[Tensor] = []

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.losses.append(F.cross_entropy(self(batch[0]), batch[1]))

    def on_validation_epoch_end(self) -> None:
        self.log("val_loss", torch.stack(self.losses).mean())


class Uneven(Classifier):
    """Validates in batches of 5, 5, 5 and 1."""

    def val_dataloader(self) -> Any:
        return DataLoader(samples(2), batch_size=5)


@bug("scores", "val_loss", **LATER)
class TimeFirst(Uneven):
    """Tensors are (T, N, F): self.log takes T for the number of samples."""

    def collate(self, batch: Any) -> Tensor:
        return torch.stack([x.view(4, 2) for x, _ in batch], dim=1)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("val_loss", batch.square().mean())  # <- here

    def val_dataloader(self) -> Any:
        return DataLoader(samples(2), batch_size=5, collate_fn=self.collate)


@near_miss
class TimeFirstAndSaysSo(TimeFirst):
    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("val_loss", batch.square().mean(), batch_size=batch.shape[1])


@near_miss
class SamplesInPieces(Uneven):
    """Each sample gives four rows: the weights are in proportion."""

    def collate(self, batch: Any) -> Tensor:
        return torch.stack([x for x, _ in batch]).view(-1, 2)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("val_loss", batch.square().mean())

    def val_dataloader(self) -> Any:
        return DataLoader(samples(2), batch_size=5, collate_fn=self.collate)


# --- metric objects, lists and values -----------------------------------------------------------


@bug("scores", "acc", **LATER)
class NeverReset(Classifier):
    """The accuracy of all evaluations so far, the sanity check's included."""

    def __init__(self) -> None:
        super().__init__()
        self.acc = MulticlassAccuracy(CLASSES)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.acc.update(self(batch[0]), batch[1])

    def on_validation_epoch_end(self) -> None:
        self.log("val_acc", self.acc.compute())  # <- here


@near_miss
class ResetEachTime(NeverReset):
    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        self.acc.reset()


@near_miss
class ResetByLightning(NeverReset):
    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.acc(self(batch[0]), batch[1])
        self.log("val_acc", self.acc)

    def on_validation_epoch_end(self) -> None:
        pass


@near_miss
class ValuesOfBatches(NeverReset):
    """The metric object runs on, and only each batch's own value is taken."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("val_acc", self.acc(self(batch[0]), batch[1]))

    def on_validation_epoch_end(self) -> None:
        pass


@bug("scores", "acc", **LATER)
class OneMetricForBoth(NeverReset):
    """Training and validation update the same object (TM#1450)."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("train_acc", self.acc(self(batch[0]), batch[1]))  # <- here
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.acc(self(batch[0]), batch[1])
        self.log("val_acc", self.acc)

    def on_validation_epoch_end(self) -> None:
        pass


@near_miss
class OneMetricForEach(OneMetricForBoth):
    def __init__(self) -> None:
        super().__init__()
        self.train_acc = MulticlassAccuracy(CLASSES)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("train_acc", self.train_acc(self(batch[0]), batch[1]))
        return Classifier.training_step(self, batch, batch_idx)


@bug("scores", "acc", **LATER)
class ResetInEachStep(NeverReset):
    """Reset in the step: the score of the epoch is the last batch's."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.acc.reset()  # <- here
        super().validation_step(batch, batch_idx)


@near_miss
class ResetInTheFirst(NeverReset):
    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 0:
            self.acc.reset()
        super().validation_step(batch, batch_idx)


@bug("scores", "losses", certain=False, **LATER)
class ListNeverCleared(Quarters):
    """A list of batch values grows from the sanity check on."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[Tensor] = []

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.losses.append(F.cross_entropy(self(batch[0]), batch[1]))

    def on_validation_epoch_end(self) -> None:
        self.log("val_loss", torch.stack(self.losses).mean())  # <- here


@near_miss
class ListCleared(ListNeverCleared):
    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        self.losses.clear()


@near_miss
class HistoryOfEpochs(Quarters):
    """One value an evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.history: list[float] = []

    def on_validation_epoch_end(self) -> None:
        self.history.append(1.0)


@bug("scores", "val_loss", certain=False, **LATER)
class LastBatchOnly(Quarters):
    """What is logged when the epoch ends is the last batch's loss."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.loss = F.cross_entropy(self(batch[0]), batch[1])
        return self.loss

    def on_validation_epoch_end(self) -> None:
        self.log("val_loss", self.loss)  # <- here


@near_miss
class MeanOfAll(Quarters):
    def __init__(self) -> None:
        super().__init__()
        self.mean = MeanMetric()

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.mean.update(loss, len(batch[0]))
        return loss

    def on_validation_epoch_end(self) -> None:
        self.log("val_loss", self.mean.compute())
        self.mean.reset()


@bug("scores", "val_loss", certain=False, **LATER)
class MeanOfUnevenMeans(Uneven):
    """Every batch counts alike, also the last, of one sample."""

    def on_validation_epoch_start(self) -> None:
        self.losses: list[Tensor] = []

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.losses.append(F.cross_entropy(self(batch[0]), batch[1]))
        return self.losses[-1]

    def on_validation_epoch_end(self) -> None:
        self.log("val_loss", torch.stack(self.losses).mean())  # <- here


@near_miss
class MeanOfEvenMeans(MeanOfUnevenMeans):
    def val_dataloader(self) -> Any:
        return DataLoader(samples(2), batch_size=4)


@bug("scores", "val_loss", **LATER)
class WeighsAllAlike(Uneven):
    """``batch_size=1``, to silence a warning: the last sample counts as five."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("val_loss", loss, batch_size=1)  # <- here


@near_miss
class WeighsBySamples(Uneven):
    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))


@near_miss
class WeighsByTokens(Uneven):
    """Weighed by something else on purpose."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        tokens = int((batch[0] > 0).sum())
        self.log(
            "val_loss", F.cross_entropy(self(batch[0]), batch[1]), batch_size=tokens
        )


@bug("scores", "val_f1", certain=False, **LATER)
class MeanOfF1(Quarters):
    """F1 of each batch, averaged: F1 is not a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.f1 = MulticlassF1Score(CLASSES)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("val_f1", self.f1(self(batch[0]), batch[1]))  # <- here


@near_miss
class F1OfAll(MeanOfF1):
    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.f1(self(batch[0]), batch[1])
        self.log("val_f1", self.f1)


@near_miss
class RecallOfQueries(Quarters):
    """``recall@10`` is a mean over queries."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("val_recall@10", self(batch[0]).sigmoid().mean())


# --- numbers that steps keep, wherever they are logged ------------------------------------------


class Keeps(Uneven):
    """Keeps one number a step, of no loss and no metric that anybody knows."""

    def number(self, batch: Any) -> Tensor:
        return (self(batch[0]) - 1).abs().mean()


@bug("scores", "val_mae", certain=False, **LATER)
class MeanInADict(Keeps):
    """A dict of lists of Python floats, averaged as if all batches were of one size."""

    def on_validation_epoch_start(self) -> None:
        self.kept: dict[str, dict[str, list[float]]] = {"val": {"mae": []}}

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.kept["val"]["mae"].append(self.number(batch).item())

    def on_validation_epoch_end(self) -> None:
        kept = self.kept["val"]["mae"]
        self.log("val_mae", sum(kept) / len(kept))  # <- here


@near_miss
class WeighedInADict(MeanInADict):
    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.kept["val"]["mae"].append(self.number(batch).item() * len(batch[0]))

    def on_validation_epoch_end(self) -> None:
        self.log("val_mae", sum(self.kept["val"]["mae"]) / 16)


@near_miss
class WorstInADict(MeanInADict):
    def on_validation_epoch_end(self) -> None:
        self.log("val_mae_worst", max(self.kept["val"]["mae"]))


class Meter:
    """The running average that half of all scripts bring along."""

    def __init__(self) -> None:
        self.val = self.sum = self.avg = 0.0
        self.count = 0

    def update(self, value: float, n: int = 1) -> None:
        self.val, self.sum, self.count = value, self.sum + value * n, self.count + n
        self.avg = self.sum / self.count


@bug("scores", "val_mae", certain=False, **LATER)
class MeterWithoutItsN(Keeps):
    """``meter.update(value)`` without the number of samples."""

    def on_validation_epoch_start(self) -> None:
        self.meter = Meter()

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.meter.update(self.number(batch).item())

    def on_validation_epoch_end(self) -> None:
        self.log("val_mae", self.meter.avg)  # <- here


@near_miss
class MeterWithItsN(MeterWithoutItsN):
    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.meter.update(self.number(batch).item(), len(batch[0]))


@bug("scores", "val_mae", certain=False, **LATER)
class LastOfAnAttribute(Keeps):
    """An attribute that each step writes anew, logged when all are over."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.mae = (self.net(batch[0]) - 1).abs().mean()

    def on_validation_epoch_end(self) -> None:
        self.log("val_mae", self.mae)  # <- here


@near_miss
class RunningOfAnAttribute(Keeps):
    """The attribute holds the mean of all batches so far."""

    def on_validation_epoch_start(self) -> None:
        self.total, self.count = 0.0, 0

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.total += self.number(batch).item() * len(batch[0])
        self.count += len(batch[0])
        self.mae = self.total / self.count

    def on_validation_epoch_end(self) -> None:
        self.log("val_mae", self.mae)


@near_miss
class SmoothedAttribute(Keeps):
    """An exponential average, for the eye."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.mae = 0.9 * vars(self).get("mae", 1.0) + 0.1 * self.number(batch).item()

    def on_validation_epoch_end(self) -> None:
        self.log("val_mae", self.mae)


@bug("scores", "val_mae", certain=False, **LATER)
class LoggedWhenTrainingEnds(Keeps):
    """The mean of means, logged in another hook."""

    def on_validation_epoch_start(self) -> None:
        self.kept: list[Tensor] = []

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.kept.append(self.number(batch))

    def on_train_epoch_end(self) -> None:
        self.log("val_mae", torch.stack(self.kept).mean())  # <- here


@near_miss
class WeighedWhenTrainingEnds(LoggedWhenTrainingEnds):
    def on_train_epoch_end(self) -> None:
        sizes = torch.tensor([5.0, 5, 5, 1])
        self.log("val_mae", (torch.stack(self.kept) * sizes).sum() / 16)


class OfACallback(Keeps):
    """A callback of the user's keeps the numbers."""

    weighs = False

    class Means(pl.Callback):
        def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            self.kept: list[Tensor] = []

        def on_validation_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *_: Any
        ) -> None:
            self.kept.append(pl_module.number(batch))

        def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            kept = torch.stack(self.kept)
            sizes = torch.tensor([5.0, 5, 5, 1] if pl_module.weighs else [1.0] * 4)
            if len(kept) == len(sizes):
                pl_module.log("val_mae", (kept * sizes).sum() / sizes.sum())
            self.kept.clear()

    def configure_callbacks(self) -> Any:
        return [self.Means()]


@bug("scores", "val_mae", certain=False, **LATER)
class MeanInACallback(OfACallback):
    """The callback empties its list before the guard's own hook runs."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        super().validation_step(batch, batch_idx)

    weighs = False

    class Means(OfACallback.Means):
        def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            pl_module.log("val_mae", torch.stack(self.kept).mean())  # <- here
            self.kept.clear()


@near_miss
class WeighedInACallback(OfACallback):
    weighs = True


@bug("scores", "val_mae", certain=False, **LATER)
class ValueOfBefore(Quarters):
    """Computed too early: what is logged is the evaluation before."""

    def on_validation_epoch_start(self) -> None:
        kept = vars(self).get("kept", [])
        self.value = torch.stack(kept).mean() if kept else torch.tensor(0.0)
        self.kept: list[Tensor] = []

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.kept.append((self(batch[0]) - 1).abs().mean())

    def on_validation_epoch_end(self) -> None:
        self.log("val_mae", self.value)  # <- here


@near_miss
class ValueOfNow(ValueOfBefore):
    def on_validation_epoch_end(self) -> None:
        self.log("val_mae", torch.stack(self.kept).mean())


# --- what the matrix knows ----------------------------------------------------------------------


@bug("scores", "valid/acc", certain=False, **COUNTED)
class AccuracyOfTheLast(Uneven):
    """The accuracy of the last batch, in a spelling of its own."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        logits = self(batch[0])
        self.log("val_loss", F.cross_entropy(logits, batch[1]))
        self.acc = (logits.argmax(1) == batch[1]).float().mean()

    def on_validation_epoch_end(self) -> None:
        self.log("valid/acc", self.acc)  # <- here


@near_miss
class AccuracyInPercent(AccuracyOfTheLast):
    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        logits = self(batch[0])
        self.log("val_loss", F.cross_entropy(logits, batch[1]))
        self.log("valid/acc", 100 * (logits.argmax(1) == batch[1]).float().mean())

    def on_validation_epoch_end(self) -> None:
        pass


@near_miss
class BestAccuracySoFar(AccuracyOfTheLast):
    """As public templates log it."""

    def __init__(self) -> None:
        super().__init__()
        self.metric, self.best = MulticlassAccuracy(CLASSES), MaxMetric()

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.metric(self(batch[0]), batch[1])
        self.log("val/acc", self.metric, on_step=False, on_epoch=True)

    def on_validation_epoch_end(self) -> None:
        self.best(self.metric.compute())
        self.log("val/acc_best", self.best.compute())


@bug("scores", "val_quality", certain=False, **COUNTED)
class F1UnderAnotherName(Uneven):
    """F1 by batch, under a key that does not say so."""

    def __init__(self) -> None:
        super().__init__()
        self.f1 = MulticlassF1Score(CLASSES)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("val_quality", self.f1(self(batch[0]), batch[1]))  # <- here


@near_miss
class MicroF1UnderAnotherName(F1UnderAnotherName):
    """Of which the mean by samples is exact."""

    def __init__(self) -> None:
        super().__init__()
        self.f1 = MulticlassF1Score(CLASSES, average="micro")


# --- one object for two things ------------------------------------------------------------------


@bug("scores", "f1", **LATER)
class OneMetricForTwoLoaders(Quarters):
    """The second loader's score holds the first one's samples."""

    def __init__(self) -> None:
        super().__init__()
        self.f1 = MulticlassF1Score(CLASSES)

    def val_dataloader(self) -> Any:
        return [DataLoader(samples(seed), batch_size=4) for seed in (2, 3)]

    def validation_step(
        self, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> Any:
        self.f1(self(batch[0]), batch[1])
        self.log("val_f1", self.f1)  # <- here


@near_miss
class AMetricForEachLoader(OneMetricForTwoLoaders):
    def __init__(self) -> None:
        super().__init__()
        self.each = nn.ModuleList(MulticlassF1Score(CLASSES) for _ in range(2))

    def validation_step(
        self, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> Any:
        metric = self.each[dataloader_idx]
        metric(self(batch[0]), batch[1])
        self.log("val_f1", metric)


@near_miss
class OneScoreOfBothLoaders(OneMetricForTwoLoaders):
    """One value of all samples."""

    def validation_step(
        self, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> Any:
        self.f1.update(self(batch[0]), batch[1])

    def on_validation_epoch_end(self) -> None:
        self.log("val_f1", self.f1.compute())
        self.f1.reset()


@bug("scores", "metrics.strict", **LATER)
class MergedThresholds(Quarters):
    """On the first batch both thresholds count the same, so the collection updates one of them."""

    def __init__(self) -> None:
        super().__init__()
        members = {"plain": BinaryAccuracy(), "strict": BinaryAccuracy(threshold=0.8)}
        self.metrics = MetricCollection(members)  # <- here

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        share = 0.9 if batch_idx == 0 else 0.7
        self.metrics.update(0 * self(batch[0])[:, 0] + share, (batch[1] > 0).long())

    def on_validation_epoch_end(self) -> None:
        self.log_dict(
            {f"val_{name}": value for name, value in self.metrics.compute().items()}
        )
        self.metrics.reset()


@near_miss
class SeparateThresholds(MergedThresholds):
    def __init__(self) -> None:
        super().__init__()
        members = {"plain": BinaryAccuracy(), "strict": BinaryAccuracy(threshold=0.8)}
        self.metrics = MetricCollection(members, compute_groups=False)


@near_miss
class MergedRightly(MergedThresholds):
    """Two averages of one count."""

    def __init__(self) -> None:
        super().__init__()
        members = {
            "macro": MulticlassAccuracy(CLASSES),
            "f1": MulticlassF1Score(CLASSES),
        }
        self.metrics = MetricCollection(members)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.metrics.update(self(batch[0]), batch[1])


@bug("scores", "f1", **LATER)
class ResetInTheMiddle(Quarters):
    """Somebody else resets the metric while the epoch runs."""

    def __init__(self) -> None:
        super().__init__()
        self.f1 = MulticlassF1Score(CLASSES)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.f1.update(self(batch[0]), batch[1])

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.f1.reset()  # <- here

    def on_validation_epoch_end(self) -> None:
        self.log("val_f1", self.f1.compute())
        self.f1.reset()


@near_miss
class ReadAndReset(ResetInTheMiddle):
    """Read before it is reset: two values of two parts."""

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.f1.compute()
            self.f1.reset()


@bug("scores", "train_acc", **(LATER | {"trainer": {"val_check_interval": 3}}))
class ResetsTraining(Quarters):
    """The end of a validation resets every metric there is, training's too."""

    every = True

    def train_dataloader(self) -> Any:
        return DataLoader(samples(1), batch_size=4)

    def __init__(self) -> None:
        super().__init__()
        self.train_acc, self.val_acc = (MulticlassAccuracy(CLASSES) for _ in range(2))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.train_acc.update(self(batch[0]), batch[1])
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.val_acc.update(self(batch[0]), batch[1])

    def on_validation_epoch_end(self) -> None:
        self.log("val/mean_acc", self.val_acc.compute())
        for metric in self.modules():
            if isinstance(metric, Metric) and (self.every or metric is self.val_acc):
                metric.reset()  # <- here

    def on_train_epoch_end(self) -> None:
        if self.train_acc.update_called:
            self.log("train_acc_of_epoch", self.train_acc.compute())


@near_miss
class ResetsItsOwn(ResetsTraining):
    every = False
