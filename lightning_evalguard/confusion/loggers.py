"""One small function a logger: the matrix, the table and the figure in the form it shows best."""

from __future__ import annotations

import csv
import io
import math
import weakref
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_evalguard.confusion.result import ConfusionResult


def write(
    loggers: Iterable[Any], key: str, result: ConfusionResult, step: int
) -> list[str]:
    """Write `result` to every logger that can show it.

    A logger is known by the name of its class or of a class it derives from, so that Lightning
    and ``pytorch_lightning`` are the same and neither is imported.

    Args:
        loggers: The Trainer's loggers.
        key: ``val``, ``test``, ``val/dataloader_idx_1``, ...
        result: Of the evaluation.
        step: The step under which the scalars are logged.

    Returns:
        One sentence for each logger that failed, naming it. Training goes on.
    """
    known = [
        (logger, _SINKS[name])
        for logger in loggers
        if (name := _name(logger)) in _SINKS
    ]
    if not known:
        return []
    picture = _Picture(key, result, step)
    tried = (_tried(sink, logger, key, result, picture, step) for logger, sink in known)
    return [failure for failure in tried if failure]


def _tried(
    sink: _Sink,
    logger: Any,
    key: str,
    result: ConfusionResult,
    picture: _Picture,
    step: int,
) -> str:
    try:
        sink(logger, key, result, picture, step)
    except Exception as error:  # noqa: BLE001 - a dashboard that is down must not stop training
        text = str(error).strip().split("\n")[0]
        return (
            f"{key}: {type(logger).__name__} did not take the confusion matrix: "
            f"{type(error).__name__}{': ' + text if text else ''}"
        )
    return ""


class _Picture:
    """The figure, drawn when the first sink wants it."""

    def __init__(self, key: str, result: ConfusionResult, step: int) -> None:
        self._result = result
        self._title = _title(key, result, step)
        self._figure: Any = None
        self._png = b""

    def figure(self) -> Any:
        if self._figure is None:
            from lightning_evalguard.confusion.figure import figure

            self._figure = figure(self._result, self._title)
        return self._figure

    def png(self) -> bytes:
        """Drawn once, as it takes longest: an evaluation is often the last and the best."""
        if not self._png:
            from lightning_evalguard.confusion.figure import png

            self._png = png(self.figure())
        return self._png

    def image(self) -> Any:
        from PIL import Image

        image = Image.open(io.BytesIO(self.png()))
        return image.convert("RGB")


def _title(key: str, result: ConfusionResult, step: int) -> str:
    """The step is that of the scalars beside it, not the count of steps taken."""
    said = [f"{key} confusion matrix"]
    if result.epoch is not None:
        said.append(f"epoch {result.epoch}")
    if result.step is not None:
        said.append(f"step {step:,}")
    return " · ".join(said)


def _name(logger: Any) -> str:
    return next((c.__name__ for c in type(logger).__mro__ if c.__name__ in _SINKS), "")


def _tensorboard(
    logger: Any, key: str, result: ConfusionResult, picture: _Picture, step: int
) -> None:
    # close=False: the figure is not pyplot's, there is nothing to close.
    logger.experiment.add_figure(
        f"{key}/confusion_matrix", picture.figure(), global_step=step, close=False
    )


def _csv(
    logger: Any, key: str, result: ConfusionResult, picture: _Picture, step: int
) -> None:
    folder = Path(logger.log_dir) / "confusion_matrix"
    folder.mkdir(parents=True, exist_ok=True)
    for name in _last_and_best(logger, key, result):
        (folder / f"{name}.png").write_bytes(picture.png())
        for suffix, text in _csv_texts(result).items():
            file = folder / f"{name}{suffix}.csv"
            file.write_text(text, encoding="utf-8", newline="")


def _mlflow(
    logger: Any, key: str, result: ConfusionResult, picture: _Picture, step: int
) -> None:
    client = logger.experiment
    run = logger.run_id
    for name in _last_and_best(logger, key, result):
        path = f"confusion_matrix/{name}"
        client.log_figure(run, picture.figure(), f"{path}.png")
        # Its page shows them as tables.
        for suffix, text in _csv_texts(result).items():
            client.log_text(run, text, f"{path}{suffix}.csv")


def _last_and_best(logger: Any, key: str, result: ConfusionResult) -> list[str]:
    """What the files of an evaluation are called: those of an earlier one are written over.

    Three files an evaluation would be thousands after a long fit. The title of the figure says of
    which epoch and step it is.
    """
    name = key.replace("/", "_")
    score = result.scores.get(_BEST_BY, math.nan)
    best = _best.setdefault(logger, {})
    if key in best and not score > best[key]:
        return [f"{name}-last"]
    best[key] = -math.inf if math.isnan(score) else score
    return [f"{name}-last", f"{name}-best"]


def _wandb(
    logger: Any, key: str, result: ConfusionResult, picture: _Picture, step: int
) -> None:
    wandb = import_module("wandb")

    head, rows = _classes(result)
    logged: dict[str, Any] = {
        f"{key}/confusion_matrix_figure": wandb.Image(picture.image()),
        f"{key}/per_class": wandb.Table(columns=head, data=rows[:_WANDB_ROWS]),
    }
    if _is_square(result):
        from lightning_evalguard.confusion.figure import shown_classes

        matrix, names = shown_classes(result, 50)
        cells = []
        for true, row in zip(names, matrix.tolist(), strict=True):
            cells += [[true, name, m] for name, m in zip(names, row, strict=True)]
        columns = ["Actual", "Predicted", "nPredictions"]
        logged[f"{key}/confusion_matrix"] = wandb.plot_table(
            "wandb/confusion_matrix/v1",
            wandb.Table(columns=columns, data=cells),
            {column: column for column in columns},
            {"title": _title(key, result, step)},
        )
    # Not step=, which is W&B's own count: a lower one is dropped. Lightning's logger does the same.
    logger.experiment.log({**logged, "trainer/global_step": step})


def _comet(
    logger: Any, key: str, result: ConfusionResult, picture: _Picture, step: int
) -> None:
    experiment = logger.experiment
    name = key.replace("/", "_")
    experiment.log_figure(f"{key}/confusion_matrix", picture.figure(), step=step)
    head, rows = _classes(result)
    experiment.log_table(f"{name}-classes-step={step}.csv", rows, headers=head)
    if _is_square(result):
        from lightning_evalguard.confusion.figure import shown_classes

        matrix, names = shown_classes(result, 50)
        experiment.log_confusion_matrix(
            matrix=matrix.tolist(),
            labels=names,
            title=_title(key, result, step),
            row_label="true",
            column_label="predicted",
            max_categories=len(names),
            file_name=f"{name}-confusion-matrix-step={step}.json",
            step=step,
            epoch=result.epoch,
        )


def _aim(
    logger: Any, key: str, result: ConfusionResult, picture: _Picture, step: int
) -> None:
    aim = import_module("aim")

    run = logger.experiment
    where = {"subset": key}
    image = aim.Image(picture.image(), caption=_title(key, result, step))
    run.track(
        image, name="confusion_matrix", step=step, epoch=result.epoch, context=where
    )
    text = aim.Text(str(result))
    run.track(text, name="per_class", step=step, epoch=result.epoch, context=where)


def _trackio(
    logger: Any, key: str, result: ConfusionResult, picture: _Picture, step: int
) -> None:
    trackio = import_module("trackio")

    head, rows = _classes(result)
    logger.experiment.log(
        {
            f"{key}/confusion_matrix": trackio.Image(picture.image()),
            f"{key}/per_class": trackio.Table(columns=head, data=rows),
        },
        step=step,
    )


def _litlogger(
    logger: Any, key: str, result: ConfusionResult, picture: _Picture, step: int
) -> None:
    litlogger = import_module("litlogger")

    experiment = logger.experiment
    experiment[f"{key}/confusion_matrix"].append(
        litlogger.Image(picture.image()), step=step
    )
    experiment[f"{key}/per_class"].append(litlogger.Text(str(result)), step=step)


def _is_square(result: ConfusionResult) -> bool:
    return result.matrix is not None and result.task != "multilabel"


def _classes(result: ConfusionResult) -> tuple[list[str], list[list[Any]]]:
    table = result.table()
    return list(table[0]), [list(row.values()) for row in table]


def _csv_texts(result: ConfusionResult) -> dict[str, str]:
    """By the end of the file's name: the per-class table, and the matrix where it is kept."""
    texts = {"-classes": _csv_text(*_classes(result))}
    if result.matrix is not None and _is_square(result):
        rows = zip(result.class_names, result.matrix.tolist(), strict=True)
        head = ["true \\ predicted", *result.class_names]
        texts[""] = _csv_text(head, [[name, *counts] for name, counts in rows])
    return texts


def _csv_text(head: list[str], rows: list[list[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows([head, *rows])
    return text.getvalue()


_WANDB_ROWS = 10_000  # more are refused
_BEST_BY = "f1_macro"  # every task has it
# The best score of each key, while its logger lives.
_best: weakref.WeakKeyDictionary[Any, dict[str, float]] = weakref.WeakKeyDictionary()
_Sink = Callable[[Any, str, "ConfusionResult", _Picture, int], None]
_SINKS: dict[str, _Sink] = {
    "TensorBoardLogger": _tensorboard,
    "CSVLogger": _csv,
    "WandbLogger": _wandb,
    "MLFlowLogger": _mlflow,
    "CometLogger": _comet,
    "AimLogger": _aim,
    "TrackioLogger": _trackio,
    "LitLogger": _litlogger,
}
