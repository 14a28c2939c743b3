"""Is a checkpoint saved under the score of its own weights?"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lightning_evalguard.checks.selection.aim import ChooserFact
from lightning_evalguard.checks.selection.choosers import Chooser, Desk, LoggedNow
from lightning_evalguard.checks.selection.direction import is_same

# whose fits a chooser took part in, over all runs of the process
_OWNERS: weakref.WeakKeyDictionary[Any, weakref.ref[Any]] = weakref.WeakKeyDictionary()


class Ages:
    """When each monitored score was logged, and with which one each checkpoint was saved."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.facts: list[ChooserFact] = []
        self.error: Exception | None = None
        self._evaluated: dict[str, int] = {}
        self._updates: dict[str, int] = {}
        self._steps: dict[str, int] = {}
        self._followed: set[str] = set()
        self._values: dict[str, set[float]] = {}
        self._counts: dict[int, tuple[int, float | None]] = {}
        self._reported: set[tuple[int, str]] = set()
        self.began = False

    # how a fit begins and ends

    def begin(self) -> None:
        """A fit begins: nothing of a checkpoint that it resumes from is loaded yet."""
        module = self._desk.module()
        for chooser in self._desk.choosers():
            if chooser.kind == "schedule":
                continue
            owner = _OWNERS.get(chooser.itself)
            if chooser.best is not None and owner is not None and owner() is not module:
                self.facts.append(_reused(chooser))
            _OWNERS[chooser.itself] = weakref.ref(module)

    def loaded(self) -> None:
        """The first step or evaluation begins: a best score that stands now was carried over."""
        if self.began:
            return
        self.began = True
        for chooser in self._desk.choosers():
            if chooser.key is not None and chooser.best is not None:
                self._values.setdefault(chooser.key, set()).add(chooser.best)

    def end(self) -> None:
        """The fit is over: is each best score one that was logged?"""
        trained = self._desk.trained()
        for chooser in self._desk.choosers():
            best, key = chooser.best, chooser.key
            if chooser.kind == "schedule" or best is None or key is None:
                continue
            # every save is seen, but not every score that only a stop compares
            if chooser.kind == "stop" and (
                key not in self._evaluated or key in trained
            ):
                continue
            known = self._values.get(key)
            if known and not any(is_same(best, value) for value in known):
                fact = f"the best score of {chooser.name} is {best:.4f}, which was never logged"
                self._report(chooser, key, fact, "Compare the value that is logged.")

    # evaluations

    def scored(self) -> None:
        """An evaluation logged all its scores: those that are monitored belong to this step."""
        step = self._desk.step()
        logged = self._desk.logged()
        for chooser in self._desk.choosers():
            for key in {chooser.key, *chooser.keys_in_names()}:
                if key is None or key not in logged:
                    continue
                self._evaluated[key] = step
                self._remember(key)
            if chooser.key in logged and chooser.kind != "checkpoint":
                self._counts[id(chooser.itself)] = chooser.count, chooser.best

    def looked_again(self) -> None:
        """Another evaluation begins, or the fit ends: did one score count several times?"""
        counts, self._counts = self._counts, {}
        for chooser in self._desk.choosers():
            before = counts.get(id(chooser.itself))
            if before is None or chooser.key is None:
                continue
            count, best = before
            anew = chooser.kind == "stop" and chooser.best != best
            looks = chooser.count - (-1 if anew else count)
            if looks > 1:
                self._report(chooser, chooser.key, *_counted(chooser, looks))

    def _remember(self, key: str) -> None:
        value = self._desk.value(key)
        if value is not None:
            self._values.setdefault(key, set()).add(value)

    # training steps

    @property
    def follows(self) -> bool:
        """Whether there are step-wise checkpoints."""
        return bool(self._followed)

    def before_train_step(self) -> None:
        """Note when each score that step-wise checkpoints need was last logged by training."""
        logged = self._desk.logged()
        step = self._desk.step()
        for key in self._followed:
            updates = 0
            if key in logged:
                updates = logged[key].updates
            if updates != self._updates.get(key):
                self._updates[key] = updates
                self._steps[key] = step

    # checkpoints

    def saved(self, path: str) -> None:
        """A checkpoint is about to be written to `path`; never raises."""
        try:
            self._saved(str(path))
        except Exception as error:  # noqa: BLE001 - raised at the next event of the check
            self.error = error

    def _saved(self, path: str) -> None:
        logged = self._desk.logged()
        for chooser in self._desk.choosers():
            if chooser.kind != "checkpoint":
                continue
            score = chooser.scored(path)
            if score is not None and chooser.key is not None:
                self._remember(chooser.key)
                self._is_the_logged(chooser, chooser.key, score)
                self._is_fresh(chooser, chooser.key, logged)
            for key in chooser.keys_in_name(path):
                self._is_fresh(chooser, key, logged)

    def _is_the_logged(self, chooser: Chooser, key: str, score: float) -> None:
        value = self._desk.value(key)
        if value is None or value != value or is_same(value, score):
            return
        fact = f"{chooser.name} saves a checkpoint under {score:.4f}, while {value:.4f} is logged"
        self._report(chooser, key, fact, "Compare the value that is logged.")

    def _is_fresh(
        self, chooser: Chooser, key: str, logged: Mapping[str, LoggedNow]
    ) -> None:
        step = self._desk.step()
        if key in logged:
            since = self._of_training(key, logged[key])
        elif key in self._evaluated:
            since = self._evaluated[key]
        else:
            # what training logs at each step is of this one, also in a validation after it
            at_each_step = self._desk.trained().get(key, True)
            since = None
            if not at_each_step:
                since = -1
        if since is None or since >= step:
            return
        age = "of an earlier epoch, older"
        if since >= 0:
            age = f"{step - since} steps older"
        age = "1 step older" if age == "1 steps older" else age
        fact = (
            f"is {age} than the weights that {chooser.name} saves under it, expected one of "
            "those"
        )
        self._report(chooser, key, fact, _remedy(chooser, key))

    def _of_training(self, key: str, logged: LoggedNow) -> int | None:
        """Step at which training logged a score last; None where it is of this very step."""
        if not logged.hook.startswith(
            ("training_step", "on_train_batch", "on_before", "on_after")
        ):
            return None
        known = key in self._followed
        self._followed.add(key)
        if not known or logged.updates != self._updates.get(key):
            return None
        return self._steps.get(key)

    def _report(self, chooser: Chooser, key: str, fact: str, remedy: str) -> None:
        if (id(chooser.itself), key) not in self._reported:
            self._reported.add((id(chooser.itself), key))
            self.facts.append((_of(chooser, key), fact, remedy))


def _of(chooser: Chooser, key: str) -> Chooser:
    """The chooser, as one that is spoken of because of `key`."""
    return replace(chooser, key=key)


def _remedy(chooser: Chooser, key: str) -> str:
    held = vars(chooser.itself)
    if held.get("_save_on_train_epoch_end"):
        return f"Pass `{chooser.name}(save_on_train_epoch_end=False)`, to save after a validation."
    return (
        f"Leave `every_n_train_steps` and `train_time_interval` out of {chooser.name}, to save "
        f"after each validation, or log `{key}` in every step at which it saves."
    )


def _counted(chooser: Chooser, looks: int) -> tuple[str, str]:
    fact = f"{chooser.name} counts the same value {looks} times, expected once an evaluation"
    if chooser.kind == "stop":
        return fact, f"Pass `{chooser.name}(check_on_train_epoch_end=False)`."
    return fact, (
        'Return `{"interval": "epoch", "frequency": n}` with the scheduler, n being the '
        "`check_val_every_n_epoch` of the Trainer."
    )


def _reused(chooser: Chooser) -> ChooserFact:
    fact = (
        f"{chooser.name} starts with {chooser.best:.4f} as its best score, from an earlier fit of "
        "another model, expected to start without one"
    )
    return chooser, fact, f"Make a new {chooser.name} for each fit."
