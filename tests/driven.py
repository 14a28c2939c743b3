"""A recorder that stands in a real Trainer without the guard, the smallest model for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from sklearn.metrics import confusion_matrix
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from lightning_evalguard.confusion.matrix import ConfusionMetrics
from lightning_evalguard.confusion.recorder import Recorded, Recorder
from lightning_evalguard.instruments.patch import Wrap
from two_ranks import CLASSES, data


class Drive(pl.Callback):
    """Drives a recorder from a Trainer as the guard does: around the step and the loop."""

    def __init__(self, config: ConfusionMetrics | None = None) -> None:
        self.recorder = Recorder(config)
        self.recorded: list[Recorded] = []

    @property
    def results(self) -> dict[str, Any]:
        return self.recorded[-1].results

    def setup(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str
    ) -> None:
        self.wraps = [
            Wrap(trainer.strategy, f"{k}_step", self._step)
            for k in ("validation", "test")
        ]
        self.trainer = trainer

    def teardown(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str
    ) -> None:
        for wrap in self.wraps:
            wrap.remove()

    def _start(
        self, stage: str, trainer: pl.Trainer, module: Any, loaders: Any
    ) -> None:
        if not trainer.sanity_checking:
            datamodule = getattr(trainer, "datamodule", None)
            self.recorder.start(stage, module, loaders, datamodule)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self._start("val", trainer, pl_module, trainer.val_dataloaders)

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        self._start("test", trainer, pl_module, trainer.test_dataloaders)

    def _step(
        self, step: Callable[..., Any], batch: Any, *args: Any, **kwargs: Any
    ) -> Any:
        if self.trainer.sanity_checking:
            return step(batch, *args, **kwargs)
        loader = args[1] if len(args) > 1 else kwargs.get("dataloader_idx", 0)
        self.recorder.before_step(batch, loader)
        outputs = step(batch, *args, **kwargs)
        self.recorder.after_step(outputs, batch, loader)
        return outputs

    def _stop(self, trainer: Any) -> None:
        if not trainer.sanity_checking:
            self.recorded.append(
                self.recorder.stop(trainer.current_epoch, trainer.global_step)
            )

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self._stop(trainer)

    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        self._stop(trainer)


def loader(
    dataset: Dataset[Any] | None = None, batch_size: int = 16
) -> DataLoader[Any]:
    return DataLoader(dataset if dataset is not None else data(), batch_size)


class Net(pl.LightningModule):
    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.net = nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return {"logits": self(batch[0]), "target": batch[1]}

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        return self.validation_step(batch, batch_idx)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.05)


def expected(module: Any, dataset: Any, classes: int = CLASSES) -> list[list[int]]:
    with torch.no_grad():
        x, y = (torch.stack(z) for z in zip(*list(dataset), strict=True))
        preds = module.net(x).argmax(1)
    return confusion_matrix(y, preds, labels=list(range(classes))).tolist()
