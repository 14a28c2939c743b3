"""One plain script under guard: what it does, and whether that is training or an evaluation."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch import nn

from lightning_evalguard.allow import allowed
from lightning_evalguard.checks.check import Moment
from lightning_evalguard.checks.modes.callers import calls
from lightning_evalguard.evaluation import is_evaluated
from lightning_evalguard.instruments.source import site_of
from lightning_evalguard.model.tree import registrations
from lightning_evalguard.plain.chain import Chain, OfEachModel
from lightning_evalguard.plain.events import Events
from lightning_evalguard.plain.frames import is_trainers, user_frame
from lightning_evalguard.plain.judge import Judge, Together
from lightning_evalguard.plain.loops import Loops
from lightning_evalguard.plain.models import Model, Models
from lightning_evalguard.plain.names import Names
from lightning_evalguard.plain.surroundings import Surroundings
from lightning_evalguard.plain.syncs import PlainSync
from lightning_evalguard.plain.tensors import follow, tensors_of_call
from lightning_evalguard.plain.training import TrainingSteps
from lightning_evalguard.plain.uncaught import Uncaught
from lightning_evalguard.plain.window import Key, Loop
from lightning_evalguard.plain.windows import Windows
from lightning_evalguard.report import (
    EvalGuardError,
    EvalGuardWarning,
    Report,
    broke,
    hidden,
)

__tracebackhide__ = hidden


class Session:
    """One script under guard, from `start` to `stop`.

    Args:
        report: What is found and verified.
        policies: Of every check.
        allow: Patterns of what is meant.
    """

    def __init__(
        self, report: Report, policies: dict[str, str], allow: Any = None
    ) -> None:
        self.report = report
        self._events = Events(self)
        self._uncaught = Uncaught()
        self.models = Models()
        self._training = TrainingSteps()
        names = Names()
        self._loops = Loops(names, self._events.loader_of)
        self._new_step = True
        self._graded = False
        self._woken: list[Any] = []
        self._off = False
        self._sync = PlainSync(allowed=lambda: allowed("sync"))
        checks = [self._sync, OfEachModel("weights"), OfEachModel("data")]
        wanted = [(check, policies[check.name]) for check in checks]
        wanted = [(check, policy) for check, policy in wanted if policy != "ignore"]
        self._judge = Judge(wanted, allow, report, host="watch")
        self._chain = Chain(self._judge, self.models, self._training, names)
        self._now = Moment("fit")
        self._windows = Windows(
            Surroundings(
                report,
                policies,
                allow,
                self.models,
                self._training,
                names,
                self._sync,
                self._chain,
                self._judge.tell,
                self._loops.innermost,
                lambda loop: any(loop is running for running in self._loops),
                lambda: self._events.inside,
                self._events.elsewhere,
                self._safely,
            )
        )

    def start(self) -> None:
        """Guard what runs from here on."""
        self._judge.open(Together(self.models), self._now)
        registrations.start()
        calls.start(self._woken)
        self._windows.start()
        self._events.start()
        self._uncaught.start()

    def stop(self) -> None:
        """The script is over."""
        if self._off:
            return
        try:
            self._safely(self._finish)
        finally:
            self._leave()

    def _leave(self) -> None:
        self._off = True
        self._uncaught.stop()
        self._events.stop()
        self._windows.leave()
        calls.stop(self._woken)
        registrations.stop()

    def _finish(self) -> None:
        for number in self._loops.numbers():
            self._over(number, known=False)
        self._windows.finish()
        self._chain.finish()
        self._judge.close(self._now)
        self._sync.write(self.report)

    @property
    def steps(self) -> int:
        """Optimizer steps so far."""
        return self._training.steps

    @property
    def history(self) -> list[dict[str, Any]]:
        """The evaluations so far, with their scores."""
        return self._windows.history

    def is_elsewhere(self) -> bool:
        """Whether this is a process that was forked from the one that started."""
        return self._events.is_forked()

    # what the script does

    def begin(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A root module is called; see `Listener`."""
        return self._safely(self._begin, module, args, kwargs)

    def end(self, call: Any, outputs: Any, failed: bool) -> None:
        """It returned, or raised."""
        self._safely(self._finish_call, call, outputs, failed)

    def fetched(self, iterator: Any, batch: Any) -> None:
        """A loader gave a batch."""
        self._safely(self._fetched, iterator, batch)

    def exhausted(self, iterator: Any) -> None:
        """A loader has no batch left."""
        self._loops.exhausted(id(iterator))
        self._safely(self._over, id(iterator))

    def dropped(self, number: int, now: bool) -> None:
        """A loop was left early."""
        if now:
            self._safely(self._over, number)
        else:
            self._loops.left.append(number)

    def backward(self, roots: Any) -> None:
        """Gradients are computed."""
        self._graded = True
        self._safely(self._trains, list(tensors_of_call(roots)))
        if not self._training.steps:  # a script that updates its weights by hand
            self._new_step = True
            self._chain.trained_by_hand()

    def stepped(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer is about to change weights."""
        self._safely(self._stepped, optimizer)

    def optimizes(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer is made."""
        self._training.made.add(optimizer)

    def scripts(self) -> None:
        """TorchScript compiles."""
        self._windows.scripts()

    def _safely(self, act: Callable[..., Any], *args: Any) -> Any:
        """A bug of ours costs one warning and the guard, never the script."""
        if self._off:
            return None
        before = self._sync.deaf
        self._sync.deaf = True
        try:
            return act(*args)
        except (EvalGuardError, EvalGuardWarning):
            raise  # where a filter makes an error of a warning
        except Exception as error:  # noqa: BLE001 - our own bug must not stop a script
            self._leave()
            broke(
                self.report, "the guard around the script", "the rest of the run", error
            )
            return None
        finally:
            self._sync.deaf = before

    # calls

    def _begin(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        model = self.models.of(module)
        if not model.computes:
            if model.is_loss:
                self._windows.hear_score(*tensors_of_call(args))
            return None
        frame = sys._getframe(4)
        if is_trainers(frame) or is_evaluated(module):
            return None
        user = user_frame(frame)
        if user is None:
            return None
        self._left()
        self._sync.moves = False
        loop = self._loops.innermost()
        grad = torch.is_grad_enabled()
        mode = module.training
        number = 0
        if loop is not None:
            number = loop.number
        key = (user.f_code, user.f_lasti, id(model), grad, mode, number)
        trains = self._is_training(key)
        if self._new_step or self._windows.ended:
            self._windows.ended = False
            self._sync.place = user.f_code.co_name
            self._begin_step((grad and mode) or trains, loop, args, kwargs)
        flags = model.flags()
        if trains:
            return self._training_call(model, key, flags, user, loop)
        call = self._windows.known(key, flags)
        if call is None:
            call = self._windows.call_of(model, key, flags, user)
        return *self._windows.begin(call, user, args, kwargs), module, args, kwargs

    def _is_training(self, key: Key) -> bool:
        """Whether such a call is known to be a part of training; a window ends before it."""
        trains = self._windows.sides.get(key) == "train"
        window = self._windows.now
        if window is not None and trains:
            self._windows.end()
        elif window is not None and window.alone and window.count.get(key, 0):
            self._new_step = True
        return trains

    def _begin_step(
        self,
        trains: bool,
        loop: Loop | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self._new_step = False
        trains = trains or (loop is not None and loop.ever_trained)
        self._now.stage = "fit" if trains else "evaluate"
        if trains:
            self.report.checked["training_steps"] += 1
        self._judge.step(self._now, (args, kwargs))

    def _training_call(
        self,
        model: Model,
        key: Key,
        flags: tuple[bool, ...],
        user: FrameType,
        loop: Loop | None,
    ) -> None:
        if loop is not None:
            if key[3]:
                self._chain.trains_on(model, loop)
            loop.batch = None
        if key[3]:
            self._windows.trains_at((user.f_code, user.f_lasti))
            plain = model.accepted == flags and not model.evaluated
            call = None
            if not plain:
                call = self._windows.call_of(model, key, flags, user)
            self._training.calls(model, call)

    def _finish_call(self, begun: Any, outputs: Any, failed: bool) -> None:
        call, guard, module, args, kwargs = begun
        self._windows.runs = False
        if call.grad and not failed and call.graph is None:
            call.graph = follow(outputs)
        if guard is not None:
            guard.end(module, outputs, args, kwargs, failed)

    # batches

    def _left(self) -> None:
        """Loops that were left where there was no moment to look at it."""
        while self._loops.left:
            self._over(self._loops.left.pop())

    def _fetched(self, iterator: Any, batch: Any) -> None:
        self._left()
        loop = self._loops.take(id(iterator))
        if loop is not None:
            self._windows.fetched_again(loop)
        self._loops.fetched(iterator, batch, loop)
        self._new_step = self._sync.moves = True

    def _over(self, number: int, known: bool = True) -> None:
        """A loop ended: there is no batch left, or it was left."""
        loop = self._loops.take(number)
        if loop is None:
            return
        decided = self._windows.loop_over(loop, known)
        loop.batch = None
        self._chain.loop_over(loop)
        if decided:
            self._judge.leave(self._now)
            self._new_step = True

    # training

    def _trains(self, roots: list[Any] | None) -> None:
        """Gradients are computed, or weights are about to change."""
        self._loops.trained()
        self._windows.trains(roots)

    def _stepped(self, optimizer: torch.optim.Optimizer) -> None:
        self._training.optimizers.add(optimizer)
        if self._within_evaluation():
            return  # what it changes is found when that is over
        self._graded = False
        self._trains(None)
        self._new_step = True
        self._windows.tell(self._training.step(optimizer))
        loops = self._loops
        self._chain.stepped(optimizer, loops.innermost(), len(loops.numbers()) == 1)

    def _within_evaluation(self) -> bool:
        """Whether an optimizer is stepped in an evaluation's loop, without a backward pass."""
        window = self._windows.now
        if (
            window is None
            or self._graded
            or not any(window.loop is x for x in self._loops)
        ):
            return False
        if window.has_graphs() or not window.guards:
            return False
        user = user_frame(sys._getframe(4))
        if user is None:
            return True
        site = site_of(user)
        for guard in window.guards.values():
            guard.stepped_at(site)
        return True


__all__ = ["Session"]
