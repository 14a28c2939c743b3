"""EvalGuard, the callback: where the guard stands in Lightning."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

from lightning_evalguard.allow import allowed
from lightning_evalguard.audit import Mode, Replays
from lightning_evalguard.checks.batch.check import BatchCheck
from lightning_evalguard.checks.check import Check
from lightning_evalguard.checks.data.check import DataCheck
from lightning_evalguard.checks.data.history import History
from lightning_evalguard.checks.grad import GradCheck
from lightning_evalguard.checks.modes.check import ModesCheck
from lightning_evalguard.checks.rng import RngCheck
from lightning_evalguard.checks.scores.check import ScoresCheck
from lightning_evalguard.checks.selection.check import SelectionCheck
from lightning_evalguard.checks.state.check import StateCheck
from lightning_evalguard.checks.stochastic.check import StochasticCheck
from lightning_evalguard.checks.sync.check import SyncCheck
from lightning_evalguard.checks.weights.check import WeightsCheck
from lightning_evalguard.confusion.config import ConfusionMetrics
from lightning_evalguard.confusion.recorder import Recorder
from lightning_evalguard.guard import Guard
from lightning_evalguard.hints import names_keywords
from lightning_evalguard.instruments.tracebacks import trim
from lightning_evalguard.keywords import check_keywords
from lightning_evalguard.ranks import ranks_of
from lightning_evalguard.record.run import RecordedRun, Records
from lightning_evalguard.report import (
    FixPolicy,
    Policy,
    Report,
    hidden,
)
from lightning_evalguard.trainer import lightning as _lightning
from lightning_evalguard.trainer.choosers import LightningDesk
from lightning_evalguard.trainer.ear import Ear
from lightning_evalguard.trainer.lightning import Callback, LightningModule, Trainer
from lightning_evalguard.trainer.run import (
    Run,
    accumulates,
    batch_size,
    loader_at,
    replay_apart,
    why_not,
)
from lightning_evalguard.trainer.scores import Scores
from lightning_evalguard.trainer.training_score import TrainScoreOfFit

__tracebackhide__ = hidden


class EvalGuard(Callback):
    """Guards every evaluation of a `Trainer`, and brings train mode back exactly.

    Args:
        modes: Policy for a module in the wrong mode, in evaluation or in training: ``"error"``
            stops the run, ``"warn"`` says it once, ``"fix"`` sets the flags right and warns,
            ``"ignore"`` switches the check off.
        grad: Policy for autograd left on in an evaluation, and graphs kept.
        state: Policy for weights, buffers, settings or the batch changed by an evaluation.
        stochastic: Policy for random numbers drawn by an evaluation step; dropout that is active
            is certain, any other sampling a suspicion, which warns under ``"error"`` too.
        batch: Policy for outputs that depend on the other samples of the batch.
        rng: Policy for an evaluation that moves the shared generators, and so the training after
            it. ``"fix"`` puts them back, so that training is the same with and without it.
        data: Policy for an evaluation set that is not the same each time, not counted once, or
            shared with training.
        sync: Policy for lines of yours at which the host waits for the device, and on the CPU for
            those at which it would.
        weights: Policy for weights that were never loaded, never trained or never averaged.
        scores: Policy for logged scores that are not what they claim.
        selection: Policy for checkpoints and stops chosen by a score that does not justify it.
        groups: Which samples belong together (one patient, one speaker): the name of an attribute
            or column, or a callable that takes a sample and gives its group.
        outcomes: Whether the record keeps one bit a sample, right or wrong, so that two runs can
            be compared sample by sample.
        budget: Share of an evaluation's time that looking again and again may cost; 1.0 looks at
            every batch.
        sync_steps: Which steps of each stage are watched for syncs: the first so many, and every
            so many from there on; on the CPU the gaps double (50, 100, 200, ...).
        allow: Per check, glob patterns of qualified names, source files or functions whose
            findings are meant, e.g. ``{"modes": ["*.mc_dropout"]}``.
        metrics: The confusion matrix and its scores, logged as ``val/accuracy``, ``val/f1_macro``,
            ...: ``"auto"`` counts wherever the step shows predictions and targets, a
            `ConfusionMetrics` says what and how, None counts nothing.
        audit: How the first step of an evaluation is looked at more closely. ``"auto"``: in the
            sanity check, whose results nobody keeps, it is run again with every effect undone;
            elsewhere it is watched as it runs. ``"full"``: it is run again there too. ``"off"``:
            neither.
        train_score: How many batches of the training set are evaluated, in eval mode, after each
            validation of a fit: logged as ``train_eval/<score>``, with its gap to the validation's
            and what dropout does to it. 0: none.
        record: Where ``evalguard.json`` goes after each fit, validate and test: ``"auto"``, the
            folder of the run's logger, and nowhere without a logger; a folder; None, nowhere.

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

    @names_keywords
    def __init__(
        self,
        modes: FixPolicy = "error",
        grad: Policy = "error",
        state: Policy = "error",
        stochastic: Policy = "error",
        batch: Policy = "error",
        rng: FixPolicy = "ignore",
        data: Policy = "warn",
        sync: Policy = "warn",
        weights: Policy = "warn",
        scores: Policy = "warn",
        selection: Policy = "warn",
        groups: str | Callable[..., Any] | None = None,
        outcomes: bool = False,
        budget: float = 0.01,
        sync_steps: tuple[int, int] = (2, 50),
        allow: dict[str, list[str]] | None = None,
        metrics: Literal["auto"] | ConfusionMetrics | None = "auto",
        audit: Mode = "auto",
        train_score: int = 0,
        record: str | os.PathLike[str] | None = "auto",
    ) -> None:
        self._policies = check_keywords(locals())
        self._metrics = metrics
        self._groups = groups
        self._outcomes = outcomes
        self._budget = budget
        self._report = Report()
        self._sets_of_fits = History()
        self._train_score = train_score
        self._sync_steps = sync_steps
        self._audit = audit
        self._allow = allow
        self._expected: list[tuple[str, bool]] = []
        self._runs: list[Run] = []
        self._train_scores: dict[Trainer, TrainScoreOfFit] = {}
        self._records = Records(
            record, self._report, outcomes, self._sets_of_fits.trained_on
        )

    @property
    def report(self) -> Report:
        """What was verified and found, over all runs of this guard."""
        return self._report

    def expect_modes(
        self, *, train: Sequence[str] = (), eval: Sequence[str] = ()
    ) -> None:
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
        record = self._records.open(trainer)
        sync = SyncCheck(self._sync_steps, lambda: allowed("sync"))
        claims = ScoresCheck(Ear(trainer))
        checks = [*self._checks(trainer, pl_module, record, sync), claims]
        ranks = ranks_of(self._report, trainer.global_rank, trainer.world_size)

        scores = None
        if self._metrics is not None:
            config = None
            if isinstance(self._metrics, ConfusionMetrics):
                config = self._metrics
            recorder = Recorder(config, ranks, self._outcomes)
            scores = Scores(trainer, pl_module, recorder, self._report, claims)
        desk = LightningDesk(trainer, pl_module, scores, claims)
        checks.append(SelectionCheck(desk))
        self._begin_train_score(trainer, pl_module)

        ruled = [(check, self._policies[check.name]) for check in checks]
        replays = Replays(
            self._audit,
            beside=lambda: [*trainer.optimizers, *trainer.lr_scheduler_configs],
            isolate=partial(replay_apart, trainer, scores, _lightning.SpareBooks()),
            why_not=lambda: why_not(trainer),
        )
        guard = Guard(
            [(check, policy) for check, policy in ruled if policy != "ignore"],
            self._allow,
            self._report,
            replays,
            ranks,
            budget=self._budget,
        )
        if scores is not None:
            scores.judge = partial(guard.report_findings, "scores")
            scores.judge_data = partial(guard.report_findings, "data")
        self._begin(trainer, pl_module, guard, scores, sync, record)

    def _checks(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        record: RecordedRun,
        sync: SyncCheck,
    ) -> list[Check]:
        """Those that know nothing of the scores."""
        return [
            ModesCheck(
                self._expected,
                lambda: trainer.optimizers,
                lambda: getattr(trainer, "callbacks", ()),
            ),
            GradCheck(),
            StateCheck(
                lambda: trainer.optimizers,
                lambda: [config.scheduler for config in trainer.lr_scheduler_configs],
                lambda: accumulates(trainer),
            ),
            StochasticCheck(),
            BatchCheck(
                lambda: batch_size(trainer), lambda index: loader_at(trainer, index)
            ),
            RngCheck(restore=self._policies["rng"] == "fix"),
            DataCheck(
                _lightning.Books(trainer),
                self._sets_of_fits,
                self._groups,
                record.trained_before,
            ),
            sync,
            WeightsCheck(
                lambda: trainer.optimizers,
                lambda: trainer.callbacks,  # type: ignore[attr-defined]
                record.disagreements,
                lambda: _lightning.hyper_parameters(pl_module),
                schedulers=lambda: [c.scheduler for c in trainer.lr_scheduler_configs],
            ),
        ]

    def _begin(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        guard: Guard,
        scores: Scores | None,
        sync: SyncCheck,
        record: RecordedRun,
    ) -> None:
        """From here on the run is guarded; what stops it at once leaves nothing behind."""
        run = Run(trainer, guard, scores, partial(self._end, trainer), sync, record)
        self._runs.append(run)
        try:
            run.open(pl_module)
        except BaseException as error:
            self._end(trainer, error)
            raise

    def _begin_train_score(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._train_score and trainer.state.fn == "fit":
            self._train_scores[trainer] = TrainScoreOfFit(
                trainer, pl_module, self._train_score, self._metrics, self._report
            )

    def on_after_setup(self, fabric: Any, module: Any) -> None:
        """Fabric has set up a module; its loops are the user's, and no hook stands around them."""
        self._report.note(
            "Fabric runs no evaluation itself: write `with evaluating(model):` around yours, or "
            "`lightning_evalguard.watch()` as the first line of the script"
        )
        # `fabric.call(...)` hands over what the user's loop has, which is no Trainer.
        for name in dir(Callback):
            if name.startswith("on_"):
                vars(self).setdefault(name, _no_trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._count(trainer, "val")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._count(trainer, "test")

    def on_validation_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> None:
        self._log(trainer, "on_validation_epoch_end")
        if trainer in self._train_scores and not trainer.sanity_checking:
            self._train_scores[trainer].after("on_validation_epoch_end")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        run = self._run_of(trainer)
        if run is not None:
            run.guard.scored(run.now)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log(trainer, "on_test_epoch_end")

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        for run in self._runs:
            if run.trainer is trainer:
                run.at(batch_idx, dataloader_idx)

    # no call more than needed: every batch comes here
    on_test_batch_start = on_validation_batch_start
    on_predict_batch_start = on_validation_batch_start

    def teardown(
        self, trainer: Trainer, pl_module: LightningModule, stage: str
    ) -> None:
        self._end(trainer)
        self._let_go()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._end(trainer, exception)
        self._let_go()
        trim(exception)

    def _let_go(self) -> None:
        """Lightning gives each callback the module's `log`, which keeps the module alive."""
        for name in ("log", "log_dict"):
            vars(self).pop(name, None)

    def _run_of(self, trainer: Trainer) -> Run | None:
        for run in self._runs:
            if run.trainer is trainer:
                return run
        return None

    def _count(self, trainer: Trainer, stage: str) -> None:
        run = self._run_of(trainer)
        if run is not None and run.scores is not None and not trainer.sanity_checking:
            run.scores.start(stage, _lightning.dataloaders(trainer))

    def _log(self, trainer: Trainer, hook: str) -> None:
        run = self._run_of(trainer)
        if run is not None:
            run.guard.steps_over(run.now)
        if run is not None and run.scores is not None:
            run.scores.log_after(hook)

    def _end(self, trainer: Trainer, error: BaseException | None = None) -> None:
        run = self._run_of(trainer)
        if (score := self._train_scores.pop(trainer, None)) is not None:
            score.stop()
        if run is not None:
            self._runs.remove(run)
            run.close(error)


def _no_trainer(*args: Any, **kwargs: Any) -> None:
    """A hook of a loop that is no Trainer's."""
