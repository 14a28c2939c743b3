"""EvalGuardCallback, the callback: where the guard stands in the Trainer of transformers.

No event of that Trainer says that an evaluation begins, and none comes before a step: the guard
stands in `evaluation_loop`, `prediction_step` and `compute_loss` of the instance.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal

from transformers.trainer_callback import TrainerCallback

from lightning_evalguard.allow import allowed
from lightning_evalguard.audit import Mode, Replays, why_not_again
from lightning_evalguard.checks.batch.check import BatchCheck
from lightning_evalguard.checks.check import Check
from lightning_evalguard.checks.data.check import DataCheck
from lightning_evalguard.checks.data.history import History
from lightning_evalguard.checks.grad import GradCheck
from lightning_evalguard.checks.modes.check import ModesCheck
from lightning_evalguard.checks.rng import RngCheck
from lightning_evalguard.checks.selection.check import SelectionCheck
from lightning_evalguard.checks.state.check import StateCheck
from lightning_evalguard.checks.stochastic.check import StochasticCheck
from lightning_evalguard.checks.sync.check import SyncCheck
from lightning_evalguard.checks.weights.check import WeightsCheck
from lightning_evalguard.confusion.config import ConfusionMetrics
from lightning_evalguard.confusion.recorder import Recorder
from lightning_evalguard.guard import Guard
from lightning_evalguard.hints import names_keywords
from lightning_evalguard.huggingface.desk import HuggingFaceDesk
from lightning_evalguard.huggingface.host import GUARDED, Host
from lightning_evalguard.huggingface.run import HuggingFaceRun
from lightning_evalguard.instruments.variables import variable
from lightning_evalguard.keywords import check_keywords
from lightning_evalguard.policies import (
    Allow,
)
from lightning_evalguard.ranks import ranks_of
from lightning_evalguard.report import (
    FixPolicy,
    Policy,
    Report,
)


class EvalGuardCallback(TrainerCallback):  # type: ignore[misc]  # mypy does not follow transformers
    """Guards every evaluation of a `transformers.Trainer`, and brings train mode back exactly.

    Around `train`, `evaluate` and `predict`, and what builds on them (trl, sentence-transformers).
    Each submodule has after an evaluation the mode that it had before, also where an exception
    ended it. What the steps predict is counted, and the scores stand in the metrics of the
    evaluation, as ``eval_accuracy``, ``eval_f1_macro``, ..., so that every tracker shows them and
    ``metric_for_best_model`` takes them; a key of your `compute_metrics` is never overwritten.

    Args:
        modes: Policy for a module in the wrong mode: ``"error"`` stops the run, ``"warn"`` says it
            once, ``"fix"`` sets the flags right and warns, ``"ignore"`` switches the check off.
        grad: Policy for autograd left on in an evaluation, and graphs kept.
        state: Policy for weights, buffers, settings or the batch changed by an evaluation.
        stochastic: Policy for random numbers drawn by an evaluation step.
        batch: Policy for outputs that depend on the other samples of the batch.
        rng: Policy for an evaluation that moves the shared generators; ``"fix"`` puts them back.
        data: Policy for an evaluation set that is not the same each time, not counted once, or
            shared with training.
        sync: Policy for lines of yours at which the host waits for the device.
        weights: Policy for weights that were never loaded, never trained or never averaged.
        scores: Policy for keys of `compute_metrics` that are not the score that they name.
        selection: Policy for a best model, or a stop, chosen by a score the wrong way round.
        groups: Which samples belong together: the name of a column, or a callable that takes a
            sample and gives its group.
        sync_steps: Which steps of each stage are watched for syncs: the first so many, and every
            so many from there on.
        allow: Per check, glob patterns of qualified names, source files or functions whose
            findings are meant.
        metrics: ``"auto"`` counts the logits and labels of a classifier, a `ConfusionMetrics` says
            what and how, None counts nothing.
        audit: ``"auto"`` watches the first step of an evaluation as it runs, ``"full"`` runs it
            again with every effect undone, ``"off"`` does neither.

    Attributes:
        report: What was verified and found, over all runs of this guard.

    Raises:
        ValueError: On an unknown policy or check.

    Example:
        >>> guard = EvalGuardCallback(data="ignore")   # Trainer(..., callbacks=[guard])
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
        sync_steps: tuple[int, int] = (2, 50),
        allow: Allow | None = None,
        metrics: Literal["auto"] | ConfusionMetrics | None = "auto",
        audit: Mode = "auto",
    ) -> None:
        self._policies = check_keywords(locals())
        self._metrics = metrics
        self._groups = groups
        self._sync_steps = sync_steps
        self._allow, self._audit = allow, audit
        self._report = Report()
        self._history = History()
        self._expected: list[tuple[str, bool]] = []

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
        """
        self._expected += [(p, True) for p in train] + [(p, False) for p in eval]

    def attach(self, trainer: Any) -> None:
        """Guard `trainer`: for one that got this callback by `add_callback` and only evaluates.

        A Trainer that is made with ``callbacks=[guard]``, and one that trains, needs no such call.
        """
        host = vars(trainer).get(GUARDED)
        if host is not None and host.guard is not self and not host.is_removed():
            self._report.note("another EvalGuardCallback guards this Trainer already")
        elif _host_of(trainer, self) is None:
            setattr(trainer, GUARDED, Host(self, trainer, self._make))

    # the events of transformers, which do not say whose they are

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The Trainer is made."""
        self._attach_to_caller()

    def on_train_begin(
        self, args: Any, state: Any, control: Any, **kwargs: Any
    ) -> None:
        """Training begins: the model is the one that is trained."""
        host = self._attach_to_caller()
        if host is not None:
            host.begin_fit()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Training is over; `train` still has to return."""
        host = self._attach_to_caller()
        if host is not None:
            host.end_fit()

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, **kwargs: Any
    ) -> None:
        """A step of an evaluation is over: one that began before this guard knew the Trainer."""
        trainer = _calling_trainer()
        if trainer is not None and vars(trainer).get(GUARDED) is None:
            self._report.note(
                "an evaluation was not guarded, because the callback was added to a Trainer that "
                "was made already: pass `Trainer(callbacks=[guard])`, or call "
                "`guard.attach(trainer)`"
            )
            self.attach(trainer)

    def _attach_to_caller(self) -> Host | None:
        trainer = _calling_trainer()
        if trainer is None:
            return None
        self.attach(trainer)
        return _host_of(trainer, self)

    # what a run is made of

    def _checks(self, desk: HuggingFaceDesk, sync: SyncCheck) -> list[Check]:
        args = desk.trainer.args
        return [
            ModesCheck(self._expected, desk.optimizers, desk.callbacks),
            GradCheck(),
            StateCheck(
                desk.optimizers,
                desk.schedulers,
                lambda: args.gradient_accumulation_steps > 1,
            ),
            StochasticCheck(),
            BatchCheck(lambda: int(args.eval_batch_size)),
            RngCheck(restore=self._policies["rng"] == "fix"),
            DataCheck(desk, self._history, self._groups),
            sync,
            WeightsCheck(desk.optimizers, desk.callbacks, schedulers=desk.schedulers),
            _Reported(),
            SelectionCheck(desk),
        ]

    def _make(self, trainer: Any) -> HuggingFaceRun:
        desk = HuggingFaceDesk(trainer)
        sync = SyncCheck(self._sync_steps, lambda: allowed("sync"))
        sync.logs = False  # there is no LightningModule
        checks = self._checks(desk, sync)
        ranks = ranks_of(
            self._report, trainer.args.process_index, trainer.args.world_size
        )
        recorder = None
        if self._metrics is not None:
            config = None
            if isinstance(self._metrics, ConfusionMetrics):
                config = self._metrics
            recorder = Recorder(config, ranks)
        guard = Guard(
            [
                (c, self._policies[c.name])
                for c in checks
                if self._policies[c.name] != "ignore"
            ],
            self._allow,
            self._report,
            Replays(
                self._audit,
                beside=lambda: [*desk.optimizers(), *desk.schedulers()],
                isolate=recorder.paused if recorder is not None else None,
                why_not=why_not_again,
            ),
            ranks,
            host="EvalGuardCallback",
        )
        return HuggingFaceRun(desk, guard, sync, recorder)


def _calling_trainer() -> Any:
    """The Trainer that calls an event: it hands over all that it has, but not itself."""
    module = sys.modules.get("transformers.trainer")
    kind = None
    if module is not None:
        kind = vars(module).get("Trainer")
    frame = sys._getframe(1)
    while frame is not None and kind is not None:
        code = frame.f_code
        if code.co_argcount and code.co_varnames[0] == "self":
            owner = variable(frame, "self")
            if isinstance(owner, kind):
                return owner
        frame = frame.f_back  # type: ignore[assignment]
    return None


def _host_of(trainer: Any, guard: EvalGuardCallback) -> Host | None:
    host: Host | None = vars(trainer).get(GUARDED)
    if host is not None and host.guard is guard:
        return host
    return None


class _Reported(Check):
    """Stands for the policy of the `scores` check, whose findings the matrix makes."""

    name = "scores"
