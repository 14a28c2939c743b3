"""EvalGuard, the callback: where the guard stands in Lightning."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

from lightning_evalguard import _lightning
from lightning_evalguard._allow import allowed
from lightning_evalguard._lightning import Callback, LightningModule, Trainer
from lightning_evalguard._patch import Wrap
from lightning_evalguard._ranks import ranks_of
from lightning_evalguard._replay import replaying
from lightning_evalguard.checks import Check, Moment
from lightning_evalguard.checks.batch import BatchCheck
from lightning_evalguard.checks.data import DataCheck
from lightning_evalguard.checks.grad import GradCheck
from lightning_evalguard.checks.modes import ModesCheck
from lightning_evalguard.checks.rng import RngCheck
from lightning_evalguard.checks.state import StateCheck
from lightning_evalguard.checks.stochastic import StochasticCheck
from lightning_evalguard.checks.sync import SyncCheck
from lightning_evalguard.confusion import ConfusionMetrics
from lightning_evalguard.guard import Audit, Guard, Replays, check_allow, check_policies
from lightning_evalguard.record import Records
from lightning_evalguard.record import Run as Record
from lightning_evalguard.recorder import Recorder
from lightning_evalguard.report import (
    EvalGuardError,
    Finding,
    FixPolicy,
    Policy,
    Report,
    broke,
    check_policy,
    warn,
    warn_text,
)
from lightning_evalguard.result import ConfusionResult, Difference
from lightning_evalguard.sinks import write
from lightning_evalguard.training_score import TrainingScore

_STEPS = ("validation", "test", "predict")
_LOOPS = ("fit_loop.epoch_loop.val_loop", "validate_loop", "test_loop", "predict_loop")


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
            shared with training, and for scores that are not what they claim.
        sync: Policy for lines of yours at which the host waits for the device, and on the CPU for
            those at which it would.
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
        sync_steps: tuple[int, int] = (2, 50),
        allow: dict[str, list[str]] | None = None,
        metrics: Literal["auto"] | ConfusionMetrics | None = "auto",
        audit: Audit = "auto",
        train_score: int = 0,
        record: str | None = "auto",
    ) -> None:
        self._policies = check_policies(
            modes=modes, grad=grad, state=state, stochastic=stochastic, batch=batch, rng=rng,
            data=data, sync=sync,
        )  # fmt: skip
        check_policy("audit", audit, Audit)
        check_allow(allow)
        if metrics is not None and metrics != "auto" and not isinstance(metrics, ConfusionMetrics):
            raise ValueError(f"metrics={metrics!r}: expected 'auto', a ConfusionMetrics or None")
        self._metrics = metrics
        self._report = Report()
        SyncCheck(sync_steps)  # refuses what is not two numbers
        if train_score < 0:
            raise ValueError(f"train_score={train_score}: expected a number of batches, 0 for none")
        self._train_score = train_score
        self._sync_steps = sync_steps
        self._audit = audit
        self._allow = allow
        self._expected: list[tuple[str, bool]] = []
        self._runs: list[_Run] = []
        self._train_scores: dict[Trainer, _TrainScore] = {}
        self._records = Records(record, self._report)

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
        sync = SyncCheck(self._sync_steps, lambda: allowed("sync"))
        data = DataCheck(_lightning.Books(trainer), self._explained)
        checks: list[Check] = [
            ModesCheck(self._expected),
            GradCheck(),
            StateCheck(
                lambda: trainer.optimizers,
                lambda: [config.scheduler for config in trainer.lr_scheduler_configs],
                lambda: _accumulates(trainer),
            ),
            StochasticCheck(),
            BatchCheck(lambda: _batch_size(trainer)),
            RngCheck(restore=self._policies["rng"] == "fix"),
            data,
            sync,
        ]
        ranks = ranks_of(self._report, trainer.global_rank, trainer.world_size)
        scores = None
        if self._metrics is not None:
            config = self._metrics if isinstance(self._metrics, ConfusionMetrics) else None
            scores = _Scores(trainer, pl_module, Recorder(config, ranks), self._report, data.reason)
        if self._train_score and trainer.state.fn == "fit":
            self._train_scores[trainer] = _TrainScore(
                trainer, pl_module, self._train_score, self._metrics, self._report
            )
        guard = Guard(
            [(c, self._policies[c.name]) for c in checks if self._policies[c.name] != "ignore"],
            self._allow,
            self._report,
            Replays(
                self._audit,
                beside=lambda: [*trainer.optimizers, *trainer.lr_scheduler_configs],
                isolate=lambda: _out_of_the_books(trainer, scores),
                why_not=lambda: _why_not(trainer),
            ),
            ranks,
        )
        record = self._records.open(trainer)
        ended = partial(self._end, trainer)
        self._runs.append(_Run(trainer, pl_module, guard, scores, ended, sync, record))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._count(trainer, "val")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._count(trainer, "test")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log(trainer, "on_validation_epoch_end")
        if trainer in self._train_scores and not trainer.sanity_checking:
            self._train_scores[trainer].after("on_validation_epoch_end")

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

    def _explained(self) -> set[str | None]:
        """Keys of the module's own that differ from the matrix's: told already."""
        return {f.subject for f in self._report.findings if f.check == "metrics"}

    def _count(self, trainer: Trainer, stage: str) -> None:
        run = self._run_of(trainer)
        if run is not None and run.scores is not None and not trainer.sanity_checking:
            run.scores.start(stage, _lightning.dataloaders(trainer))

    def _log(self, trainer: Trainer, hook: str) -> None:
        run = self._run_of(trainer)
        if run is not None:
            run.guard.steps_over()
        if run is not None and run.scores is not None:
            run.scores.log_after(hook)

    def _at(self, trainer: Trainer, batch_idx: int, dataloader_idx: int) -> None:
        run = self._run_of(trainer)
        if run is not None:
            run.now.batch, run.now.dataloader = batch_idx, dataloader_idx

    def _end(self, trainer: Trainer, error: BaseException | None = None) -> None:
        run = self._run_of(trainer)
        if (score := self._train_scores.pop(trainer, None)) is not None:
            score.stop()
        if run is not None:
            self._runs.remove(run)
            run.close(error)


class _Run:
    """One fit, validate, test or predict of one trainer under guard.

    No callback hook is the last before the user's step or the first after it: the step is
    guarded through the strategy's methods, the evaluation through its loop's `run`, both wrapped
    on the instance. User signatures, overrides, compilation and pickling stay as they are.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        guard: Guard,
        scores: _Scores | None,
        ended: Callable[[BaseException], None],
        sync: SyncCheck,
        record: Record,
    ) -> None:
        self.trainer = trainer
        self.record = record
        self.sync = sync
        self.scores = scores
        self.guard = guard
        self.ended = ended
        self.ranks = guard.ranks
        self._kinds: set[str] = set()
        if trainer.state.fn == "fit":
            self.ranks.expect("train")
        self.now = Moment("fit", rank=trainer.global_rank)
        guard.open(module, self.now)
        guard.report.checked["modules"] = max(
            guard.report.checked["modules"], sum(1 for _ in module.modules())
        )
        self._wraps: list[Wrap] = []
        self._wrap("_run_stage", self._until_error)
        self._wrap("strategy.training_step", self._train_step)
        for step in _STEPS:
            self._wrap(f"strategy.{step}_step", self._step)
        self._wrap("strategy.batch_to_device", self._move)
        for loop in _LOOPS:
            self._wrap(f"{loop}.run", self._evaluate)

    def _wrap(self, path: str, around: Callable[..., Any]) -> None:
        """Put `around` in front of one of the trainer's methods, where this Lightning has it."""
        owner = _lightning.owner(self.trainer, path)
        if owner is None:
            self.guard.report.note(f"this Lightning has no `trainer.{path}`: it was not guarded")
        else:
            self._wraps.append(Wrap(owner, path.rpartition(".")[2], around))

    def close(self, error: BaseException | None) -> None:
        if self.scores is not None:
            self.scores.abort()
        for wrap in self._wraps:
            wrap.remove()
        self._where("fit")
        if error is not None:
            self.ranks.leave()
        try:
            self.guard.close(self.now, error)
            self.ranks.expect("close")
            self.ranks.meet("close")
        except BaseException as found:
            error = found
            raise
        finally:
            try:
                self.sync.write(self.guard.report)
            except Exception as fault:  # noqa: BLE001 - our own bug must not stop a training run
                broke(self.guard.report, "the list of syncs", "", fault)
            self.record.close(error)

    def _until_error(self, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Put everything back as an exception leaves the stage: others may fail to be told of it.

        Lightning calls `on_exception` of one callback after the other, and of none after one that
        raises.
        """
        try:
            return run(*args, **kwargs)
        except BaseException as error:
            self.ended(error)
            raise

    def _where(self, stage: str) -> None:
        now, trainer = self.now, self.trainer
        now.stage, now.epoch, now.step = stage, trainer.current_epoch, trainer.global_step
        now.fitting = trainer.state.fn == "fit"

    def _evaluate(self, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        outer = self.now
        self.now = Moment("validate", rank=outer.rank)
        self._where(_stage(self.trainer))
        self.record.begin(self.now.stage)
        self.ranks.expect(*self._points())
        try:
            self.guard.start(self.now)
            try:
                with self._hooks_followed():
                    outputs = run(*args, **kwargs)
            except BaseException as error:
                self.ranks.leave()
                if self.scores is not None:
                    self.scores.abort()
                self.guard.stop(self.now, error)
                raise
            self.now.batch = -1
            self.guard.stop(self.now)
            seen = self.ranks.meet("end", self.record.seen())
            results = self.scores.results if self.scores is not None else {}
            self.record.end(self.now.stage, outputs, results, seen)
            if self.now.fitting:
                self.ranks.expect("train")
            if self.scores is not None and not self.now.fitting:
                self.scores.show(self.now.stage)
            return outputs
        finally:
            self.now = outer

    @contextmanager
    def _hooks_followed(self) -> Iterator[None]:
        """The profiler brackets every hook and fetch by name: follow them line by line."""
        if not self.guard.follows:
            yield
            return
        following = ExitStack()
        inside: list[str] = []

        def start(start: Callable[[str], None], action: str) -> None:
            start(action)
            if not (inside or action.startswith("[Strategy]") or self._is_late(action)):
                inside.append(action)
                following.enter_context(self.guard.following())

        def stop(stop: Callable[[str], None], action: str) -> None:
            if inside == [action]:
                inside.clear()
                following.close()
            stop(action)

        profiler = self.trainer.profiler  # type: ignore[attr-defined]
        wraps = Wrap(profiler, "start", start), Wrap(profiler, "stop", stop)
        try:
            yield
        finally:
            following.close()
            for wrap in wraps:
                wrap.remove()

    def _is_late(self, action: str) -> bool:
        return self.now.batch > 1 and ("_batch_" in action or action.endswith("_next"))

    def _points(self) -> list[str]:
        """Where the ranks meet in the evaluation that begins; equal on all of them."""
        stage = self.now.stage
        kind = "validate" if stage == "sanity_check" else stage
        points = ["audit"] if kind not in self._kinds else []
        self._kinds.add(kind)
        if self.scores is not None and stage in ("validate", "test"):
            points.append("matrix")
        return [*points, "end"]

    def _step(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if replaying():  # by a second guard: this one saw the step already
            return step(*args, **kwargs)
        if self.scores is not None and args:
            self.scores.before_step(args[0], self.now.dataloader)
        if args:
            self.record.see(self.now.stage, self.now.dataloader, args[0], self._loaders)
        outputs = self.guard.step(self.now, step, *args, **kwargs)
        self.ranks.meet("audit")
        if self.scores is not None and args:
            self.scores.after_step(outputs, args[0], self.now.dataloader)
        return outputs

    def _loaders(self) -> Any:
        return _lightning.dataloaders(self.trainer)

    def _move(self, move: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.now.stage == "fit":
            return move(*args, **kwargs)
        return self.guard.move(self.now, move, *args, **kwargs)

    def _train_step(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._where("fit")
        outputs = self.guard.train_step(self.now, step, *args, **kwargs)
        self.ranks.trained()
        return outputs


class _TrainScore:
    """The training score of one fit, taken when the module's own hook has logged its scores."""

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        batches: int,
        metrics: Literal["auto"] | ConfusionMetrics | None,
        report: Report,
    ) -> None:
        self._trainer, self._module, self._report = trainer, module, report
        self._wrap: Wrap | None = None
        self._score: TrainingScore | None = None
        if trainer.world_size > 1:
            report.note("train_eval: no training score, because several processes train together")
            return
        config = metrics if isinstance(metrics, ConfusionMetrics) else None
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
                told = _lightning.Books(self._trainer).evaluated()
                held = dict(self._trainer.callback_metrics)
                self._score.evaluate(told.training, told.loaders, held)
            except Exception as error:  # noqa: BLE001 - our own bug must not stop a training run
                broke(self._report, "the training score", "the rest of the run", error)
                self._score = None
        return outputs

    def _log(self, key: str, value: float) -> None:
        self._module.log(key, value, on_step=False, on_epoch=True, add_dataloader_idx=False)


class _Scores:
    """The confusion matrix of one run, counted in the steps and logged when an epoch ends."""

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        recorder: Recorder,
        report: Report,
        reason: Callable[[str], str],
    ) -> None:
        self._reason = reason
        self._trainer, self._module = trainer, module
        self._recorder, self._report = recorder, report
        self._ours: set[str] = set()
        self._theirs: set[str] = set()
        self._told: set[str] = set()
        self._counting = False
        self._wrap: Wrap | None = None
        self.results: dict[str, ConfusionResult] = {}  # of the last evaluation

    def start(self, stage: str, dataloaders: Any) -> None:
        trainer = self._trainer
        self.results = {}
        self._counting = self._safely(
            lambda: self._recorder.start(
                stage, self._module, dataloaders, getattr(trainer, "datamodule", None)
            )
        )

    def before_step(self, batch: Any, dataloader_idx: int) -> None:
        if self._counting:
            self._counting = self._safely(lambda: self._recorder.before_step(batch, dataloader_idx))

    def after_step(self, outputs: Any, batch: Any, dataloader_idx: int) -> None:
        if self._counting:
            self._counting = self._safely(
                lambda: self._recorder.after_step(outputs, batch, dataloader_idx)
            )

    def log_after(self, hook: str) -> None:
        """Log once the module's own `hook`, which Lightning calls next, has logged its keys."""
        if self._counting:
            self._counting = False
            self._wrap = Wrap(self._module, hook, self._log)
        else:
            self._recorder.ranks.skip("matrix")

    def show(self, stage: str) -> None:
        """Print the table of a `validate` or `test` on its own, where Lightning prints its own."""
        if not (self._trainer.is_global_zero and _lightning.verbose(self._trainer, stage)):
            return
        key = {"validate": "val"}.get(stage, stage)
        for name, result in self._report.confusion.items():
            if name.split("/")[0] == key:
                print(f"{name}: {result}")  # noqa: T201 - beside the table that Lightning prints

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
        recorded = self._recorder.stop(trainer.current_epoch, trainer.global_step)
        for sentence in recorded.notes:
            self._report.note(sentence)
        self._report.confusion.update(recorded.results)
        self.results = recorded.results
        logged = set(trainer.callback_metrics)
        self._theirs |= logged - self._ours
        differing = []
        for key, result in recorded.results.items():
            stage, _, loader = key.partition("/")
            for score, value in result.scores.items():
                name = f"{stage}/{score}{f'/{loader}' if loader else ''}"
                if name not in self._theirs:
                    self._log_scalar(name, value)
                    continue
                theirs = float(trainer.callback_metrics[name])
                difference = result.explained(score, theirs, self._reason(name))
                if difference.rounds:
                    if (key := f"rounds {name}") not in self._told:
                        self._told.add(key)
                        self._report.note(f"`{name}` {difference.fact}")
                elif difference.fact:
                    differing.append(_differs(name, difference, result))
        self._report.add(differing)
        if not trainer.is_global_zero:
            return
        for finding in differing:
            if finding.subject not in self._told:
                self._told.add(str(finding.subject))
                warn(finding)
        for sentence in recorded.warnings:
            warn_text(sentence)
        for key, result in recorded.results.items():
            for failure in write(trainer.loggers, key, result, _lightning.logged_step(trainer)):
                if failure not in self._told:
                    self._told.add(failure)
                    warn_text(failure)

    def _log_scalar(self, key: str, value: float) -> None:
        if self._trainer.barebones:
            return
        # Equal on every rank already: no `sync_dist`, which would be one collective a key.
        _lightning.advised_sync_dist(self._trainer, key)
        _lightning.log(self._module, key, value)
        self._ours.add(key)

    def _safely(self, act: Callable[[], None]) -> bool:
        """Whether `act` worked; a bug of ours costs one warning and the matrix, never the run."""
        try:
            act()
        except EvalGuardError:
            raise  # what all ranks raise
        except Exception as error:  # our own bug must not stop a training run
            if self._recorder.explicit and isinstance(error, ValueError):
                raise  # the user's arguments do not fit what the step gives
            broke(self._report, "the confusion matrix", "its evaluation", error)
            return False
        return True


@contextmanager
def _out_of_the_books(trainer: Trainer, scores: _Scores | None) -> Iterator[None]:
    """A replay is neither logged nor counted."""
    with (
        _lightning.out_of_the_books(trainer),
        scores.paused() if scores is not None else nullcontext(),
    ):
        yield


def _batch_size(trainer: Trainer) -> int | None:
    """The most samples that a loader of the running evaluation puts in a batch, where it says."""
    sizes = []
    for loader in _flat(_lightning.dataloaders(trainer)):
        size = getattr(loader, "batch_size", None)
        if size is None:
            return None
        sizes.append(size)
    return max(sizes, default=None)


def _flat(loaders: Any) -> Iterator[Any]:
    if isinstance(loaders, (list, tuple, dict)):
        for loader in loaders.values() if isinstance(loaders, dict) else loaders:
            yield from _flat(loader)
    else:
        yield loaders


def _accumulates(trainer: Trainer) -> bool:
    """Whether gradients that stand between two steps are still needed."""
    return (
        trainer.accumulate_grad_batches > 1 or not trainer.lightning_module.automatic_optimization
    )


def _why_not(trainer: Trainer) -> str | None:
    """Why steps of `trainer` must not be run again."""
    # A replay on one rank alone would wait for the others in the step's first collective.
    if trainer.world_size > 1:
        return "several processes evaluate together"
    return _lightning.why_not_again(trainer)


def _differs(key: str, difference: Difference, result: ConfusionResult) -> Finding:
    """The module logs `key` itself, with another value than the matrix gives."""
    return Finding(
        check="metrics",
        stage="test" if key.startswith("test") else "validate",
        fact=difference.fact,
        remedy=difference.remedy,
        subject=key,
        leads="subject",
        epoch=result.epoch,
        step=result.step,
        certain=False,
    )


def _stage(trainer: Trainer) -> str:
    if trainer.sanity_checking:
        return "sanity_check"
    if trainer.testing:
        return "test"
    return "predict" if trainer.predicting else "validate"
