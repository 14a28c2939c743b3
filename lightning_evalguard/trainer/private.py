"""The private attributes of Lightning's Trainer that we rely on, and what happens without each.

Held against Lightning 2.2 to 2.6 by tests/trainer/test_versions.py, which names those that went
away.
"""

from __future__ import annotations

import sys
from typing import Any

_UNGUARDED = "these steps are not guarded, and the report says so"
_UNSEEN = "this evaluation is not guarded, and the report says so"
_UNHEARD = "what is logged is not held against what the steps gave"
_STEPS_OVER = (
    "the steps are over once the guard's own hook runs, after other callbacks'"
)
_UNSEEN_END = "grad mode that the last hooks leave on is not seen"
NO_REPLAY = "steps are watched as they run, and none is run again"

PRIVATE = {
    "strategy.training_step": _UNGUARDED,
    "strategy.validation_step": _UNGUARDED,
    "strategy.test_step": _UNGUARDED,
    "strategy.predict_step": _UNGUARDED,
    "strategy.batch_to_device": "changes to a batch on its way to the device are not seen",
    "fit_loop.epoch_loop.val_loop.run": _UNSEEN,
    "validate_loop.run": _UNSEEN,
    "test_loop.run": _UNSEEN,
    "predict_loop.run": _UNSEEN,
    "fit_loop.epoch_loop.val_loop.on_run_end": _UNSEEN_END,
    "validate_loop.on_run_end": _UNSEEN_END,
    "test_loop.on_run_end": _UNSEEN_END,
    "predict_loop.on_run_end": _UNSEEN_END,
    "_run_stage": "what a run patched stays where another callback's on_exception raises",
    "_active_loop": NO_REPLAY,
    "_active_loop._results": NO_REPLAY,
    "_active_loop._results.training": NO_REPLAY,
    "_active_loop._results.batch": NO_REPLAY,
    "_active_loop._results.batch_size": NO_REPLAY,
    "_active_loop._results.dataloader_idx": NO_REPLAY,
    "_logger_connector._current_fx": NO_REPLAY,
    "_active_loop._combined_loader": "the loaders are those that the trainer names publicly",
    "_active_loop._combined_loader._mode": "loaders are taken for sequential",
    "_active_loop.max_batches": "no limit of batches is known",
    "fit_loop.epoch_loop.val_loop._module_mode.mode": "no score is taken with dropout on",
    "fit_loop.epoch_loop._results.update_metrics": _UNHEARD,
    "fit_loop.epoch_loop.val_loop._results.update_metrics": _UNHEARD,
    "validate_loop._results.update_metrics": _UNHEARD,
    "test_loop._results.update_metrics": _UNHEARD,
    "fit_loop.epoch_loop.val_loop._on_evaluation_epoch_end": _STEPS_OVER,
    "validate_loop._on_evaluation_epoch_end": _STEPS_OVER,
    "test_loop._on_evaluation_epoch_end": _STEPS_OVER,
    "_results.warning_cache": "Lightning advises sync_dist for our keys on several ranks",
    "fit_loop.epoch_loop._batches_that_stepped": "figures stand at the trainer's global step",
    "fit_loop.epoch_loop._results": "scores that training logs are taken for fresh",
    "_logger_connector._first_loop_iter": "scores that training logs are taken for fresh",
    "validate_loop.verbose": "no table is printed after validate",
    "test_loop.verbose": "no table is printed after test",
}
"""Path from a Trainer, during the stage that uses it -> what happens where it is missing."""

GONE = object()


def has(trainer: Any, path: str) -> bool:
    """Whether this Lightning has what `PRIVATE` names `path`."""
    return path in PRIVATE and _walk(trainer, path) is not GONE


def owner(trainer: Any, path: str) -> Any:
    """The object that holds what `PRIVATE` names `path`; None where it is missing."""
    above = path.rpartition(".")[0]
    if not has(trainer, path):
        return None
    if above:
        return _walk(trainer, above)
    return trainer


def peek(trainer: Any, path: str, default: Any = GONE) -> Any:
    """What stands at a path of `PRIVATE`."""
    thing = GONE
    if path in PRIVATE:
        thing = _walk(trainer, path)
    if thing is GONE or thing is None:
        return default
    return thing


def _walk(thing: Any, path: str) -> Any:
    for name in path.split("."):
        if thing is None:  # there is none in this stage: a prediction logs nothing
            return None
        if name == "warning_cache":  # stands in the module of the class
            thing = sys.modules.get(type(thing).__module__)
        thing = getattr(thing, name, GONE)
    return thing
