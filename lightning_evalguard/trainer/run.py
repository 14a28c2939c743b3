"""One run of one trainer under guard: where the guard stands between Lightning and the user."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from lightning_evalguard.checks.check import Moment
from lightning_evalguard.checks.sync.check import SyncCheck
from lightning_evalguard.data.loaders import flat
from lightning_evalguard.guard import Guard
from lightning_evalguard.instruments.dispatch import compiles
from lightning_evalguard.instruments.patch import Inlay, Layer, Wrap
from lightning_evalguard.instruments.replay import replaying
from lightning_evalguard.instruments.tracebacks import trim
from lightning_evalguard.record.run import RecordedRun as Record
from lightning_evalguard.report import broke, hidden
from lightning_evalguard.stages import SANITY_CHECK, spelling
from lightning_evalguard.trainer import lightning as _lightning
from lightning_evalguard.trainer.by_hand import ByHand
from lightning_evalguard.trainer.hooks import FollowedHooks
from lightning_evalguard.trainer.lightning import LightningModule, Trainer
from lightning_evalguard.trainer.scores import Scores
from lightning_evalguard.trainer.verdict import Verdict

__tracebackhide__ = hidden
_STEPS = ("validation", "test", "predict")
_LOOPS = ("fit_loop.epoch_loop.val_loop", "validate_loop", "test_loop", "predict_loop")


class Run:
    """One fit, validate, test or predict of one trainer under guard.

    No callback hook is the last before the user's step or the first after it: the step is
    guarded through the strategy's methods, the evaluation through its loop's `run`, both wrapped
    on the instance. User signatures, overrides, compilation and pickling stay as they are.
    """

    def __init__(
        self,
        trainer: Trainer,
        guard: Guard,
        scores: Scores | None,
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
        self._fitting = trainer.state.fn == "fit"
        self.now = Moment("fit", rank=trainer.global_rank, fitting=self._fitting)
        self._verdict = Verdict(guard.report)
        self._hooks: FollowedHooks | None = None
        self._wraps: list[Layer] = []
        self._by_hand: ByHand | None = None

    def open(self, module: LightningModule) -> None:
        """Guard `module` from here on; what is found already may raise, then `close` it."""
        trainer, guard = self.trainer, self.guard
        guard.batches = partial(_lightning.batches_of, trainer)
        guard.open(module, self.now)
        guard.report.checked["modules"] = max(
            guard.report.checked["modules"], sum(1 for _ in module.modules())
        )
        if trainer.state.fn == "fit" and not compiles(module):
            self._by_hand = ByHand(
                module,
                guard,
                lambda: trainer.optimizers,
                lambda: _lightning.sets_of(trainer.train_dataloader),
                lambda: _lightning.sets_of(trainer.val_dataloaders),
                lambda: self.now,
                partial(_lightning.own_callbacks, trainer),
                self.scores is not None,
            )
        self._wrap("_run_stage", self._until_error)
        self._wrap("strategy.training_step", self._train_step)
        for step in _STEPS:
            self._inlay(f"strategy.{step}_step", self._guarded)
        self._inlay("strategy.batch_to_device", self._moved)
        for loop in _LOOPS:
            self._wrap(f"{loop}.run", self._evaluate)
            self._wrap(f"{loop}.on_run_end", self._last_hooks)
        for loop in _LOOPS[:-1]:  # a prediction logs nothing
            self._wrap(f"{loop}._on_evaluation_epoch_end", self._steps_over)

    def _wrap(self, path: str, around: Callable[..., Any]) -> None:
        """Put `around` in front of one of the trainer's methods, where this Lightning has it."""
        owner = self._owner(path)
        if owner is not None:
            self._wraps.append(Wrap(owner, path.rpartition(".")[2], around))

    def _inlay(self, path: str, make: Callable[..., Any]) -> None:
        """`_wrap` for a method that every batch calls, see `Inlay`."""
        owner = self._owner(path)
        if owner is not None:
            self._wraps.append(Inlay(owner, path.rpartition(".")[2], make))

    def _owner(self, path: str) -> Any:
        owner = _lightning.owner(self.trainer, path)
        if owner is None:
            self.guard.report.note(
                f"this Lightning has no `trainer.{path}`: it was not guarded"
            )
        return owner

    def close(self, error: BaseException | None) -> None:
        if self.scores is not None:
            self.scores.abort()
        if self._by_hand is not None:
            self._by_hand.close()
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
            if error is None:
                self._verdict.say(self.trainer.global_rank, self.trainer.world_size)

    def _until_error(self, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Put everything back as an exception leaves the stage: others may fail to be told of it.

        Lightning calls `on_exception` of one callback after the other, and of none after one that
        raises.
        """
        try:
            return run(*args, **kwargs)
        except BaseException as error:
            self.ended(error)
            trim(error)
            raise

    def _where(self, stage: str) -> None:
        now, trainer = self.now, self.trainer
        now.stage, now.epoch, now.step = (
            stage,
            trainer.current_epoch,
            trainer.global_step,
        )
        now.fitting = self._fitting

    def _evaluate(self, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        outer = self.now
        if self._by_hand is not None:
            self._by_hand.training_goes_on()
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
            if self._by_hand is not None:
                self._by_hand.hooks_over()
            self.guard.stop(self.now)
            results = self.scores.results if self.scores is not None else {}
            seen = self._met(self.record.seen(results), self.guard.say(self.now))
            self.record.end(self.now.stage, outputs, results, seen)
            if self.now.fitting:
                self.ranks.expect("train")
            if self.scores is not None and not self.now.fitting:
                self.scores.show(self.now.stage)
            return outputs
        finally:
            self.now, self._hooks = outer, None

    def _steps_over(self, end: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Before any callback's hook: some empty there what they kept."""
        if self._hooks is not None:
            self._hooks.resume()
        self.guard.steps_over(self.now)
        if self._by_hand is not None:
            self._by_hand.steps_over()
        return end(*args, **kwargs)

    def _met(self, seen: Any, said: Any) -> dict[int, Any] | None:
        """Meet the other ranks at the end of an evaluation: what each saw of its samples."""
        content = None if seen is None and said is None else (seen, said)
        everyone = self.ranks.meet("end", content)
        if everyone is None:
            return None
        pairs = {rank: pair for rank, pair in everyone.items() if pair is not None}
        if self.ranks.world > 1:
            self.guard.hear(self.now, {rank: said for rank, (_, said) in pairs.items()})
        return {rank: seen for rank, (seen, _) in pairs.items()}

    def _hooks_followed(self) -> AbstractContextManager[Any]:
        """Follow the hooks of the first evaluation of a stage."""
        self._hooks = None
        if not self.guard.follows:
            return nullcontext()
        profiler = self.trainer.profiler  # type: ignore[attr-defined]
        self._hooks = FollowedHooks(
            profiler, self.guard.following, lambda: self.now.batch > 1
        )
        return self._hooks

    def at(self, batch: int, dataloader: int) -> None:
        """A batch of an evaluation begins."""
        self.now.batch = batch
        self.now.dataloader = dataloader
        if self._hooks is not None and batch < 2:
            self._hooks.resume()

    def _last_hooks(self, end: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run what comes after the last step, while grad mode is still the evaluation's own."""
        if self.now.stage != "fit":
            if self._hooks is not None:
                self._hooks.resume()
            self.guard.last_look(self.now)
        outputs = end(*args, **kwargs)
        if self.now.stage != "fit":
            self.guard.ends(self.now)
        return outputs

    def _points(self) -> list[str]:
        """Where the ranks meet in the evaluation that begins; equal on all of them."""
        stage = self.now.stage
        kind = spelling(stage).kind
        points = ["audit"] if kind not in self._kinds else []
        self._kinds.add(kind)
        if self.scores is not None and stage in ("validate", "test"):
            points.append("matrix")
        return [*points, "end"]

    def _guarded(self, step: Callable[..., Any], layer: Layer) -> Callable[..., Any]:
        """A step of an evaluation, under guard."""

        def guarded(*args: Any, **kwargs: Any) -> Any:
            # replayed by a second guard: this one saw the step already
            if not layer.active or replaying():
                return step(*args, **kwargs)
            now = self.now
            scores = self.scores if args else None
            if self._hooks is not None and now.batch > 1:
                self._hooks.rest()
            if scores is not None:
                scores.before_step(args[0], now.dataloader)
            if args and self.record.sees:
                self.record.see(now.stage, now.dataloader, args[0], self._loaders)
            outputs = self.guard.step(now, step, *args, **kwargs)
            if self.ranks.world > 1:
                self.ranks.meet("audit")
            if scores is not None:
                scores.after_step(outputs, args[0], now.dataloader)
            return outputs

        return guarded

    def _loaders(self) -> Any:
        return _lightning.dataloaders(self.trainer)

    def _moved(self, move: Callable[..., Any], layer: Layer) -> Callable[..., Any]:
        """The way of a batch to the device, under guard in an evaluation."""

        def moved(*args: Any, **kwargs: Any) -> Any:
            if not layer.active or self.now.stage == "fit":
                return move(*args, **kwargs)
            return self.guard.move(self.now, move, *args, **kwargs)

        return moved

    def _train_step(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._where("fit")
        hand = self._by_hand
        if hand is None:
            outputs = self.guard.train_step(self.now, step, *args, **kwargs)
        else:
            hand.training_goes_on()
            hand.in_step = True
            try:
                outputs = self.guard.train_step(self.now, step, *args, **kwargs)
            finally:
                hand.in_step = False
        self.ranks.trained()
        return outputs


def _stage(trainer: Trainer) -> str:
    if trainer.sanity_checking:
        return SANITY_CHECK
    if trainer.testing:
        return "test"
    if trainer.predicting:
        return "predict"
    return "validate"


@contextmanager
def replay_apart(
    trainer: Trainer, scores: Scores | None, spare: _lightning.SpareBooks
) -> Iterator[None]:
    """A replay is neither logged nor counted."""
    with (
        _lightning.out_of_the_books(trainer, spare),
        scores.paused() if scores is not None else nullcontext(),
    ):
        yield


def batch_size(trainer: Trainer) -> int | None:
    """The most samples that a loader of the running evaluation puts in a batch, where it says."""
    sizes = []
    for loader in flat(_lightning.dataloaders(trainer)):
        size = getattr(loader, "batch_size", None)
        if size is None:
            return None
        sizes.append(size)
    return max(sizes, default=None)


def loader_at(trainer: Trainer, index: int) -> Any:
    """The loader of that number in the running evaluation; None where there is none."""
    loaders = list(flat(_lightning.dataloaders(trainer)))
    if index < len(loaders):
        return loaders[index]
    return None


def accumulates(trainer: Trainer) -> bool:
    """Whether gradients that stand between two steps are still needed."""
    return (
        trainer.accumulate_grad_batches > 1
        or not trainer.lightning_module.automatic_optimization
    )


def why_not(trainer: Trainer) -> str | None:
    """Why steps of `trainer` must not be run again."""
    # A replay on one rank alone would wait for the others in the step's first collective.
    if trainer.world_size > 1:
        return "several processes evaluate together"
    return _lightning.why_not_logged_again(trainer)
