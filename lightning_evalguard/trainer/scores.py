"""The confusion matrix of one run: counted in the steps and logged when an epoch ends."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any

from lightning_evalguard.checks.data.renumbered import LoggedValues, renumbered
from lightning_evalguard.checks.scores.check import ScoresCheck
from lightning_evalguard.confusion.by_batch import LoaderCounts
from lightning_evalguard.confusion.differences import Difference
from lightning_evalguard.confusion.loggers import write
from lightning_evalguard.confusion.recorder import Recorder
from lightning_evalguard.confusion.result import ConfusionResult
from lightning_evalguard.instruments.patch import Wrap
from lightning_evalguard.report import (
    EvalGuardError,
    EvalGuardWarning,
    Finding,
    Report,
    broke,
    hidden,
    warn_text,
)
from lightning_evalguard.screen import print_coloured
from lightning_evalguard.trainer import lightning as _lightning
from lightning_evalguard.trainer.lightning import LightningModule, Trainer

__tracebackhide__ = hidden


class Scores:
    """The confusion matrix of one run, counted in the steps and logged when an epoch ends."""

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        recorder: Recorder,
        report: Report,
        claims: ScoresCheck,
    ) -> None:
        self._claims = claims
        # What is found goes where the policy of the `scores` check is applied.
        self.judge: Callable[[Sequence[Finding]], None] = lambda findings: None
        # And of the `data` check.
        self.judge_data: Callable[[Sequence[Finding]], None] = lambda findings: None
        self._trainer, self._module = trainer, module
        self._recorder = recorder
        self._report = report
        self._ours: set[str] = set()
        self._theirs: set[str] = set()
        self._reported: set[str] = set()
        self._counting = False
        self._wrap: Wrap | None = None
        self.results: dict[str, ConfusionResult] = {}  # of the last evaluation

    def start(self, stage: str, dataloaders: Any) -> None:
        trainer = self._trainer
        self.results = {}
        self._recorder.logged = partial(_lightning.logged_so_far, trainer)
        self._counting = self._safely(
            lambda: self._recorder.start(
                stage, self._module, dataloaders, getattr(trainer, "datamodule", None)
            )
        )

    def before_step(self, batch: Any, dataloader_idx: int) -> None:
        if self._counting:
            try:
                self._recorder.before_step(batch, dataloader_idx)
            except Exception as error:  # noqa: BLE001 - see `_failed`
                self._failed(error)

    def after_step(self, outputs: Any, batch: Any, dataloader_idx: int) -> None:
        if self._counting:
            try:
                self._recorder.after_step(outputs, batch, dataloader_idx)
            except Exception as error:  # noqa: BLE001 - see `_failed`
                self._failed(error)

    def log_after(self, hook: str) -> None:
        """Log once the module's own `hook`, which Lightning calls next, has logged its keys."""
        if self._counting:
            self._counting = False
            self._recorder.steps_over()
            self._wrap = Wrap(self._module, hook, self._log)
        else:
            self._recorder.ranks.skip("matrix")

    def show(self, stage: str) -> None:
        """Print the table of a `validate` or `test` on its own, where Lightning prints its own."""
        if not (
            self._trainer.is_global_zero and _lightning.verbose(self._trainer, stage)
        ):
            return
        key = {"validate": "val"}.get(stage, stage)
        for name, result in self._report.confusion.items():
            if name.split("/")[0] == key:
                # beside the table that Lightning prints
                print_coloured(f"{name}: {result}", sys.stdout)

    def paused(self) -> AbstractContextManager[None]:
        return self._recorder.paused()

    def abort(self) -> None:
        self._counting = False
        self._unwrap()
        self._recorder.abort()

    def _unwrap(self) -> None:
        if self._wrap is not None:
            self._wrap.remove()
            self._wrap = None

    def _log(self, hook: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._unwrap()
        outputs = hook(*args, **kwargs)
        self._safely(self._read)
        self._recorder.ranks.skip("matrix")  # where that failed
        return outputs

    def _read(self) -> None:
        trainer = self._trainer
        self._recorder.makes_targets = self._claims.makes_targets
        recorded = self._recorder.stop(trainer.current_epoch, trainer.global_step)
        for sentence in recorded.notes:
            self._report.note(sentence)
        self._report.confusion.update(recorded.results)
        self.results = recorded.results
        self._claims.counted(
            {
                key: LoaderCounts(r, recorded.batches[key])
                for key, r in recorded.results.items()
            }
        )
        logged = set(trainer.callback_metrics)
        self._theirs |= logged - self._ours
        asked = _lightning.monitored(trainer)
        differing, follows = [], False
        for key, result in recorded.results.items():
            stage, _, loader = key.partition("/")
            for score, value in result.scores.items():
                name = f"{stage}/{score}{f'/{loader}' if loader else ''}"
                if name not in self._theirs:
                    if self._recorder.config.logs(score, result.task) or name in asked:
                        self._log_scalar(name, value, follows)
                        follows = True
                    continue
                theirs = float(trainer.callback_metrics[name])
                difference = result.explained(
                    score, theirs, *self._claims.reason(name, score, theirs)
                )
                if difference.rounds:
                    if (key := f"rounds {name}") not in self._reported:
                        self._reported.add(key)
                        self._report.note(f"`{name}` {difference.fact}")
                elif difference.fact:
                    differing.append(_differs(name, difference, result))
        differing += [
            replace(finding, epoch=trainer.current_epoch, step=trainer.global_step)
            for finding in recorded.findings
        ]
        self._claims.explained(str(finding.subject) for finding in differing)
        if not trainer.is_global_zero:
            return
        self.judge(differing)
        found = renumbered(recorded.results, self._logged, self._report)
        self.judge_data(list(found))
        for sentence in recorded.warnings:
            warn_text(sentence)
        for key, result in recorded.results.items():
            for failure in write(
                trainer.loggers, key, result, _lightning.logged_step(trainer)
            ):
                if failure not in self._reported:
                    self._reported.add(failure)
                    warn_text(failure)

    def _logged(self) -> LoggedValues:
        """What training and the evaluation have logged."""
        held = self._trainer.callback_metrics
        values = {key: float(v) for key, v in held.items() if v.numel() == 1}
        trained = _lightning.trained_keys(self._trainer)
        training = {key: v for key, v in values.items() if trained.get(key) is False}
        evaluation = {key: v for key, v in values.items() if key not in trained}
        return LoggedValues(training, evaluation)

    def _log_scalar(self, key: str, value: float, follows: bool) -> None:
        if self._trainer.barebones:
            return
        # Equal on every rank already: no `sync_dist`, which would be one collective a key.
        _lightning.advised_sync_dist(self._trainer, key)
        _lightning.log(self._module, key, value, follows)
        self._ours.add(key)

    def _safely(self, act: Callable[[], None]) -> bool:
        """Whether `act` worked."""
        try:
            act()
        except Exception as error:  # noqa: BLE001 - see `_failed`
            self._failed(error)
            return False
        return True

    def _failed(self, error: Exception) -> None:
        """A bug of ours costs one warning and the matrix, never the run."""
        if isinstance(error, (EvalGuardError, EvalGuardWarning)):
            raise error  # what all ranks raise, or a filter makes an error of
        if self._recorder.explicit and isinstance(error, ValueError):
            raise error  # the user's arguments do not fit what the step gives
        self._counting = False
        broke(self._report, "the confusion matrix", "its evaluation", error)
        # what it follows is given back now, not at the next evaluation
        self._recorder.abort()


def _differs(key: str, difference: Difference, result: ConfusionResult) -> Finding:
    """The module logs `key` itself, with another value than the matrix gives."""
    return Finding(
        check="scores",
        stage="test" if key.startswith("test") else "validate",
        fact=difference.fact,
        remedy=difference.remedy,
        subject=key,
        leads="subject",
        epoch=result.epoch,
        step=result.step,
        certain=False,
    )
