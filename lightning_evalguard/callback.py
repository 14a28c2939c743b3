"""EvalGuard, the callback: the only file that imports Lightning."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from lightning_evalguard._patch import Wrap
from lightning_evalguard.checks import Check, Moment
from lightning_evalguard.checks.modes import ModesCheck
from lightning_evalguard.guard import Guard, check_allow
from lightning_evalguard.report import (
    FixPolicy,
    Report,
    check_policy,
)

if TYPE_CHECKING or "pytorch_lightning" not in sys.modules or "lightning.pytorch" in sys.modules:
    from lightning.pytorch import Callback, LightningModule, Trainer
else:  # the user's script runs on the package's other name: do not load both
    from pytorch_lightning import Callback, LightningModule, Trainer

_EVALUATIONS = ("validation", "test", "predict")


class EvalGuard(Callback):
    """Guards every evaluation of a `Trainer`, and brings train mode back exactly.

    Args:
        modes: Policy for a module in the wrong mode, in evaluation or in training: ``"error"``
            stops the run, ``"warn"`` says it once, ``"fix"`` sets the flags right and warns,
            ``"ignore"`` switches the check off.
        allow: Per check, glob patterns of qualified names, source files or functions whose
            findings are meant, e.g. ``{"modes": ["*.mc_dropout"]}``.

    Attributes:
        report: What was verified and found, over all runs of this guard.

    Raises:
        ValueError: On an unknown policy or check.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> guard = EvalGuard()
        >>> trainer = Trainer(callbacks=[guard], accelerator="cpu", logger=False,
        ...                   enable_checkpointing=False)
        >>> print(guard.report)
        nothing was checked yet
    """

    def __init__(
        self,
        modes: FixPolicy = "error",
        allow: dict[str, list[str]] | None = None,
    ) -> None:
        check_policy("modes", modes, FixPolicy)
        check_allow(allow)
        self._report = Report()
        self._policies: dict[str, str] = {"modes": modes}
        self._allow = allow
        self._expected: list[tuple[str, bool]] = []
        self._runs: list[_Run] = []

    @property
    def report(self) -> Report:
        """What was verified and found, over all runs of this guard."""
        return self._report

    def expect_modes(self, *, train: Sequence[str] = (), eval: Sequence[str] = ()) -> None:
        """Declare which modules train in which mode, from now on; a later call adds to it.

        Args:
            train: Glob patterns of qualified names expected in train mode while training.
            eval: Glob patterns of qualified names expected in eval mode while training.

        Example:
            >>> guard = EvalGuard()
            >>> guard.expect_modes(eval=["backbone.*"])   # before fit
            >>> guard.expect_modes(train=["backbone.layer4.*"])   # from a callback, when unfrozen
        """
        self._expected += [(p, True) for p in train] + [(p, False) for p in eval]

    # Lightning's hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._end(trainer)
        checks: list[tuple[Check, str]] = []
        if self._policies["modes"] != "ignore":
            checks.append((ModesCheck(self._expected), self._policies["modes"]))
        guard = Guard(checks, self._allow, self._report)
        self._runs.append(_Run(trainer, pl_module, guard))

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._at(trainer, batch_idx, dataloader_idx)

    def on_test_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._at(trainer, batch_idx, dataloader_idx)

    def on_predict_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._at(trainer, batch_idx, dataloader_idx)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._end(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._end(trainer, exception)

    def _run_of(self, trainer: Trainer) -> _Run | None:
        return next((run for run in self._runs if run.trainer is trainer), None)

    def _at(self, trainer: Trainer, batch_idx: int, dataloader_idx: int) -> None:
        run = self._run_of(trainer)
        if run is not None:
            run.now.batch, run.now.dataloader = batch_idx, dataloader_idx

    def _end(self, trainer: Trainer, error: BaseException | None = None) -> None:
        run = self._run_of(trainer)
        if run is not None:
            self._runs.remove(run)
            run.close(error)


class _Run:
    """One fit, validate, test or predict of one trainer under guard.

    No callback hook is the last before the user's step or the first after it: the step is
    guarded through the strategy's methods, the evaluation through its loop's `run`, both wrapped
    on the instance. User signatures, overrides, compilation and pickling stay as they are.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, guard: Guard) -> None:
        self.trainer = trainer
        self.guard = guard
        self.now = Moment("fit", rank=trainer.global_rank)
        guard.open(module, self.now)
        guard.report.checked["modules"] = max(
            guard.report.checked["modules"], sum(1 for _ in module.modules())
        )
        strategy = trainer.strategy
        self._wraps = [Wrap(strategy, "training_step", self._train_step)]
        self._wraps += [Wrap(strategy, f"{e}_step", self._step) for e in _EVALUATIONS]
        self._wraps += [Wrap(loop, "run", self._evaluate) for loop in _evaluation_loops(trainer)]

    def close(self, error: BaseException | None) -> None:
        for wrap in self._wraps:
            wrap.remove()
        self._where("fit")
        self.guard.close(self.now, error)

    def _where(self, stage: str) -> None:
        now, trainer = self.now, self.trainer
        now.stage, now.epoch, now.step = stage, trainer.current_epoch, trainer.global_step
        now.fitting = trainer.state.fn == "fit"

    def _evaluate(self, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        outer = self.now
        self.now = Moment("validate", rank=outer.rank)
        self._where(_stage(self.trainer))
        try:
            self.guard.start(self.now)
            try:
                outputs = run(*args, **kwargs)
            except BaseException as error:
                self.guard.stop(self.now, error)
                raise
            self.now.batch = -1
            self.guard.stop(self.now)
            return outputs
        finally:
            self.now = outer

    def _step(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self.guard.step(self.now, step, *args, **kwargs)

    def _train_step(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._where("fit")
        return self.guard.train_step(self.now, step, *args, **kwargs)


def _stage(trainer: Trainer) -> str:
    if trainer.sanity_checking:
        return "sanity_check"
    if trainer.testing:
        return "test"
    return "predict" if trainer.predicting else "validate"


def _evaluation_loops(trainer: Trainer) -> list[Any]:
    return [
        trainer.fit_loop.epoch_loop.val_loop,
        trainer.validate_loop,
        trainer.test_loop,
        trainer.predict_loop,
    ]
