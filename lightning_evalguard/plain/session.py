"""Finds the evaluations of a plain script, and has them checked."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any

import torch
from torch import nn

from lightning_evalguard.allow import allowed
from lightning_evalguard.checks.check import Moment
from lightning_evalguard.checks.modes.callers import calls
from lightning_evalguard.evaluation import is_evaluated
from lightning_evalguard.instruments.dispatch import compiles
from lightning_evalguard.instruments.source import owner_of, site_of
from lightning_evalguard.model.tree import registrations
from lightning_evalguard.plain import rules
from lightning_evalguard.plain.comparisons import ComparisonTap, hear_sklearn
from lightning_evalguard.plain.events import Events
from lightning_evalguard.plain.frames import functions_around, is_discarded, is_trainers, user_frame
from lightning_evalguard.plain.judge import Judge, Together
from lightning_evalguard.plain.matrix import Scores
from lightning_evalguard.plain.measures import MeasureTap
from lightning_evalguard.plain.models import Model, Models
from lightning_evalguard.plain.names import Names
from lightning_evalguard.plain.syncs import PlainSync
from lightning_evalguard.plain.training import Training
from lightning_evalguard.plain.window import (
    Call,
    Key,
    Loop,
    Watched,
    Window,
    follow,
    make_held,
    memory_of,
    size_of,
)
from lightning_evalguard.report import EvalGuardError, Finding, Report, broke


class Session:
    """One script under guard, from `start` to `stop`.

    Args:
        report: What is found and verified.
        policies: Of every check.
        allow: Patterns of what is meant.
    """

    def __init__(self, report: Report, policies: dict[str, str], allow: Any = None) -> None:
        self.report = report
        self._policies = policies
        self._allow = allow
        self._events = Events(self)
        self.models = Models()
        self._sides: dict[Key, str] = {}
        self._loops: dict[int, Loop] = {}
        self._names = Names()
        self._window: Window | None = None
        self._undecided: list[Key] = []
        self._training = Training()
        self._owned: weakref.WeakKeyDictionary[Any, set[int]] = weakref.WeakKeyDictionary()
        self._ended: list[int] = []
        self._training.steps = 0
        self._new_step = True
        self._graded = False
        self._woken: list[Any] = []
        self._scores = Scores(report, self._scored, self._quietly)
        self._tap = ComparisonTap(self._compared, lambda: self._events.inside, self._memory)
        self._measures = MeasureTap(self._scored)
        self._inputs: set[int] = set()
        self._sklearn: Callable[[], None] | None = None
        self._off = False
        self._sync = PlainSync(allowed=lambda: allowed("sync"))
        syncs = [(self._sync, policies["sync"])] if policies["sync"] != "ignore" else []
        self._judge = Judge(syncs, allow, report, host="watch")
        self._now = Moment("fit")
        self.history: list[dict[str, Any]] = []

    def start(self) -> None:
        """Guard what runs from here on."""
        registrations.start()
        calls.start(self._woken)
        self._judge.open(Together(self.models), self._now)
        self._measures.start()
        self._events.start()

    def stop(self) -> None:
        """The script is over."""
        if self._off:
            return
        self._safely(self._finish)
        self._leave()

    def _leave(self) -> None:
        self._off = True
        self._events.stop()
        for guard in self._window.guards.values() if self._window is not None else ():
            guard.abandon()
        self._tap.close()
        self._measures.stop()
        self._scores.abort()
        if self._sklearn is not None:
            self._sklearn()
        calls.stop(self._woken)
        registrations.stop()

    def _finish(self) -> None:
        for number in list(self._loops):
            self._over(number, seen=False)
        if self._window is not None:
            self._end(at_exit=True)
        self._judge.close(self._now)
        self._sync.write(self.report)

    @property
    def steps(self) -> int:
        """Optimizer steps so far."""
        return self._training.steps

    def is_elsewhere(self) -> bool:
        """Whether this is a process that was forked from the one that started."""
        return self._events.is_forked()

    # what the script does

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
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
        self._safely(self._over, id(iterator))

    def dropped(self, number: int, now: bool) -> None:
        """A loop was left early."""
        if now:
            self._safely(self._over, number)
        else:
            self._ended.append(number)

    def backward(self) -> None:
        """Gradients are computed."""
        self._graded = True
        self._safely(self._trains)
        if not self._training.optimizers:  # a script that updates its weights by hand
            self._new_step = True

    def stepped(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer is about to change weights."""
        self._safely(self._stepped, optimizer)

    def scripts(self) -> None:
        """TorchScript compiles what it finds in torch: nothing of ours is there."""
        self._safely(self._scores.after)
        self._measures.close()

    def _safely(self, act: Callable[..., Any], *args: Any) -> Any:
        """A bug of ours costs one warning and the guard, never the script."""
        if self._off:
            return None
        before, self._sync.deaf = self._sync.deaf, True
        try:
            return act(*args)
        except EvalGuardError:
            raise
        except Exception as error:  # noqa: BLE001 - our own bug must not stop a script
            self._leave()
            broke(self.report, "the guard around the script", "the rest of the run", error)
            return None
        finally:
            self._sync.deaf = before

    # calls

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        model = self.models.of(module)
        if not model.computes:
            if model.is_loss:
                self._scored()
            return None
        frame = sys._getframe(4)
        if is_trainers(frame) or is_evaluated(module):
            return None
        user = user_frame(frame)
        if user is None:
            return None
        while self._ended:
            self._over(self._ended.pop())
        self._sync.moves = False
        loop = self._innermost()
        grad, mode = torch.is_grad_enabled(), module.training
        number = loop.number if loop is not None else 0
        key = (user.f_code, user.f_lasti, id(model), grad, mode, number)
        flags = model.flags()
        side = self._sides.get(key)
        window = self._window
        if window is not None and window.alone and window.count.get(key, 0) and side != "train":
            self._new_step = True
        if side == "train" and window is not None:
            self._end()
        if self._new_step:
            self._sync.place = user.f_code.co_name
            self._begin_step((grad and mode) or side == "train", loop, args, kwargs)
        if side == "train":
            return self._training_call(model, key, flags, user, grad, loop)
        return self._evaluating_call(model, key, flags, user, args, kwargs)

    def _begin_step(
        self, trains: bool, loop: Loop | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._new_step = False
        trains = trains or (loop is not None and loop.ever_trained)
        self._now.stage = "fit" if trains else "evaluate"
        if trains:
            self.report.checked["training_steps"] += 1
        self._judge.step(self._now, (args, kwargs))

    def _training_call(
        self, model: Model, key: Key, flags: tuple[bool, ...], user: FrameType, grad: bool,
        loop: Loop | None,
    ) -> None:  # fmt: skip
        if loop is not None:
            loop.batch = None
        if grad:
            plain = model.accepted == flags and not model.evaluated
            call = None if plain else self._call(model, key, flags, user)
            self._training.calls(model, call)

    def _call(self, model: Model, key: Key, flags: tuple[bool, ...], user: FrameType) -> Call:
        return Call(
            model, key, site_of(user), functions_around(user, owner_of), key[3], key[4], flags,
            is_discarded(user), frozenset(c for c in ("modes", "grad") if allowed(c)),
        )  # fmt: skip

    def _evaluating_call(
        self, model: Model, key: Key, flags: tuple[bool, ...], user: FrameType,
        args: tuple[Any, ...], kwargs: dict[str, Any],
    ) -> Any:  # fmt: skip
        call = self._call(model, key, flags, user)
        window = self._window_for(call, user)
        if window.repeats(call) and not window.confirmed:
            self._confirm(window)
        if window.alone and window.count.get(key, 0):
            self._batch_over(window)
        if window.in_batch == 0:
            loop = None if window.alone else window.loop
            batch = loop.batch if loop is not None and loop.batch is not None else args
            self._inputs = set()
            self._scores.before(batch)
        self._inputs |= memory_of((args, kwargs))
        window.samples = size_of((args, kwargs))
        window.add(call)
        if window.confirmed:
            model.evaluated = True
        elif call.grad:
            self._training.calls(model, call)
        guard = self._guard_of(window, call)
        if guard is not None:
            guard.begin(args if args else (*args, *kwargs.values()))
        return call, guard, model.module(), args, kwargs

    def _finish_call(self, begun: Any, outputs: Any, failed: bool) -> None:
        call, guard, module, args, kwargs = begun
        if call.grad and not failed and call.graph is None:
            call.graph = follow(outputs)
        if guard is not None:
            guard.end(module, outputs, args, kwargs, failed)

    def _guard_of(self, window: Window, call: Call) -> Watched | None:
        """The checks of `evaluating`, where the modes are right: else all follows from them."""
        module = call.model.module()
        if module is None or call.is_lazy or call.model.awake(call.flags):
            return None
        known = window.guards.get(id(call.model))
        if known is None:
            held = make_held(
                self._policies, self._allow, not call.model.looked_at, call.grad,
                lambda: list(self._training.optimizers), self._judge.tell,
            )  # fmt: skip
            known = window.guards[id(call.model)] = Watched(module, held, Moment("evaluate"))
            if window.confirmed:
                known.release()
        return known

    # windows

    def _window_for(self, call: Call, user: FrameType) -> Window:
        loop, window = self._innermost(), self._window
        if window is not None and (
            window.loop is not loop or (window.alone and window.where[0] is not user.f_code)
        ):
            self._end()
            window = self._window
        if window is None:
            window = self._open(call, user, loop)
        return window

    def _open(self, call: Call, user: FrameType, loop: Loop | None) -> Window:
        alone = loop is None or loop.ever_trained
        name, where = self._names.of(user, None if alone else loop)
        window = self._window = Window(name, where, loop, alone)
        window.confirmed = self._sides.get(call.key) == "evaluation" and not call.is_lazy
        module = call.model.module()
        if module is not None and not (call.is_lazy and compiles(module)):
            loader = None if loop is None or alone else loop.loader()
            self._scores.start(name, [module], user, loader)
            self._tap.open()
            self._measures.open()
        if self._sklearn is None:
            self._sklearn = hear_sklearn(self._asked)
        return window

    def _confirm(self, window: Window) -> None:
        """It is an evaluation: what is wrong with it is said now."""
        self._names.take(window)
        window.confirmed = True
        found: list[Finding] = []
        for call in window.calls.values():
            if self._sides.get(call.key) != "evaluation":
                self._sides[call.key] = "evaluation"
                found += rules.evaluated_in_train_mode(call)
            call.model.evaluated = True
            self._training.evaluates(call.model)
        self._tell(found)
        for guard in window.guards.values():
            guard.release()

    def _tell_graphs(self, window: Window) -> None:
        """Once a later batch shows whether graphs are kept."""
        if window.graph_told:
            return
        window.graph_told = True
        with_graph = [c for c in window.first if c.graph is not None]
        if with_graph:
            self._tell(rules.evaluated_with_a_graph(window, with_graph[0]))

    def _end(self, at_exit: bool = False, compare: bool = False) -> None:
        """The window is over, for what follows is none of it."""
        window = self._window
        if window is None:
            return
        if window.in_batch and window.alone:
            self._batch_over(window)
        if not window.confirmed:
            looked = window.stands_alone(self._training.steps > 0 or at_exit)
            lazy = any(c.is_lazy for c in window.calls.values())
            untrained = bool(window.batches and window.scores) and lazy and window.loop is not None
            if looked or (untrained and (at_exit or window.proves())):
                self._confirm(window)
        self._window = None
        self._new_step = True
        self._tap.close()
        self._measures.close()
        if window.confirmed:
            self._close(window, compare)
        else:
            self._scores.abort()
            for guard in window.guards.values():
                guard.close(compare=False)
            self._undecided += [k for k in window.calls if self._sides.get(k) is None]

    def _close(self, window: Window, compare: bool) -> None:
        self._tell_graphs(window)
        checked = self.report.checked
        checked["evaluations"] += 1
        checked["batches"] += max(1, window.batches)
        results = self._scores.stop(window.name)
        for number, guard in window.guards.items():
            for note in guard.close(compare).notes:
                self.report.note(note)
            for model in [c.model for c in window.calls.values() if id(c.model) == number]:
                model.looked_at = True
        living = self.models.living()
        count = max((sum(1 for _ in m.modules()) for m in living), default=0)
        checked["modules"] = max(checked["modules"], count)
        scores = {f"{name}/{k}": v for name, r in results.items() for k, v in r.scores.items()}
        self.history.append({"stage": window.name, "step": self._training.steps, "scores": scores})

    # batches

    def _innermost(self) -> Loop | None:
        return next(reversed(self._loops.values())) if self._loops else None

    def _fetched(self, iterator: Any, batch: Any) -> None:
        while self._ended:
            self._over(self._ended.pop())
        loop = self._loops.pop(id(iterator), None)
        if loop is None:
            loader = self._events.loader_of(iterator)
            refer: Any = weakref.ref(loader) if loader is not None else lambda: None
            loop = Loop(self._names.number(loader) if loader is not None else 0, refer)
        else:
            self._fetched_again(loop)
        self._loops[id(iterator)] = loop
        loop.batch, loop.size, loop.count = batch, size_of(batch), loop.count + 1
        loop.trained = False
        self._new_step = self._sync.moves = True

    def _fetched_again(self, loop: Loop) -> None:
        """What ran since the last fetch was one batch."""
        window = self._window
        if window is None or window.loop is not loop or not window.in_batch:
            return
        if not loop.trained:
            self._batch_over(window)
            if window.proves():
                self._confirm(window)
            if window.confirmed and window.batches > 2:
                self._tell_graphs(window)
        window.in_batch = 0

    def _batch_over(self, window: Window) -> None:
        self._scores.after()
        window.batches += 1
        window.in_batch = 0

    def _over(self, number: int, seen: bool = True) -> None:
        """A loop ended: there is no batch left, or it was left."""
        loop = self._loops.pop(number, None)
        if loop is None:
            return
        window = self._window
        loop.batch = None
        if window is not None and window.loop is loop:
            self._fetched_again(loop)
            if not window.confirmed and any(c.is_lazy for c in window.calls.values()):
                return  # what comes next shows whether gradients are computed after all
            self._end(compare=seen)
        self._judge.leave(self._now)
        self._new_step = True

    # training

    def _trains(self) -> None:
        """Gradients are computed, or weights are about to change."""
        for loop in self._loops.values():
            loop.trained = loop.ever_trained = True
        window = self._window
        if window is not None:
            if not window.confirmed:
                self._take_for_training(window)
            if self._window is not None:
                self._end()
        if self._undecided:
            self._sides.update(dict.fromkeys(self._undecided, "train"))
            self._undecided.clear()

    def _take_for_training(self, window: Window) -> None:
        """Training goes on: were the calls before it a part of it?"""
        if window.stands_alone(self._training.steps > 0):
            return
        dead = [c for c in window.first if c.graph is not None and not c.graph_lives]
        over = window.loop is not None and window.loop not in self._loops.values()
        if over and dead and len(dead) == len([c for c in window.first if c.graph]):
            return  # its loop is over and its graphs are gone: this backward is of another
        self._drop(window)

    def _drop(self, window: Window) -> None:
        self._sides.update(dict.fromkeys(window.calls, "train"))
        self._window = None
        self._tap.close()
        self._measures.close()
        self._scores.abort()
        for guard in window.guards.values():
            guard.close(compare=False)

    def _stepped(self, optimizer: torch.optim.Optimizer) -> None:
        self._training.optimizers.add(optimizer)
        if self._within_evaluation():
            return  # what it changes is found when that is over
        self._graded = False
        self._trains()
        self._new_step = True
        self._tell(self._training.step(optimizer))

    def _within_evaluation(self) -> bool:
        """Whether an optimizer is stepped in an evaluation's loop, without a backward pass."""
        window = self._window
        if window is None or self._graded or window.loop not in self._loops.values():
            return False
        if any(call.grad for call in window.calls.values()) or not window.guards:
            return False
        user = user_frame(sys._getframe(4))
        if user is None:
            return True
        site = site_of(user)
        for guard in window.guards.values():
            guard.stepped_at(site)
        return True

    # scores

    def _scored(self) -> None:
        if self._window is not None and self._window.in_batch:
            self._window.scores += 1

    def _quietly(self) -> AbstractContextManager[None]:
        return self._sync.quiet()

    def _compared(self, preds: Any, target: Any, text: str, place: str) -> None:
        if not self._off:
            self._safely(self._scores.compared, preds, target, text, place)

    def _asked(self, y_true: Any, y_pred: Any, score: str) -> None:
        self._scored()
        if not self._events.elsewhere():
            self._safely(self._scores.asked, y_true, y_pred, score)

    def _memory(self) -> tuple[set[int], set[int]]:
        loop = self._innermost()
        return memory_of(loop.batch) if loop is not None else set(), self._inputs

    def _tell(self, found: Iterable[Finding]) -> None:
        told = [(f, p) for f in found if (p := self._policies[f.check]) != "ignore"]
        if told:
            self._judge.tell(told)
