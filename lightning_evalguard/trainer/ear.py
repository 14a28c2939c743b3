"""Every value that is logged in a run: by `self.log`, by a logger, by the writer inside one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_evalguard.checks.scores.heard import MOST_KEYS, LogCall
from lightning_evalguard.instruments.patch import Inlay, Layer, Wrap
from lightning_evalguard.instruments.source import owner_of, user_site
from lightning_evalguard.trainer import lightning as _lightning
from lightning_evalguard.trainer.lightning import Trainer

_EVALUATED = ("fit_loop.epoch_loop.val_loop", "validate_loop", "test_loop")
_TRAINED = "fit_loop.epoch_loop"
# not those of every batch
_HOOKS = ("on_train_epoch", "on_train_start", "on_train_end")
_REDUCTIONS = ("max", "min", "sum")
# how the names of hooks end that run when a step is over
_AFTER_STEP = "_batch_end"
# The methods by which the writers inside of loggers take values, and how they are called.
_WRITERS = ("add_scalar", "add_scalars", "log", "log_metric", "log_metrics")


class _Known(NamedTuple):
    """What is the same of all values that are logged under one key of a loop.

    Attributes:
        one: The loop's own record of it.
        is_heard: Whether it is a score: averaged over an epoch.
        key: Its key, with the loader's suffix where it has one.
        name: Its key without it.
        loader: Index of the data loader.
        is_mean: Whether its values are averaged by the size of their batches.
        by_metric: Whether a metric object is logged.
        location: ``file:line`` of the first call.
        waits: Whether the values after the first wait until the steps are over.
        after_step: Whether the hook after a step logs it.
        reduction: What the loop makes of its values where that is no mean.
        over_ranks: Whether it averages them over several ranks.
    """

    one: Any
    is_heard: bool
    key: str
    name: str
    loader: int | None
    is_mean: bool
    by_metric: bool
    location: str | None
    waits: bool
    after_step: bool
    reduction: str
    over_ranks: bool

    def heard(self, value: Any, batch_size: int) -> LogCall:
        """One of its values."""
        size = None
        if isinstance(value, Tensor):
            # `self.log` has made a copy of its own, which nobody writes to
            value = value.detach() if value.requires_grad else value
            size = batch_size
            if not self.is_mean:
                size = None
        return LogCall(
            self.key,
            self.name,
            value,
            size,
            self.loader,
            self.by_metric,
            self.location,
            self.after_step,
            self.reduction,
            self.over_ranks,
        )


class Ear(_lightning.Books):
    """What the `scores` check asks of the loop that runs; hears from `listen` to `deafen`.

    The values stay as they are: what calls `self.log` or a logger gets what it got before.

    Args:
        trainer: Whose loops and loggers.
    """

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(trainer)
        self._scored: Callable[[LogCall], None] = lambda heard: None
        # told of values that are logged after a loop of the user's own
        self._beside: Callable[[LogCall], None] | None = None
        self._wraps: list[Layer] = []
        self._writers: list[Any] = []
        self._lines: dict[str, str | None] = {}
        self._known: dict[str, _Known] = {}
        self._updates = 0  # of the keys that evaluations log
        self._gathers = False
        # of the steps: what was logged under a known key, and by which step
        self._waiting: list[tuple[int, _Known, Any, int]] = []
        self._keys = self._steps = 0

    def listen(self, hear: Callable[[LogCall], None]) -> None:
        """Hand every value that is logged to `hear`, until `deafen`."""
        self.deafen()
        self._scored = hear
        for loop in _EVALUATED:
            self._wrap_results(loop, in_training=False)
        self._wrap_results(_TRAINED, in_training=True)
        for logger in self._trainer.loggers:
            self._wraps.append(Wrap(logger, "log_metrics", self._of_logger))
        self.find_writers()

    def hear_beside(self, hear: Callable[[LogCall], None] | None) -> None:
        """Hand each value to `hear` too, and those of hooks after training steps; None: no more."""
        self._beside = hear

    def _hear(self, heard: LogCall) -> None:
        if self._beside is not None:
            self._beside(heard)
        self._scored(heard)

    def deafen(self) -> None:
        """Listen no more, and leave everything as it was."""
        self._beside = None
        for wrap in self._wraps:
            wrap.remove()
        self._wraps.clear()
        self._writers.clear()
        self._known.clear()

    def gather(self) -> None:
        """Steps begin: what they log waits from now on, but for the first value of each key."""
        self._known.clear()
        self._waiting.clear()
        self._keys = self._steps = 0
        self._gathers = True

    def gathered(self) -> list[tuple[int, LogCall]]:
        """The steps are over: what they logged and `hear` was not told, each with its step."""
        self._gathers = False
        waiting, self._waiting = self._waiting, []
        return [
            (step, known.heard(value, size)) for step, known, value, size in waiting
        ]

    def find_writers(self) -> None:
        """Hear the writers that exist by now: asking a logger for its own would make one."""
        for logger in self._trainer.loggers:
            writer = vars(logger).get("_experiment")
            if writer is None or any(writer is known for known in self._writers):
                continue
            self._writers.append(writer)
            for method in _WRITERS:
                if callable(getattr(type(writer), method, None)):
                    around = partial(self._of_writer, method)
                    self._wraps.append(Wrap(writer, method, around))

    def owners(self) -> list[tuple[str, Any]]:
        """The user's callbacks, each with what the names of its attributes begin with."""
        return _lightning.own_callbacks(self._trainer)

    def _wrap_results(self, loop: str, in_training: bool) -> None:
        path = f"{loop}._results.update_metrics"
        results = _lightning.owner(self._trainer, path)
        if results is not None:
            around = partial(self._of_log, results, in_training)
            layer: Layer
            if in_training:
                layer = Wrap(results, "update_metrics", around)
            else:
                gathered = partial(self._gathered_by, around)
                layer = Inlay(results, "update_metrics", gathered)
            self._wraps.append(layer)

    def _gathered_by(
        self, at_once: Callable[..., Any], log: Callable[..., Any], layer: Layer
    ) -> Callable[..., Any]:
        """What an evaluation logs: of most calls in a step nothing is asked but their value."""

        def update_metrics(key: str, value: Any, batch_size: int) -> Any:
            if not layer.active:
                return log(key, value, batch_size)
            known = self._known.get(key) if self._gathers else None
            if known is None:
                return at_once(log, key, value, batch_size)
            self._updates += 1
            done = log(key, value, batch_size)
            if known.waits:
                self._waiting.append(
                    (self._steps - known.after_step, known, value, batch_size)
                )
            return done

        return update_metrics

    def _of_log(
        self,
        results: Any,
        in_training: bool,
        log: Callable[..., Any],
        key: str,
        value: Any,
        batch_size: int,
    ) -> Any:
        one = results[key]
        known = self._known.get(key)
        if known is None or known.one is not one:
            known = self._known[key] = self._described(one, key, in_training)
        if not in_training:
            self._updates += 1
        if not known.is_heard and known.after_step and self._beside is not None:
            self._beside(known.heard(value, batch_size))
        if not known.is_heard or _lightning.logs_ours():
            return log(key, value, batch_size)
        heard = known.heard(value, batch_size)
        done = log(key, value, batch_size)
        self._hear(heard)
        return done

    def _described(self, one: Any, key: str, in_training: bool) -> _Known:
        """What is the same of all values that are logged under a key."""
        meta = one.meta
        is_heard = meta.on_epoch and (not in_training or meta.fx.startswith(_HOOKS))
        after_step = meta.fx.endswith(_AFTER_STEP)
        if (is_heard or after_step) and key not in self._lines:
            site = user_site(4)
            self._lines[key] = site.location if site is not None else None
        waits = (
            bool(is_heard)
            and not in_training
            and one.is_tensor
            and self._keys < MOST_KEYS
        )
        self._keys += waits
        loader = meta.dataloader_idx
        suffix = ""
        if loader is not None and meta.add_dataloader_idx:
            suffix = f"/dataloader_idx_{loader}"
        return _Known(
            one,
            bool(is_heard),
            meta.name + suffix,
            meta.name,
            loader,
            bool(meta.is_mean_reduction),
            not one.is_tensor,
            self._lines.get(key),
            waits,
            after_step,
            next((r for r in _REDUCTIONS if getattr(meta, f"is_{r}_reduction")), ""),
            self.ranks() > 1 and one.is_tensor and _is_averaged(meta),
        )

    def pulse(self) -> tuple[int, int | None]:
        """A step is over: how many values were logged so far, and the batch's size by the loop."""
        self._steps += 1
        return (
            self._updates,
            None if self._results is None else self._results.batch_size,
        )

    def _of_logger(self, log: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        metrics = args[0] if args else kwargs.get("metrics")
        self._direct(metrics, sys._getframe(2))
        return log(*args, **kwargs)

    def _of_writer(
        self, method: str, log: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        given: Any = args[0] if args else None
        if method in ("add_scalar", "log_metric"):
            names = [k for k in (*args, *kwargs.values()) if isinstance(k, str)]
            values = [
                v for v in (*args[1:], *kwargs.values()) if _number(v) is not None
            ]
            given = None
            if names and values:
                given = {names[-1]: values[0]}
        elif method == "add_scalars":
            values = args[1] if len(args) > 1 else {}
            given = {f"{given}/{k}": v for k, v in values.items()} if values else None
        self._direct(given, sys._getframe(2))
        return log(*args, **kwargs)

    def _direct(self, metrics: Any, caller: Any) -> None:
        """The user's own code calls a logger; what Lightning passes on was heard before."""
        if (
            not isinstance(metrics, Mapping)
            or owner_of(caller.f_code.co_filename) != "user"
        ):
            return
        location = f"{caller.f_code.co_filename}:{caller.f_lineno}"
        for key, value in metrics.items():
            number = _number(value)
            if isinstance(key, str) and number is not None:
                self._hear(LogCall(key, key, number, location=location))


def _is_averaged(meta: Any) -> bool:
    """Whether the loop averages what each rank logged under a key."""
    sync = getattr(meta, "sync", None)
    shared = getattr(sync, "should", False) and not getattr(
        sync, "rank_zero_only", False
    )
    return bool(shared and meta.is_mean_reduction)


def _number(value: Any) -> Any:
    """`value` where it is one number, else None."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            return None
        return value.detach().clone()
    if isinstance(value, (bool, str)) or value is None:
        return None
    if isinstance(value, (int, float)):
        return torch.tensor(float(value), dtype=torch.float64)
    item = getattr(type(value), "item", None)
    if item is None or getattr(value, "size", 0) != 1:
        return None
    return torch.tensor(float(value), dtype=torch.float64)  # of numpy
