"""What the checks ask of a Trainer of transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from lightning_evalguard.checks.selection.choosers import Chooser, LoggedNow
from lightning_evalguard.confusion.result import ConfusionResult
from lightning_evalguard.data.loaders import Evaluated, LoggedLoss


@dataclass(frozen=True)
class _Best(Chooser):
    """What goes by ``metric_for_best_model``."""

    trainer: Any = None

    @property
    def written(self) -> str:
        """How it stands in the user's code."""
        return f"{self.name}(greater_is_better={self.mode == 'max'})"

    def with_mode(self, mode: str) -> str:
        """How it should stand there."""
        key = str(self.key).removeprefix("eval_")
        monitor = f'metric_for_best_model="{key}"'
        return f"TrainingArguments({monitor}, greater_is_better={mode == 'max'})"

    @property
    def best(self) -> float | None:
        """Its best score so far; None before the first one."""
        best = self.trainer.state.best_metric
        if best is None or best in (float("inf"), -float("inf")):
            return None
        return float(best)


class HuggingFaceDesk:
    """What the checks ask of one Trainer; see `checks.selection.choosers.Desk`.

    Attributes:
        trainer: The Trainer.
        fits: Whether this run trains.
        evaluates: The loader of the running evaluation.
        matrices: Those of the last evaluation.
        logged_last: The metrics of the last evaluation.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.fits = False
        self.evaluates: Any = None
        self.matrices: dict[str, ConfusionResult] = {}
        self.logged_last: dict[str, Any] = {}
        self._evaluations = 0

    def module(self) -> nn.Module:
        module = self.trainer.model
        assert isinstance(module, nn.Module)
        return module

    def roots(self) -> list[nn.Module]:
        """The model, and what it is wrapped in."""
        held = (self.trainer.model, vars(self.trainer).get("model_wrapped"))
        return [module for module in held if isinstance(module, nn.Module)]

    def config(self) -> Any:
        """The configuration of a model of transformers; None of any other module."""
        return vars(self.module()).get("config")

    def optimizers(self) -> list[Any]:
        """The optimizer itself, not what accelerate wraps it in."""
        optimizer = vars(self.trainer).get("optimizer")
        if optimizer is None:
            return []
        return [vars(optimizer).get("optimizer", optimizer)]

    def schedulers(self) -> list[Any]:
        scheduler = vars(self.trainer).get("lr_scheduler")
        if scheduler is None:
            return []
        return [vars(scheduler).get("scheduler", scheduler)]

    def callbacks(self) -> list[Any]:
        return list(self.trainer.callback_handler.callbacks)

    def best_by(self) -> str | None:
        """The score by which the Trainer chooses its best model, whether it keeps that or not."""
        metric = self.trainer.args.metric_for_best_model
        if metric is None:
            return None
        return str(metric).removeprefix("eval_")

    # for `data`

    def evaluated(self) -> Evaluated:
        return Evaluated(
            [self.evaluates], limits=[float("inf")], training=self.training()
        )

    def training(self) -> list[Any]:
        loader = None
        if self.fits:
            loader = self.trainer.callback_handler.train_dataloader
        if loader is None:
            return []
        return [loader]

    # for `selection`

    def fitting(self) -> bool:
        return self.fits

    def step(self) -> int:
        return int(self.trainer.state.global_step)

    def choosers(self) -> Iterator[Chooser]:
        args = self.trainer.args
        metric = args.metric_for_best_model
        if metric is None:
            return
        key = metric
        if not metric.startswith("eval_"):
            key = f"eval_{metric}"
        mode = "min"
        if args.greater_is_better:
            mode = "max"
        if (
            args.load_best_model_at_end
            or str(getattr(args.save_strategy, "value", "")) == "best"
        ):
            yield _Best(
                "TrainingArguments",
                "checkpoint",
                key,
                mode,
                1,
                self.trainer,
                self.trainer,
            )
            return
        for callback in self.callbacks():
            if "early_stopping_patience" in vars(callback):
                name = type(callback).__name__
                yield _Best(name, "stop", key, mode, 1, self.trainer, self.trainer)

    def value(self, key: str) -> float | None:
        return self.values().get(key)

    def values(self) -> Mapping[str, float]:
        numbers = (
            (k, v) for k, v in self.logged_last.items() if not isinstance(v, bool)
        )
        return {k: float(v) for k, v in numbers if isinstance(v, (int, float))}

    def logged(self) -> Mapping[str, LoggedNow]:
        return {key: LoggedNow(1, "compute_metrics") for key in self.values()}

    def trained(self) -> Mapping[str, bool]:
        return {}

    def minimised(self) -> Mapping[str, LoggedLoss]:
        return {}  # `eval_loss` says it by its name

    def results(self) -> Mapping[str, ConfusionResult]:
        return self.matrices

    def checkpoint(self) -> str | None:
        return None

    def listen(self, saved: Callable[[str], None]) -> None:
        """A best model is saved right after the evaluation that it is chosen by."""

    def owners(self) -> list[Any]:
        return []

    def leave(self) -> None:
        """There is nothing to leave."""
