"""The only file that imports Lightning.

Private attributes that we rely on stand in `private.py`, once each.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_evalguard.data.loaders import Evaluated, Logged, flat
from lightning_evalguard.instruments.dispatch import aside
from lightning_evalguard.trainer.private import NO_REPLAY, PRIVATE, has, owner, peek

if (
    TYPE_CHECKING
    or "pytorch_lightning" not in sys.modules
    or "lightning.pytorch" in sys.modules
):
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.loggers.logger import DummyLogger
else:  # the user's script runs on the package's other name: do not load both
    from lightning_fabric.utilities.exceptions import MisconfigurationException
    from pytorch_lightning import Callback, LightningModule, Trainer
    from pytorch_lightning.loggers.logger import DummyLogger


def why_not_logged_again(trainer: Trainer) -> str | None:
    """Why what a replay logs could not be kept out of the books, or None."""
    gone = [
        p
        for p, falls_back in PRIVATE.items()
        if falls_back is NO_REPLAY and not has(trainer, p)
    ]
    if not gone:
        return None
    return f"this Lightning has no `trainer.{gone[0]}`"


@contextmanager
def out_of_the_books(trainer: Trainer, spare: SpareBooks) -> Iterator[None]:
    """What is logged inside goes into a collection of its own, and to loggers that drop it."""
    loop = peek(trainer, "_active_loop")
    connector = trainer._logger_connector
    loggers = trainer.loggers
    fx = connector._current_fx
    results = loop._results
    if results is not None:
        loop._results = spare.like(results)
    trainer.loggers = [DummyLogger() for _ in loggers]
    try:
        yield
    finally:
        trainer.loggers = loggers
        connector._current_fx = fx
        loop._results = results
        spare.empty()


class SpareBooks:
    """Where replays log: one collection for all of them, as what it holds for a key takes long."""

    def __init__(self) -> None:
        self._results: Any = None

    def like(self, results: Any) -> Any:
        """An empty collection, for what is logged in the same places as in `results`."""
        spare = self._results
        if type(spare) is not type(results) or spare.training != results.training:
            spare = self._results = type(results)(training=results.training)
            spare.log = _unwatched(spare.log)
        for name in ("batch", "batch_size", "dataloader_idx"):
            setattr(spare, name, getattr(results, name))
        return spare

    def empty(self) -> None:
        """Forget what was logged, and hold neither the batch nor the user's metrics."""
        spare = self._results
        if spare is not None:
            spare.batch = None
            for key in [key for key, one in spare.items() if not one.is_tensor]:
                del spare[key]
            spare.reset(metrics=False)


def _unwatched(log: Callable[..., None]) -> Callable[..., None]:
    """Log aside: a key that is new takes more operators than one that stands already."""

    def logged(*args: Any, **kwargs: Any) -> None:
        with aside:
            log(*args, **kwargs)

    return logged


def dataloaders(trainer: Trainer) -> Any:
    """The loaders of the running evaluation: one, or a sequence or a dict of them."""
    combined = peek(trainer, "_active_loop._combined_loader", None)
    if combined is not None:
        return combined.iterables
    if trainer.testing:
        return trainer.test_dataloaders
    # `trainer.val_dataloaders` names those of the last fit, also in a `validate` after it
    if trainer.predicting:
        return trainer.predict_dataloaders
    return trainer.val_dataloaders


def batches_of(trainer: Trainer, loader: int) -> float | None:
    """How many batches a loader of the running evaluation will give; None where it is not known."""
    limits = peek(trainer, "_active_loop.max_batches", ())
    if isinstance(limits, list) and loader < len(limits):
        return float(limits[loader])
    return None


def hyper_parameters(module: LightningModule) -> dict[str, Any]:
    """What ``save_hyperparameters`` kept; empty where it was never called."""
    # the property makes one where there is none
    return dict(vars(module).get("_hparams") or {})


def sets_of(loaders: Any) -> list[Any]:
    """The datasets of one or several loaders."""
    found = [
        vars(loader).get("dataset")
        for loader in flat(loaders)
        if hasattr(loader, "__dict__")
    ]
    return [dataset for dataset in found if dataset is not None]


_LIBRARIES = ("lightning", "pytorch_lightning", "lightning_evalguard")


def own_callbacks(trainer: Trainer) -> list[tuple[str, Any]]:
    """The user's callbacks, each with what the names of its attributes begin with."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    own = [
        c for c in callbacks if type(c).__module__.partition(".")[0] not in _LIBRARIES
    ]
    return [(f"{type(c).__name__}.", c) for c in own]


class Books:
    """What the checks ask of the loop that runs."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._results: Any = None

    def evaluated(self) -> Evaluated:
        """The loaders of the running evaluation, and those of training."""
        trainer = self._trainer
        self._results = trainer._results  # the same until the evaluation is over
        name = "limit_val_batches"
        if trainer.testing:
            name = "limit_test_batches"
        limit = getattr(trainer, name, 1.0)
        limited = isinstance(limit, int) or limit < 1.0
        return Evaluated(
            loaders=list(flat(dataloaders(trainer))),
            mode=str(
                peek(trainer, "_active_loop._combined_loader._mode", "sequential")
            ),
            limits=list(peek(trainer, "_active_loop.max_batches", ())),
            setting=(name, limit) if limited else None,
            training=list(flat(trainer.train_dataloader)),
            debugging=any(
                getattr(trainer, k, 0) for k in ("fast_dev_run", "overfit_batches")
            ),
        )

    def training(self) -> list[Any]:
        """The loaders that the running fit trains with."""
        return list(flat(self._trainer.train_dataloader))

    def logged(self) -> list[Logged]:
        """What the steps of the running evaluation logged, as long as it is not reset."""
        found = []
        for one in (self._results or {}).values():
            meta = getattr(one, "meta", None)
            if meta is None or not meta.on_epoch or one.has_reset:
                continue
            averaged = bool(one.is_tensor and meta.is_mean_reduction)
            found.append(
                Logged(
                    meta.name,
                    meta.dataloader_idx,
                    None if one.is_tensor else one.value,
                    averaged,
                    int(one._update_count),
                    int(one.cumulated_batch_size) if averaged else None,
                )
            )
        return found

    def ranks(self) -> int:
        """How many processes evaluate."""
        return int(self._trainer.world_size)

    def values(self) -> dict[str, Any]:
        """The scores that the trainer holds."""
        return dict(self._trainer.callback_metrics)


class Entry(NamedTuple):
    """One score in the books of a loop, under one of the keys by which it is held."""

    key: str
    updates: int
    hook: str
    metric: Any  # the torchmetrics object that was logged, if one was


def entries(trainer: Trainer) -> Iterator[Entry]:
    """What the running loop logged and did not reset, as `callback_metrics` names it now."""
    results: Any = trainer._results
    in_step = peek(trainer, "_logger_connector._first_loop_iter", None) is not None
    for one in (results or {}).values():
        meta = getattr(one, "meta", None)
        if (
            meta is None
            or one.has_reset
            or not (meta.on_step if in_step else meta.on_epoch)
        ):
            continue
        suffix = ""
        if meta.dataloader_idx is not None:
            suffix = f"/dataloader_idx_{meta.dataloader_idx}"
        suffix = suffix if meta.add_dataloader_idx else ""
        metric = None
        if not one.is_tensor:
            metric = one.value
        for name in {meta.name, meta.forked_name(in_step)}:
            yield Entry(f"{name}{suffix}", int(one._update_count), meta.fx, metric)


def trained_keys(trainer: Trainer) -> dict[str, bool]:
    """The keys under which training has logged so far, and whether each holds a step's value."""
    results = peek(trainer, "fit_loop.epoch_loop._results", {})
    keys: dict[str, bool] = {}
    for meta in (one.meta for one in results.values()):
        keys |= {
            meta.forked_name(on_step): on_step
            for on_step in (True, False)
            if meta.on_epoch
        }
        keys[meta.name] = bool(meta.on_step)
    return keys


def logged_so_far(trainer: Trainer) -> dict[str, float]:
    """The means that the steps of the running evaluation logged so far, by key."""
    found = {}
    for one in (trainer._results or {}).values():
        meta = getattr(one, "meta", None)
        if meta is None or one.has_reset:
            continue
        value = one.value
        if not one.is_tensor:
            value = getattr(value, "_forward_cache", None)
        elif meta.is_mean_reduction:
            value = value / one.cumulated_batch_size.clamp(min=1)
        if isinstance(value, Tensor) and value.numel() == 1:
            found[meta.name] = float(value)
    return found


class ValidationLoop:
    """What the loop that validates lends to the training score; see `training_score.Loop`."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def step(self, batch: Any, batch_idx: int) -> tuple[Any, Any]:
        """Run the module's own validation step; the batch as it got it, and what it returned."""
        trainer: Any = self._trainer
        loop = trainer._active_loop
        module = trainer.lightning_module
        strategy = trainer.strategy
        batch = trainer.precision_plugin.convert_input(batch)
        batch = module._on_before_batch_transfer(batch, dataloader_idx=0)
        # of the class: what is wrapped on the instance watches the evaluation's own steps
        batch = type(strategy).batch_to_device(strategy, batch, dataloader_idx=0)
        results = loop._results
        results.batch = batch
        results.batch_size = None
        results.dataloader_idx = None
        several = loop._is_sequential and loop.num_dataloaders > 1
        given = loop._build_kwargs(batch, batch_idx, 0 if several else None)
        args = loop._build_step_args_from_hook_kwargs(given, "validation_step")
        outer = module._current_fx_name
        module._current_fx_name = "validation_step"
        try:
            return batch, type(strategy).validation_step(strategy, *args)
        finally:
            module._current_fx_name = outer
            results.batch = results.batch_size = None

    def scores(self) -> dict[str, Any]:
        """What the steps logged, reduced over the epoch."""
        results: Any = self._trainer._results
        return dict(results.metrics(False)["callback"])

    def books(self) -> AbstractContextManager[None]:
        """What is logged inside stays there."""
        return out_of_the_books(self._trainer, SpareBooks())

    def modes(self) -> dict[str, bool] | None:
        """The mode in which each module trains, by its qualified name."""
        found = peek(
            self._trainer, "fit_loop.epoch_loop.val_loop._module_mode.mode", None
        )
        if found is None:
            return None
        return dict(found)


def verbose(trainer: Trainer, stage: str) -> bool:
    """Whether Lightning prints its own table after a ``validate`` or ``test``."""
    return stage in ("validate", "test") and bool(
        peek(trainer, f"{stage}_loop.verbose", False)
    )


def advised_sync_dist(trainer: Trainer, key: str) -> None:
    """Note the advice about `key` as given, in the set where Lightning keeps what it has said."""
    if not (dist.is_available() and dist.is_initialized()):
        return
    said = peek(trainer, "_results.warning_cache", None)
    if isinstance(said, set):
        said.add(
            f"It is recommended to use `self.log({key!r}, ..., sync_dist=True)`"
            " when logging on epoch level in distributed setting to accumulate the metric across"
            " devices."
        )


class _Key(str):
    """A key with its loader in it, which does not say so."""

    def __contains__(self, part: Any) -> bool:
        return part != "/dataloader_idx_" and super().__contains__(part)


_ours: list[str] = []  # the key that `log` is logging


def logs_ours() -> bool:
    """Whether it is the guard itself that logs."""
    return bool(_ours)


def log(module: LightningModule, key: str, value: float, follows: bool = False) -> None:
    """Log the score of one evaluation, under exactly this key.

    Args:
        module: Whose hook runs.
        key: The whole key.
        value: The score.
        follows: Whether the same hook logged another score of ours just before.
    """
    _ours.append(key)
    try:
        if not (follows and _logged_again(module, key, value)):
            _log(module, key, value)
    finally:
        _ours.pop()


def _logged_again(module: LightningModule, key: str, value: float) -> bool:
    """Give its entry of earlier evaluations the value, where it has one: `module.log` takes long.

    That looks up and compares everything that a call may say, and moves the entry to its device.
    """
    results = peek(module.trainer, "_active_loop._results", None)
    known = f"{vars(module).get('_current_fx_name')}.{key}"
    own = "log" in vars(module) or type(module).log is not LightningModule.log
    if own or results is None or known not in results:
        return False
    entry = results[known]
    given = torch.tensor(value, device=entry.value.device, dtype=entry.value.dtype)
    results.update_metrics(known, given, 1)
    return True


def _log(module: LightningModule, key: str, value: float) -> None:
    settings: dict[str, Any] = {"on_step": False, "on_epoch": True, "reduce_fx": "max"}
    settings["add_dataloader_idx"] = False
    try:
        module.log(key, value, **settings)
    except MisconfigurationException:
        # Up to 2.5.0 Lightning refuses the name of a loader, also where it is not to add one.
        module.log(_Key(key), value, **settings)


def logged_step(trainer: Trainer) -> int:
    """The step under which Lightning logs an evaluation's scalars."""
    if trainer.state.fn != "fit":
        return trainer.global_step
    # Lightning's `_LoggerConnector.log_metrics` takes the same count
    return int(
        peek(trainer, "fit_loop.epoch_loop._batches_that_stepped", trainer.global_step)
    )


def monitored(trainer: Trainer) -> set[str]:
    """The keys by which a callback or a scheduler of `trainer` chooses, or names a file."""
    keys = {vars(callback).get("monitor") for callback in trainer.callbacks}  # type: ignore[attr-defined]
    keys |= {config.monitor for config in trainer.lr_scheduler_configs}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        filename = vars(callback).get("filename")
        if isinstance(filename, str):
            keys |= set(re.findall(r"\{([^:}=]+)", filename))
    return {key for key in keys if isinstance(key, str)}


__all__ = [
    "PRIVATE",
    "Books",
    "Callback",
    "DummyLogger",
    "Entry",
    "LightningModule",
    "SpareBooks",
    "Trainer",
    "ValidationLoop",
    "advised_sync_dist",
    "dataloaders",
    "entries",
    "has",
    "log",
    "logged_so_far",
    "logged_step",
    "logs_ours",
    "monitored",
    "out_of_the_books",
    "owner",
    "trained_keys",
    "verbose",
    "why_not_logged_again",
]
