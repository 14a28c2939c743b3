"""Each sink against its real store, read back."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lightning_evalguard.confusion import ConfusionMatrix
from lightning_evalguard.result import ConfusionResult
from lightning_evalguard.sinks import write


def result() -> ConfusionResult:
    confmat = ConfusionMatrix(3)
    confmat.update(torch.tensor([0, 1, 1, 2]), torch.tensor([0, 1, 2, 2]))
    made = confmat.result(["cat", "dog", "fox"])
    made.epoch, made.step = 1, 20
    return made


def events(folder: str) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(folder)
    accumulator.Reload()
    return accumulator


def test_tensorboard_holds_the_figure_at_its_step(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    assert write([logger], "val", result(), 20) == []
    assert write([logger], "val", result(), 40) == []
    logger.finalize("success")
    images = events(logger.log_dir).Images("val/confusion_matrix")
    assert [image.step for image in images] == [20, 40]
    assert images[0].encoded_image_string.startswith(b"\x89PNG")
    assert images[0].width > 200


def test_csv_holds_picture_matrix_and_table(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    assert write([logger], "val/dataloader_idx_1", result(), 20) == []
    folder = Path(logger.log_dir) / "confusion_matrix"
    assert sorted(p.name for p in folder.iterdir()) == [
        "val_dataloader_idx_1-step=20-classes.csv",
        "val_dataloader_idx_1-step=20.csv",
        "val_dataloader_idx_1-step=20.png",
    ]
    with (folder / "val_dataloader_idx_1-step=20.csv").open(encoding="utf-8") as file:
        assert list(csv.reader(file)) == [
            ["true \\ predicted", "cat", "dog", "fox"],
            ["cat", "1", "0", "0"],
            ["dog", "0", "1", "0"],
            ["fox", "0", "1", "1"],
        ]
    with (folder / "val_dataloader_idx_1-step=20-classes.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(r["class"], r["support"], r["confused_with"]) for r in rows] == [
        ("cat", "1", ""),
        ("dog", "1", ""),
        ("fox", "2", "dog"),
    ]


def test_a_failing_sink_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    (tmp_path / "lightning_logs").write_text("in the way of the folder")
    broken, good = CSVLogger(tmp_path), TensorBoardLogger(tmp_path / "tb")
    (failure,) = write([broken, good], "val", result(), 1)
    assert failure.startswith("val: CSVLogger did not take the confusion matrix: ")
    good.finalize("success")
    assert events(good.log_dir).Tags()["images"] == ["val/confusion_matrix"]


def test_a_logger_that_is_not_known_is_left_alone() -> None:
    assert write([object()], "val", result(), 1) == []
