"""The training score, measured as validation's: in eval mode, on samples without augmentation."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from lightning_evalguard.confusion.config import ConfusionMetrics
from lightning_evalguard.confusion.recorder import Recorder
from lightning_evalguard.data import loaders as _loaders
from lightning_evalguard.data.samples import digest, undisturbed
from lightning_evalguard.instruments.generators import Generators
from lightning_evalguard.instruments.patch import Wrap
from lightning_evalguard.instruments.replay import counted, quietly
from lightning_evalguard.instruments.rollback import Snapshot
from lightning_evalguard.instruments.settings import unchanged_world
from lightning_evalguard.model.tensors import is_metric
from lightning_evalguard.report import Report, broke, warn_text
from lightning_evalguard.trainer import lightning as _lightning
from lightning_evalguard.trainer.lightning import LightningModule, Trainer

STAGE = "train_eval"
_PREFIX = re.compile(r"^(?:val|valid|validation|dev)[_/.\-]+", re.IGNORECASE)
_TRANSFORMS = ("transform", "transforms", "target_transform")
_READ_TWICE = 4  # samples


class ValidatingLoop(Protocol):
    """What the loop that validates lends."""

    def step(self, batch: Any, batch_idx: int) -> tuple[Any, Any]:
        """Run the module's own validation step; the batch as it got it, and what it returned."""

    def scores(self) -> Mapping[str, Tensor]:
        """What the steps since `books` logged, reduced over the epoch."""

    def books(self) -> AbstractContextManager[Any]:
        """What is logged inside stays there."""

    def modes(self) -> Mapping[str, bool] | None:
        """The mode in which each module trains, by its qualified name."""


@dataclass
class _Plan:
    """Which training samples are evaluated, the same after each validation."""

    dataset: Any
    loader: Any
    said: str


class TrainingScore:
    """Evaluates some of the training set after each validation of a fit, and forgets it again.

    The module's own validation step runs on it, in the modes, the precision and the grad mode of
    the validation that just ended. Logged are ``train_eval/<score>`` for each score that the step
    logs and each of the confusion matrix; ``..._gap``, that minus the validation's; and
    ``..._dropout``, by how much it is off in the modes of training, on the same samples with the
    same weights. Everything that the extra steps change is put back: buffers, metrics, attributes,
    generators. What they write to files is not.

    Args:
        module: The LightningModule.
        batches: How many batches of the training set to evaluate.
        loop: What the loop lends.
        config: How its confusion matrix is counted, where one is.
        matrix: Whether one is.
        report: Where notes and the matrix go.
        log: Logs one score.
    """

    def __init__(
        self,
        module: nn.Module,
        batches: int,
        loop: ValidatingLoop,
        config: ConfusionMetrics | None,
        matrix: bool,
        report: Report,
        log: Callable[[str, float], None],
    ) -> None:
        self._module = module
        self._batches = batches
        self._loop = loop
        self._recorder = Recorder(config) if matrix else None
        self._report, self._log = report, log
        self._plan: _Plan | None = None
        self._off = False

    def evaluate(
        self,
        training: Sequence[Any],
        validation: Sequence[Any],
        values: Mapping[str, Any],
    ) -> None:
        """Evaluate and log.

        Args:
            training: The loaders of training.
            validation: Those of the validation that just ended.
            values: The validation's scores.
        """
        if self._off:
            return
        try:
            if self._plan is None:
                self._plan = _plan_of(training, validation, self._batches)
                self._report.note(f"{STAGE}: {self._plan.said}")
            at_rest = self._scores(self._plan)
            train_modes = self._loop.modes()
            moving: Mapping[str, float] = {}
            if train_modes is not None and any(train_modes.values()):
                moving = self._in_modes(self._plan, train_modes)
        except Exception as error:  # noqa: BLE001 - an extra step must not stop a training run
            self._off = True
            sentence = f"no training score: {type(error).__name__}: {error}"
            self._report.note(f"{STAGE}: {sentence}")
            warn_text(f"{sentence}. Training goes on.")
            return
        held = {score_of(name): float(v) for name, v in values.items() if _is_number(v)}
        for score, value in at_rest.items():
            self._log(f"{STAGE}/{score}", value)
            if score in held:
                # of the two as they are logged: a score is rounded to the default type
                logged = float(torch.tensor(value))
                self._log(f"{STAGE}/{score}_gap", logged - held[score])
            if score in moving:
                self._log(f"{STAGE}/{score}_dropout", moving[score] - value)

    def _scores(self, plan: _Plan, matrix: bool = True) -> dict[str, float]:
        """The scores of the plan's samples, with every effect undone."""
        recorder = None
        if matrix:
            recorder = self._recorder
        with ExitStack() as undo:
            undo.enter_context(counted())
            undo.enter_context(unchanged_world())
            undo.enter_context(undisturbed(plan.dataset))
            undo.enter_context(_unchanged(self._module))
            undo.enter_context(quietly())
            undo.enter_context(self._loop.books())
            Generators.seed(0)  # what is random is so the same way each time
            for metric in self._module.modules():
                if is_metric(metric) and hasattr(metric, "_defaults"):
                    metric.reset()  # type: ignore[operator]
            if recorder is not None:
                undo.callback(recorder.abort)
                recorder.start(STAGE, self._module, [plan.loader])
            for i, batch in enumerate(plan.loader):
                if recorder is not None:
                    recorder.before_step(batch)
                moved, outputs = self._loop.step(batch, i)
                if recorder is not None:
                    recorder.after_step(outputs, moved)
            logged = self._loop.scores().items()
            found = {score_of(name): float(v) for name, v in logged if _is_number(v)}
            if recorder is not None:
                results = recorder.stop().results
                self._report.confusion.update(results)
                for result in results.values():
                    for score, value in result.scores.items():
                        if recorder.config.logs(score, result.task):
                            found.setdefault(score, value)
        return found

    def _in_modes(self, plan: _Plan, modes: Mapping[str, bool]) -> dict[str, float]:
        """The scores in the modes of training, on the same samples with the same weights."""
        before = [(module, module.training) for module in self._module.modules()]
        try:
            for name, module in self._module.named_modules():
                module.training = modes.get(name, module.training)
            return self._scores(plan, matrix=False)
        except Exception as error:  # noqa: BLE001 - the step was not made for train mode
            self._report.note(
                f"{STAGE}: not measured with dropout on: {type(error).__name__}: {error}"
            )
            return {}
        finally:
            for module, flag in before:
                module.training = flag


def score_of(key: str) -> str:
    """What a validation's key measures: ``val_loss`` and ``val/loss`` measure ``loss``."""
    return _PREFIX.sub("", key.partition("/dataloader_idx_")[0])


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (
        isinstance(value, Tensor) and value.numel() == 1
    )


@contextmanager
def _unchanged(module: nn.Module) -> Iterator[None]:
    """Put back attributes, containers and generators, and what all tensors but weights contain."""
    held = Snapshot([module])
    parameters = list(module.parameters())
    weights = {id(p) for p in parameters} | {id(p.grad) for p in parameters}
    contents = [_bytes(t) for t in held.storages.values() if id(t) not in weights]
    copies = [(now, now.clone()) for now in contents]
    lists = [(kept, list(kept)) for kept in _lists_of_metrics(module)]
    try:
        yield
    finally:
        held.restore()
        held.restore_generators()
        for kept, items in lists:
            kept[:] = items
        # inference_mode: a write that no version counter hears of
        with torch.inference_mode():
            for now, before in copies:
                now.copy_(before)


def _lists_of_metrics(module: nn.Module) -> Iterator[list[Any]]:
    for metric in filter(is_metric, module.modules()):
        for name in getattr(metric, "_defaults", ()):
            state = getattr(metric, name)
            if isinstance(state, list):
                yield state


def _bytes(tensor: Tensor) -> Tensor:
    """All that lies in a tensor's storage."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(
        tensor.untyped_storage()
    )


# --- which samples ------------------------------------------------------------------------------


def _plan_of(training: Sequence[Any], validation: Sequence[Any], n: int) -> _Plan:
    """`n` batches of samples that lie evenly over the training set.

    Raises:
        TypeError: If there is no training set that can be read by index.
    """
    if len(training) != 1:
        raise TypeError(f"training reads {len(training)} loaders, expected 1")
    loader = training[0]
    dataset = getattr(loader, "dataset", None)
    length = _loaders.length(dataset)
    if _loaders.is_iterable_style(loader) or not length:
        raise TypeError(f"{type(dataset or loader).__name__} cannot be read by index")
    size = loader.batch_size
    size = size or getattr(loader.batch_sampler, "batch_size", None)
    count = min(length, n * (size or 1))
    places = [i * length // count for i in range(count)]
    said = f"{count:,} of {length:,} training samples, evenly spaced"
    dataset, how = _at_rest(dataset, places, validation)
    together = (
        [places[at : at + size] for at in range(0, count, size)] if size else places
    )
    each: dict[str, Any] = {"batch_sampler": together}
    if size is None:  # a sample of this dataset is a batch
        each = {"batch_size": None, "sampler": together}
    reader = DataLoader(dataset, collate_fn=loader.collate_fn, **each)
    return _Plan(dataset, reader, f"{said}, {how}")


def _at_rest(
    dataset: Any, places: Sequence[int], validation: Sequence[Any]
) -> tuple[Any, str]:
    """The dataset without its random augmentation, where it allows that, and what was done."""
    some = places[:: max(1, len(places) // _READ_TWICE)][:_READ_TWICE]
    if not _is_random(dataset, some):
        return dataset, "which are the same each time they are read"
    for loader in validation:
        calm = _with_transforms_of(dataset, getattr(loader, "dataset", None))
        if calm is not None and not _is_random(calm, some):
            return calm, "under the transforms of the validation set"
    return dataset, "with their random augmentation, drawn the same way each time"


def _is_random(dataset: Any, places: Sequence[int]) -> bool:
    with undisturbed(dataset):
        return any(digest(dataset[i]) != digest(dataset[i]) for i in places)


def _with_transforms_of(dataset: Any, other: Any) -> Any:
    """A shallow copy of `dataset` that transforms as `other` does; None where it cannot be."""
    while isinstance(other, Subset):
        other = other.dataset
    if isinstance(dataset, Subset):
        inner = _with_transforms_of(dataset.dataset, other)
        if inner is None:
            return None
        return Subset(inner, dataset.indices)
    if type(dataset) is not type(other) or dataset is other:
        return None
    found = {k: vars(other)[k] for k in _TRANSFORMS if k in vars(other)}
    if not found or any(k not in vars(dataset) for k in found):
        return None
    calm = copy.copy(dataset)
    vars(calm).update(found)
    return calm


__all__ = ["STAGE", "TrainingScore", "score_of"]


class TrainScoreOfFit:
    """The training score of one fit, taken when the module's own hook has logged its scores."""

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        batches: int,
        metrics: Literal["auto"] | ConfusionMetrics | None,
        report: Report,
    ) -> None:
        self._trainer = trainer
        self._module = module
        self._report = report
        self._wrap: Wrap | None = None
        self._score: TrainingScore | None = None
        if trainer.world_size > 1:
            report.note(
                "train_eval: no training score, because several processes train together"
            )
            return
        config = None
        if isinstance(metrics, ConfusionMetrics):
            config = metrics
        self._score = TrainingScore(
            module,
            batches,
            _lightning.ValidationLoop(trainer),
            config,
            metrics is not None,
            report,
            self._log,
        )

    def after(self, hook: str) -> None:
        """Take it once the module's own `hook`, which Lightning calls next, is over."""
        if self._score is not None:
            self._wrap = Wrap(self._module, hook, self._take)

    def stop(self) -> None:
        if self._wrap is not None:
            self._wrap.remove()
            self._wrap = None

    def _take(self, hook: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.stop()
        outputs = hook(*args, **kwargs)
        if self._score is not None:
            try:
                evaluated = _lightning.Books(self._trainer).evaluated()
                held = dict(self._trainer.callback_metrics)
                self._score.evaluate(evaluated.training, evaluated.loaders, held)
            except Exception as error:  # noqa: BLE001 - our own bug must not stop a training run
                broke(self._report, "the training score", "the rest of the run", error)
                self._score = None
        return outputs

    def _log(self, key: str, value: float) -> None:
        _lightning.log(self._module, key, value)
