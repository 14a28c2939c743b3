"""What chooses by a score in a trainer: checkpoints, stops and schedules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_evalguard.checks.scores.check import ScoresCheck
from lightning_evalguard.checks.selection.choosers import Chooser, LoggedNow
from lightning_evalguard.checks.selection.minimised import LossTerm, losses_in, lowered
from lightning_evalguard.confusion.result import ConfusionResult
from lightning_evalguard.data.loaders import LoggedLoss
from lightning_evalguard.instruments.patch import Wrap
from lightning_evalguard.trainer import lightning as _lightning
from lightning_evalguard.trainer.lightning import Callback, LightningModule, Trainer
from lightning_evalguard.trainer.scores import Scores

_LIBRARIES = ("lightning", "pytorch_lightning", "lightning_evalguard")


class LightningDesk:
    """What the `selection` check asks of one run; see `checks.selection.choosers.Desk`.

    Callbacks are known by what they hold, not by their class: those of the package's other name
    and a user's own are choosers, too.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        scores: Scores | None,
        claims: ScoresCheck,
    ) -> None:
        self._trainer = trainer
        self._module = module
        self._scores = scores
        self._claims = claims
        self._wrap: Wrap | None = None
        self._backward: Wrap | None = None
        self._terms: list[LossTerm] = []  # of what training makes small
        self._fault: Exception | None = None  # of ours, raised where the check is asked

    def fitting(self) -> bool:
        # a dry run saves nothing and stops nothing
        return self._trainer.state.fn == "fit" and not getattr(
            self._trainer, "fast_dev_run", False
        )

    def module(self) -> nn.Module:
        return self._module

    def step(self) -> int:
        return int(self._trainer.global_step)

    def choosers(self) -> Iterator[Chooser]:
        for callback in self._trainer.callbacks:  # type: ignore[attr-defined]
            chooser = _of_callback(callback)
            if chooser is not None:
                yield chooser
        for config in self._trainer.lr_scheduler_configs:
            scheduler = config.scheduler
            key = config.monitor
            if isinstance(scheduler, ReduceLROnPlateau):
                known = None
                if isinstance(key, str) and config.reduce_on_plateau:
                    known = key
                name = type(scheduler).__name__
                yield Chooser(name, "schedule", known, scheduler.mode, 0, scheduler)

    def value(self, key: str) -> float | None:
        value = self._trainer.callback_metrics.get(key)
        if value is None:
            return None
        return float(value)

    def values(self) -> Mapping[str, float]:
        held = self._trainer.callback_metrics
        return {key: float(value) for key, value in held.items() if value.numel() == 1}

    def logged(self) -> Mapping[str, LoggedNow]:
        return {
            entry.key: _logged(entry) for entry in _lightning.entries(self._trainer)
        }

    def trained(self) -> Mapping[str, bool]:
        return _lightning.trained_keys(self._trainer)

    def results(self) -> Mapping[str, ConfusionResult]:
        if self._scores is None:
            return {}
        return self._scores.results

    def owners(self) -> list[Any]:
        callbacks: list[Any] = self._trainer.callbacks  # type: ignore[attr-defined]
        own = [c for c in callbacks if _is_own(c) and _of_callback(c) is None]
        return [self._module, *own]

    def checkpoint(self) -> str | None:
        path = self._trainer.ckpt_path
        if path is None:
            return None
        return str(path)

    def listen(self, saved: Callable[[str], None]) -> None:
        def around(
            save: Callable[..., Any], filepath: Any, *args: Any, **kwargs: Any
        ) -> Any:
            saved(str(filepath))
            return save(filepath, *args, **kwargs)

        self.leave()
        self._wrap = Wrap(self._trainer, "save_checkpoint", around)
        if (
            self._module.automatic_optimization
        ):  # else there may be players against each other
            self._backward = Wrap(self._trainer.strategy, "backward", self._first)

    def minimised(self) -> Mapping[str, LoggedLoss]:
        if self._fault is not None:
            raise self._fault
        losses = self._claims.losses
        if not losses:
            return {}
        small = lowered(self._terms)
        return {key: loss for key, loss in losses.items() if small[loss.kind] == 1}

    def _first(self, backward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The first backward pass of a fit is about to run."""
        self._hear_no_more()
        try:
            self._terms = self._made_small(args[0] if args else kwargs["closure_loss"])
        except Exception as error:  # noqa: BLE001 - our own bug must not stop a training run
            self._fault = error
        return backward(*args, **kwargs)

    def _made_small(self, loss: Any) -> list[LossTerm]:
        groups = [g for o in self._trainer.optimizers for g in o.param_groups]
        climbs = any(group.get("maximize") for group in groups)
        if climbs or not isinstance(loss, Tensor):
            return []
        return losses_in(loss)

    def _hear_no_more(self) -> None:
        if self._backward is not None:
            self._backward.remove()
            self._backward = None

    def leave(self) -> None:
        self._hear_no_more()
        if self._wrap is not None:
            self._wrap.remove()
            self._wrap = None


def _of_callback(callback: Any) -> Chooser | None:
    try:
        held = vars(callback)
    except TypeError:  # it has slots
        return None
    key = held.get("monitor")
    mode = held.get("mode")
    name = type(callback).__name__
    if mode not in ("min", "max") or not (key is None or isinstance(key, str)):
        return None
    if isinstance(held.get("best_k_models"), dict):
        keeps = held.get("save_top_k")
        return Chooser(
            name,
            "checkpoint",
            key,
            mode,
            keeps if isinstance(keeps, int) else 1,
            callback,
        )
    if "patience" not in held:
        return None
    return Chooser(name, "stop", key, mode, 1, callback)


def _is_own(callback: Any) -> bool:
    """Whether it is of a class that the user wrote, and holds attributes."""
    written = type(callback).__module__.partition(".")[0] not in _LIBRARIES
    return written and isinstance(callback, Callback) and hasattr(callback, "__dict__")


def _logged(entry: _lightning.Entry) -> LoggedNow:
    kind = type(entry.metric)
    higher = None
    if entry.metric is not None:
        higher = getattr(kind, "higher_is_better", None)
    known = higher
    if not isinstance(higher, bool):
        known = None
    return LoggedNow(entry.updates, entry.hook, known, kind.__name__)
