"""One small function a logger: the matrix, the table and the figure in the form it shows best."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_evalguard.result import ConfusionResult


def write(loggers: Iterable[Any], key: str, result: ConfusionResult, step: int) -> list[str]:
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
    known = [(logger, _SINKS[name]) for logger in loggers if (name := _name(logger)) in _SINKS]
    if not known:
        return []
    picture = _Picture(key, result)
    tried = (_tried(sink, logger, key, result, picture, step) for logger, sink in known)
    return [failure for failure in tried if failure]


def _tried(
    sink: _Sink, logger: Any, key: str, result: ConfusionResult, picture: _Picture, step: int
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

    def __init__(self, key: str, result: ConfusionResult) -> None:
        self._key, self._result = key, result
        self._figure: Any = None

    def figure(self) -> Any:
        if self._figure is None:
            from lightning_evalguard.plot import figure

            self._figure = figure(self._result, _title(self._key, self._result))
        return self._figure

    def png(self) -> bytes:
        from lightning_evalguard.plot import png

        return png(self.figure())


def _title(key: str, result: ConfusionResult) -> str:
    said = [f"{key} confusion matrix"]
    if result.epoch is not None:
        said.append(f"epoch {result.epoch}")
    if result.step is not None:
        said.append(f"step {result.step:,}")
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


def _csv(logger: Any, key: str, result: ConfusionResult, picture: _Picture, step: int) -> None:
    name = key.replace("/", "_")
    folder = Path(logger.log_dir) / "confusion_matrix"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}-step={step}.png").write_bytes(picture.png())
    if result.matrix is not None and result.task != "multilabel":
        rows = [
            [name, *counts]
            for name, counts in zip(result.class_names, result.matrix.tolist(), strict=True)
        ]
        _write_csv(
            folder / f"{name}-step={step}.csv", ["true \\ predicted", *result.class_names], rows
        )
    table = result.table()
    _write_csv(
        folder / f"{name}-step={step}-classes.csv", list(table[0]), [row.values() for row in table]
    )


def _write_csv(path: Path, head: list[str], rows: Iterable[Iterable[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(rows)


_Sink = Callable[[Any, str, "ConfusionResult", _Picture, int], None]
_SINKS: dict[str, _Sink] = {
    "TensorBoardLogger": _tensorboard,
    "CSVLogger": _csv,
}
