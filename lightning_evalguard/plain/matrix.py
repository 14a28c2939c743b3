"""The confusion matrix of each evaluation of a plain script."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_evalguard.instruments.generators import Generators
from lightning_evalguard.instruments.source import owner_of
from lightning_evalguard.instruments.variables import variables
from lightning_evalguard.paths import shown_path
from lightning_evalguard.plain.asked import AskedMetrics
from lightning_evalguard.report import Report, broke

if TYPE_CHECKING:
    from lightning_evalguard.confusion.recorder import Recorder
    from lightning_evalguard.confusion.result import ConfusionResult
    from lightning_evalguard.confusion.sources import Pair
    from lightning_evalguard.ranks import Alone

_SAYS_NOTHING = "no confusion matrix, because the step returned"
_KNOWN_OF_A_MODEL = ("classes", "class_names", "num_classes", "hparams")


class PlainScores:
    """Counts what each evaluation predicts, one matrix for each name.

    Args:
        report: Where the matrices stand.
        scored: Is told of each loss or metric that is computed, and given its tensors.
        quietly: Makes a context in which nothing that is read counts as the script's.
        ranks: The processes whose counts are added up; by default this one alone.
        is_foreign: Whether a pair holds samples of other ranks, which count them themselves.
    """

    def __init__(
        self,
        report: Report,
        scored: Callable[..., None],
        quietly: Callable[[], AbstractContextManager[None]],
        ranks: Alone | None = None,
        is_foreign: Callable[[Pair], bool] | None = None,
    ) -> None:
        self._report = report
        self._scored = scored
        self._quietly = quietly
        self._ranks = ranks
        self._is_foreign = is_foreign
        self._recorders: dict[str, Any] = {}
        self._off = False
        self._now: Any = None
        self._name = ""
        self._batch: Any = None
        self._in_step = False
        self._evaluations: dict[str, int] = {}
        self._places: dict[str, str] = {}  # of comparisons, as they are shown
        self.last = ""
        self.asks: AskedMetrics | None = None

    def start(
        self, name: str, models: Iterable[nn.Module], frame: FrameType, loader: Any
    ) -> None:
        """What may be an evaluation begins."""
        if self._off:
            return
        recorder = self._recorders.get(name)
        if recorder is None:
            recorder = self._recorders[name] = self._make()
        self._name = name
        if recorder is not None:
            recorder.start(name, _holder(models, frame), loader)
        model = next(iter(models), None)
        if self.asks is not None and model is not None:
            self.asks.opens(model, _single_metrics(frame))
        self._now, self._in_step = recorder, False

    def before(self, batch: Any, own: int | None = None) -> None:
        """A step begins.

        Args:
            batch: What it runs on.
            own: How many of its samples are this rank's own; None where all are, or the loader
                tells.
        """
        if self._now is not None:
            self.after()
            if own is not None:
                self._now.own(own)
            self._now.before_step(batch)
            self._batch, self._in_step = batch, True

    def after(self) -> None:
        """It is over."""
        if self._now is not None and self._in_step:
            self._now.after_step(None, self._batch)
            self._batch, self._in_step = None, False

    def compared(
        self,
        preds: Tensor,
        target: Tensor,
        text: str,
        place: str,
        what: str = "comparison",
    ) -> None:
        """Predictions were compared with targets, or gathered with them."""
        if self._now is None or not self._in_step:
            return

        def pair() -> Any:
            from lightning_evalguard.confusion.sources import Pair

            short = text if len(text) <= 60 else text[:57] + "..."
            said = f"the {what} `{short}` at {shown_path(place)}"
            return Pair(preds, target, said, classification=True, ignore_index=-100)

        self._now.hear("comparison", place, preds, target, pair)

    @property
    def has_arrays(self) -> bool:
        """Whether something of the running step became an array."""
        return self._now is not None and self._now.has_arrays

    def stop(self, name: str, compares: bool = False) -> dict[str, ConfusionResult]:
        """The evaluation is over: its matrix is in the report.

        Args:
            name: Of the evaluation.
            compares: Whether the source compares what a model returned with something else.
        """
        self.last = name
        if self._now is None:
            return {}
        self.after()
        recorder, self._now = self._now, None
        recorder.compares = compares
        epoch = self._evaluations.get(name, 0)
        self._evaluations[name] = epoch + 1
        recorded = recorder.stop(epoch)
        for sentence in recorded.notes + recorded.warnings:
            if _SAYS_NOTHING not in sentence:
                self._report.note(sentence)
        results: dict[str, ConfusionResult] = {
            key: result for key, result in recorded.results.items() if result.total
        }
        self._report.confusion.update(results)
        return results

    def leave(self) -> None:
        """Leave no trace."""
        self.abort()
        if self.asks is not None:
            self.asks.leave()

    def abort(self) -> None:
        """It was none."""
        self._batch, self._in_step = None, False
        if self._now is not None:
            recorder, self._now = self._now, None
            recorder.abort()
            # another evaluation may get its name
            if self._name not in self._evaluations:
                del self._recorders[self._name]

    def asked(self, y_true: Any, y_pred: Any, score: str) -> None:
        """A score of scikit-learn was asked for: the matrix, where nothing else gave one."""
        name = self.last or "evaluate"
        known = self._report.confusion.get(name)
        if self._off or (known is not None and not known.source.startswith("`sklearn")):
            return
        result = _of_arrays(y_true, y_pred)
        if result is not None:
            result.source = f"`sklearn.metrics.{score}`"
            result.epoch = max(0, self._evaluations.get(name, 1) - 1)
            self._report.confusion[name] = result

    def _make(self) -> Recorder | None:
        """A recorder; what it needs is loaded out of reach of the script's modes and generators."""
        before = Generators.capture()
        try:
            with torch.inference_mode(False), torch.enable_grad():
                from lightning_evalguard.plain.recorder import PlainRecorder

                return PlainRecorder(
                    self._scored, self._quietly, self._ranks, self._is_foreign
                )
        except ImportError as error:
            self._off = True
            self._report.note(f"no confusion matrix: {error}")
            return None
        except Exception as error:  # noqa: BLE001 - our own bug must not stop a script
            self._off = True
            broke(self._report, "the confusion matrix", "the rest of the run", error)
            return None
        finally:
            before.restore()


class _Holder(nn.Module):
    """Stands for all that an evaluation runs: its models, and the metrics that its code holds."""

    def modules(self, remove_duplicate: bool = True) -> Iterator[nn.Module]:
        """Those of the models, which are not registered here: that would be an event of its own."""
        yield self
        for value in vars(self).values():
            for model in value if isinstance(value, list) else ():
                yield from model.modules()


def _holder(models: Iterable[nn.Module], frame: FrameType) -> nn.Module:
    holder = _Holder()
    held = vars(holder)
    first: nn.Module | None = None
    for number, model in enumerate(models):
        first = first if first is not None else model
        held[f"model{number}"] = [model]
    for name in _KNOWN_OF_A_MODEL:
        if first is not None and name in vars(first):
            held[name] = vars(first)[name]
    for name, metric in _metrics_around(frame):
        held.setdefault(name.lstrip("_"), [metric])
    return holder


def _metrics_around(frame: FrameType | None) -> Iterator[tuple[str, Any]]:
    """The torchmetrics objects that the user's functions around `frame` hold, by name."""
    metrics = sys.modules.get("torchmetrics")
    kinds = tuple(
        kind
        for name in ("Metric", "MetricCollection")
        if isinstance(kind := getattr(metrics, name, None), type)
    )
    while frame is not None and kinds:
        if owner_of(frame.f_code.co_filename) == "user":
            for names in (variables(frame), frame.f_globals):
                yield from (
                    (n, v) for n, v in list(names.items()) if isinstance(v, kinds)
                )
        frame = frame.f_back


def _single_metrics(frame: FrameType) -> Iterator[tuple[str, nn.Module]]:
    """Each metric object around `frame` by itself, those of a collection too."""
    for name, metric in _metrics_around(frame):
        yield from metric.named_modules(prefix=name)


def _class_name(label: Any) -> str:
    if isinstance(label, float) and label == int(label):
        return str(int(label))
    return str(label)


def _of_arrays(y_true: Any, y_pred: Any) -> ConfusionResult | None:
    """The matrix of two arrays of labels, also of strings."""
    numpy = sys.modules["numpy"]
    from lightning_evalguard.confusion.layout import ROOM
    from lightning_evalguard.confusion.matrix import ConfusionMatrix

    true = numpy.asarray(y_true)
    preds = numpy.asarray(y_pred)
    if true.ndim != 1 or true.shape != preds.shape or not len(true):
        return None
    labels, places = numpy.unique(numpy.concatenate((true, preds)), return_inverse=True)
    if len(labels) > ROOM:
        return None
    names = [_class_name(label) for label in labels.tolist()]
    places = torch.from_numpy(places.astype("int64"))
    confmat = ConfusionMatrix(max(2, len(labels)))
    confmat.update(places[len(true) :], places[: len(true)])
    return confmat.result(names if len(names) > 1 else None)
