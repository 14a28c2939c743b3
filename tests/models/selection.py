"""Choices that the score does not justify: the worst for the best, and scores of other weights."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
import torchmetrics
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch.utils.data import DataLoader

from models.program import BATCH, CLASSES, Classifier, bug, near_miss, samples

ERROR = {"selection": "error"}
FIT: dict[str, Any] = {
    "stage": "fit",
    "inside": False,
    "guard": ERROR,
    "trainer": {"max_epochs": 3},
}
COUNTED: dict[str, Any] = {**FIT, "guard": {**ERROR, "metrics": "auto"}}
STEPS: dict[str, Any] = {
    "stage": "fit",
    "inside": False,
    "guard": ERROR,
    "trainer": {"max_epochs": -1, "max_steps": 8, "val_check_interval": 2,
                "check_val_every_n_epoch": None},
}  # fmt: skip


class Scored(Classifier):
    """Logs its loss and its accuracy, and returns what a confusion matrix needs."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        logits = self(x)
        self.log("val_loss", F.cross_entropy(logits, y), batch_size=len(y))
        self.log("val_acc", (logits.argmax(1) == y).float().mean(), batch_size=len(y))
        return {"logits": logits, "target": y}


# --- the wrong way, by name -----------------------------------------------------------------------


@bug("selection", "val_acc", **FIT)
class KeepsTheLowestAccuracy(Scored):
    """`mode` is "min" by default: the best checkpoint is the worst one."""

    def configure_callbacks(self) -> Any:
        return ModelCheckpoint(monitor="val_acc")  # <- here


@near_miss
class KeepsTheHighestAccuracy(Scored):
    def configure_callbacks(self) -> Any:
        return ModelCheckpoint(monitor="val_acc", mode="max")


@near_miss
class KeepsTheLowestLoss(Scored):
    def configure_callbacks(self) -> Any:
        return ModelCheckpoint(monitor="val_loss")


@near_miss
class KeepsTheLastStep(Scored):
    def configure_callbacks(self) -> Any:
        return ModelCheckpoint(monitor="step", mode="max")


@near_miss
class KeepsNothingByScore(Scored):
    def configure_callbacks(self) -> Any:
        return ModelCheckpoint(monitor="val_acc", save_top_k=0, save_last=True)


@bug("selection", "val_loss", **FIT)
class KeepsTheHighestLoss(Scored):
    """Copied from a checkpoint by accuracy, with its mode."""

    def configure_callbacks(self) -> Any:
        return ModelCheckpoint(monitor="val_loss", mode="max", save_top_k=2)  # <- here


@near_miss
class KeepsTwoLowestLosses(Scored):
    def configure_callbacks(self) -> Any:
        return ModelCheckpoint(monitor="val_loss", mode="min", save_top_k=2)


@bug("selection", "val_acc", **FIT)
class KeepsAllAndCallsTheWorstBest(Scored):
    """Every checkpoint is kept, so nothing seems to be ranked: `best_model_path` still is."""

    def configure_callbacks(self) -> Any:
        return ModelCheckpoint(monitor="val_acc", save_top_k=-1)  # <- here


@near_miss
class KeepsAllWithoutARank(Scored):
    def configure_callbacks(self) -> Any:
        return ModelCheckpoint(save_top_k=-1, filename="{epoch}-{val_acc:.3f}")


@bug("selection", "val_acc", **FIT)
class StopsWhileItImproves(Scored):
    """EarlyStopping's mode is "min" by default, too: training ends because it goes well."""

    def configure_callbacks(self) -> Any:
        return EarlyStopping("val_acc", patience=5)  # <- here


@near_miss
class StopsOnceItDoesNotImprove(Scored):
    def configure_callbacks(self) -> Any:
        return [
            EarlyStopping("val_acc", mode="max", patience=5, stopping_threshold=0.99),
            EarlyStopping("val_loss", patience=5, divergence_threshold=1e3),
        ]


class Named(ModelCheckpoint):
    """A user's own checkpoint."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(filename="best", **kwargs)


@bug("selection", "val/F1Score", **FIT)
class OwnCheckpointKeepsTheWorst(Scored):
    """A subclass, and a name in another spelling."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        outputs = super().validation_step(batch, batch_idx)
        self.log("val/F1Score", outputs["logits"].mean().exp())
        return outputs

    def configure_callbacks(self) -> Any:
        return Named(monitor="val/F1Score")  # <- here


@near_miss
class OwnCheckpointKeepsTheBest(OwnCheckpointKeepsTheWorst):
    def configure_callbacks(self) -> Any:
        return Named(monitor="val/F1Score", mode="max")


@bug("selection", "val_acc", **FIT)
class RateFallsWhileItImproves(Scored):
    """ReduceLROnPlateau takes a rising accuracy for a plateau."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)  # <- here
        return {"optimizer": optimizer, "lr_scheduler": plateau, "monitor": "val_acc"}


@near_miss
class RateFallsOnAPlateau(Scored):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max")
        return {"optimizer": optimizer, "lr_scheduler": plateau, "monitor": "val_acc"}


@bug("selection", "val_acc", **FIT)
class RateFallsByHand(Scored):
    """Stepped by hand, so that no `monitor` names the score."""

    best = "min"  # <- here

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()

    def on_train_epoch_end(self) -> None:
        self.lr_schedulers().step(self.trainer.callback_metrics["val_acc"])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode=self.best)
        return [optimizer], [plateau]


@near_miss
class RateFallsByHandTheRightWay(RateFallsByHand):
    best = "max"


# --- the wrong way, by what the score is ----------------------------------------------------------


@bug("selection", "val_score", **COUNTED)
class KeepsTheLowestOfAnUnclearName(Scored):
    """The name says nothing, the value is the accuracy."""

    def val_dataloader(self) -> Any:
        data = torch.utils.data.ConcatDataset([samples(s) for s in (2, 3, 4)])
        return DataLoader(data, batch_size=BATCH)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        outputs = super().validation_step(batch, batch_idx)
        right = outputs["logits"].argmax(1) == batch[1]
        self.log("val_score", self.score(right.float().mean()), batch_size=len(right))
        return outputs

    def score(self, accuracy: Any) -> Any:
        return accuracy

    def configure_callbacks(self) -> Any:
        return ModelCheckpoint(monitor="val_score")  # <- here


@near_miss
class KeepsTheLowestErrorOfAnUnclearName(KeepsTheLowestOfAnUnclearName):
    def score(self, accuracy: Any) -> Any:
        return 1 - accuracy


@near_miss
class KeepsTheHighestOfAnUnclearName(KeepsTheLowestOfAnUnclearName):
    def configure_callbacks(self) -> Any:
        return ModelCheckpoint(monitor="val_score", mode="max")


@bug("selection", "val_quality", **FIT)
class KeepsTheLowestOfAMetric(Scored):
    """The torchmetrics object behind the key says that higher is better."""

    def __init__(self) -> None:
        super().__init__()
        self.quality = torchmetrics.classification.MulticlassJaccardIndex(CLASSES)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        outputs = super().validation_step(batch, batch_idx)
        self.quality(outputs["logits"], batch[1])
        self.log("val_quality", self.quality)
        return outputs

    def configure_callbacks(self) -> Any:
        return ModelCheckpoint(monitor="val_quality")  # <- here


@near_miss
class KeepsTheLowestOfAMetricOfErrors(KeepsTheLowestOfAMetric):
    def __init__(self) -> None:
        super().__init__()
        self.quality = torchmetrics.classification.MulticlassCalibrationError(CLASSES)  # type: ignore[assignment]


@bug("selection", "objective", **FIT)
class KeepsTheHighestOfALossByAnotherName(Scored):
    """Two keys for one value, and the clear one is not the monitored one."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        outputs = super().validation_step(batch, batch_idx)
        loss = F.cross_entropy(outputs["logits"], batch[1])
        self.log("objective", self.sign * loss, batch_size=len(batch[1]))
        return outputs

    sign = 1

    def configure_callbacks(self) -> Any:
        return ModelCheckpoint(monitor="objective", mode="max")  # <- here


@near_miss
class KeepsTheHighestOfANegativeLoss(KeepsTheHighestOfALossByAnotherName):
    sign = -1


# --- scores of other weights ----------------------------------------------------------------------


@bug("selection", "val_acc", **STEPS)
class SavesBeforeItValidates(Scored):
    """At a step the score is still that of the validation before (PL#20185, #20919)."""

    def configure_callbacks(self) -> Any:
        return ModelCheckpoint(
            monitor="val_acc", mode="max", save_top_k=-1, every_n_train_steps=3  # <- here
        )  # fmt: skip


@near_miss
class SavesAfterItValidated(Scored):
    def configure_callbacks(self) -> Any:
        return ModelCheckpoint(monitor="val_acc", mode="max", save_top_k=-1)


@near_miss
class SavesByItsOwnTrainingLoss(Scored):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("train_loss", loss)
        return loss

    def configure_callbacks(self) -> Any:
        return ModelCheckpoint(
            monitor="train_loss", save_top_k=-1, every_n_train_steps=1
        )


@bug("selection", "val_loss", **STEPS)
class SavesByTheClock(Scored):
    """Every so often, whatever was validated when."""

    def configure_callbacks(self) -> Any:
        return ModelCheckpoint(
            monitor="val_loss", train_time_interval=timedelta(0), save_top_k=-1  # <- here
        )  # fmt: skip


@near_miss
class SavesByTheClockWithoutAScore(Scored):
    def configure_callbacks(self) -> Any:
        return ModelCheckpoint(train_time_interval=timedelta(0))


@bug("selection", "val_acc", **STEPS)
class NamesAFileByAnOlderScore(Scored):
    """Nothing is ranked, but the file's name claims a score of its weights."""

    def configure_callbacks(self) -> Any:
        return ModelCheckpoint(
            filename="{step}-{val_acc:.3f}", save_top_k=-1, every_n_train_steps=2  # <- here
        )  # fmt: skip


@near_miss
class NamesAFileByItsStep(Scored):
    def configure_callbacks(self) -> Any:
        return ModelCheckpoint(
            filename="{epoch}-{step}", save_top_k=-1, every_n_train_steps=2
        )


RARELY: dict[str, Any] = {
    "stage": "fit",
    "inside": False,
    "guard": ERROR,
    "trainer": {
        "max_epochs": 4,
        "check_val_every_n_epoch": 2,
        "num_sanity_val_steps": 0,
    },
}


@bug("selection", "val_loss", **RARELY)
class SavesInEpochsThatAreNotValidated(Scored):
    """Saved after each epoch, validated after every second one."""

    def configure_callbacks(self) -> Any:
        return ModelCheckpoint(
            monitor="val_loss", save_top_k=-1, save_on_train_epoch_end=True,  # <- here
            every_n_epochs=self.every_n_epochs,
        )  # fmt: skip

    every_n_epochs = 3  # the first two have no score at all, which Lightning reports


@near_miss
class SavesInEpochsThatAreValidated(SavesInEpochsThatAreNotValidated):
    every_n_epochs = 2


@bug("selection", "train_loss", **STEPS)
class SavesByTheMeanOfAnEarlierEpoch(Scored):
    """The mean over an epoch is not known before its end: the one before stands under the key."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def configure_callbacks(self) -> Any:
        return ModelCheckpoint(
            monitor="train_loss", every_n_train_steps=3, save_top_k=-1  # <- here
        )  # fmt: skip


@near_miss
class SavesByTheMeanOfItsEpoch(SavesByTheMeanOfAnEarlierEpoch):
    def configure_callbacks(self) -> Any:
        return ModelCheckpoint(
            monitor="train_loss",
            every_n_epochs=1,
            save_top_k=-1,
            save_on_train_epoch_end=True,
        )


@bug("selection", "val_loss", **RARELY)
class StopsByCountingOneScoreTwice(Scored):
    """Patience runs out on epochs that nobody validated."""

    def configure_callbacks(self) -> Any:
        return EarlyStopping(
            "val_loss", strict=False, check_on_train_epoch_end=True
        )  # <- here


@near_miss
class StopsByCountingEachScoreOnce(Scored):
    def configure_callbacks(self) -> Any:
        return EarlyStopping("val_loss")


@bug("selection", "val_loss", **FIT)
class RateFallsByCountingOneScoreAtEachStep(Scored):
    """`patience` is meant in validations, and counts steps."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        config = {
            "scheduler": plateau,
            "monitor": "val_loss",
            "strict": False,
            **self.when,
        }
        return {"optimizer": optimizer, "lr_scheduler": config}

    when: ClassVar[dict[str, Any]] = {"interval": "step"}  # <- here


@near_miss
class RateFallsByCountingEachScoreOnce(RateFallsByCountingOneScoreAtEachStep):
    when: ClassVar[dict[str, Any]] = {"interval": "epoch"}


# --- chosen by the test set, or by nothing that was logged ----------------------------------------


@bug("selection", "test_loss", **FIT)
class ChoosesByTheTestSet(Scored):
    """The test set is validated on under its own name, and the checkpoint chosen by it."""

    key = "test_loss"

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        outputs = super().validation_step(batch, batch_idx)
        self.log(self.key, F.cross_entropy(outputs["logits"], batch[1]))
        return outputs

    def configure_callbacks(self) -> Any:
        return ModelCheckpoint(monitor=self.key)  # <- here


@near_miss
class ChoosesByTheLatest(ChoosesByTheTestSet):
    key = "latest_loss"


class Smoothed(ModelCheckpoint):
    """A checkpoint that ranks by something else than what it monitors."""

    factor = 0.5

    def _save_monitor_checkpoint(self, trainer: Any, monitor_candidates: Any) -> None:
        assert self.monitor
        monitor_candidates[self.monitor] = (
            monitor_candidates[self.monitor] * self.factor
        )
        super()._save_monitor_checkpoint(trainer, monitor_candidates)


class Plain(Smoothed):
    factor = 1.0


@bug("selection", "val_loss", **FIT)
class BestThatNobodyLogged(Scored):
    """The best score is none of the values that were logged."""

    def configure_callbacks(self) -> Any:
        return Smoothed(monitor="val_loss")  # <- here


@near_miss
class BestThatWasLogged(Scored):
    def configure_callbacks(self) -> Any:
        return Plain(monitor="val_loss")
