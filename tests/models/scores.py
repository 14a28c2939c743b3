"""Scores that are not what they claim: of other samples or stages, averaged as no mean is."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from models.program import CLASSES, Classifier, bug, near_miss, samples

LATER: dict[str, Any] = {"guard": {"scores": "error"}, "inside": False, "stage": "validate"}

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
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]), batch_size=tokens)


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
