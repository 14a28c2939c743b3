"""Evaluations that the user's own code runs inside a fit: a loop in a hook, a sampling callback."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_evalguard.allow import allowed
from lightning_evalguard.checks.check import Moment
from lightning_evalguard.checks.modes.callers import LOOPS, calls
from lightning_evalguard.checks.modes.callers import ModeCall as ModeCall
from lightning_evalguard.checks.scores.check import ScoresCheck
from lightning_evalguard.data.loaders import Fact
from lightning_evalguard.guard import Guard
from lightning_evalguard.instruments.patch import Wrap
from lightning_evalguard.instruments.replay import replaying
from lightning_evalguard.instruments.source import owner_of, site_of
from lightning_evalguard.plain import rules
from lightning_evalguard.plain.frames import functions_around, is_discarded, user_frame
from lightning_evalguard.plain.models import Models
from lightning_evalguard.plain.tensors import follow
from lightning_evalguard.plain.watched import Watched, make_held
from lightning_evalguard.plain.window import ModelCall, Window
from lightning_evalguard.report import EvalGuardError, EvalGuardWarning, Finding, broke
from lightning_evalguard.trainer.hand_scores import HandScores

_CHECKED = ("state", "stochastic")  # around each call
_JUDGED = 2  # calls over a loader in train mode, from which on it is no accident


@dataclass
class _Opened:
    """A window that is open: what runs in it, until training goes on.

    Attributes:
        window: Its calls.
        receiver: ``id()`` of the module that was put in eval mode; None where a loop opened it.
        evaluates: Whether the loader gives other samples than training gets.
        certain: Whether it gives those on which the Trainer validates.
        checked: Whether its calls are checked one by one.
        loops: Whether a loop over a loader runs in it, which says what is evaluated.
        in_step: Whether that loop runs inside a training step.
        backward: Whether gradients were computed in it.
        patches: What is replaced while it is open.
    """

    window: Window
    receiver: int | None
    evaluates: bool
    certain: bool
    checked: bool
    loops: bool = False
    in_step: bool = False
    backward: bool = False
    patches: list[Wrap] = field(default_factory=list)


class ByHand:
    """Opens a window where user code puts a module in eval mode, or reads a loader, inside a fit.

    While none is open nothing is listened to but `train()`, `eval()` and the start of a loader.

    Args:
        root: The module that is fitted.
        guard: Reports what is found.
        optimizers: Gives the optimizers of the run.
        trained_on: Gives the datasets of training.
        validated_on: Gives those of validation.
        now: Gives where the run stands; a stage other than ``fit`` has a guard of its own.
        callbacks: Gives the user's, each with what the names of its attributes begin with.
        counts: Whether a confusion matrix is counted in the run.
    """

    def __init__(
        self,
        root: nn.Module,
        guard: Guard,
        optimizers: Callable[[], list[Any]],
        trained_on: Callable[[], list[Any]],
        validated_on: Callable[[], list[Any]],
        now: Callable[[], Moment],
        callbacks: Callable[[], list[tuple[str, Any]]],
        counts: bool,
    ) -> None:
        self._root, self._guard = root, guard
        self._optimizers, self._now = optimizers, now
        self._trained_on = trained_on
        self._validated_on = validated_on
        self._models = Models()
        self._thread = threading.get_ident()
        self._opened: _Opened | None = None
        self._closed: _Opened | None = None  # the last one, whose graphs may still live
        self._times: dict[Any, int] = {}
        self._inside = False
        self.in_step = False
        self._hooks = False  # whether the last step of an evaluation is over
        check = next((c for c, _ in guard.checks if isinstance(c, ScoresCheck)), None)
        self._scores = None
        if check is not None and self._now().rank == 0 and guard.ranks.world == 1:
            self._scores = HandScores(
                root,
                check,
                counts,
                callbacks,
                self._sets,
                self._tell,
                _reader,
                self._about_scores,
            )
        self._iterates = Wrap(DataLoader, "__iter__", self._read)
        calls.heard.append(self._hear)

    def close(self) -> None:
        """The fit is over."""
        self._iterates.remove()
        if self._hear in calls.heard:
            calls.heard.remove(self._hear)
        self._end()
        self._judge_graphs()
        self._judge_scores()

    def training_goes_on(self) -> None:
        """A training step, or an evaluation of the loop's, is about to begin."""
        self._judge_scores()
        if self._opened is not None:
            self._safely(self._end)
        if self._closed is not None:
            self._safely(self._judge_graphs)

    def steps_over(self) -> None:
        """The last step of an evaluation of the loop's is over, and its hooks begin."""
        self._hooks = True

    def hooks_over(self) -> None:
        """They are over, and nobody judged yet what was logged."""
        if self._hooks:
            self._hooks = False
            self._judge_scores()

    # what opens and closes a window

    def _elsewhere(self, but_in_step: bool = False) -> bool:
        """Whether what runs now is none of this: the loop's own, a replay, another thread."""
        away = threading.get_ident() != self._thread or replaying()
        opened = self._opened
        known = but_in_step or (opened is not None and opened.in_step)
        in_step = self.in_step and not known
        return away or self._inside or in_step or self._now().stage != "fit"

    def _hear(self, module: nn.Module, call: ModeCall) -> None:
        if self._elsewhere():
            return
        opened = self._opened
        if call.mode:
            if opened is not None and opened.receiver == id(module):
                self._safely(self._end)
        elif (
            opened is None
            and call.is_plan
            and call.hook is not None
            and self._is_part(module)
        ):
            self._safely(self._open, (call.code, call.lasti), id(module), True)

    def _is_part(self, module: nn.Module) -> bool:
        return any(module is part for part in self._root.modules())

    def _read(self, iterate: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        frame = None
        in_hook = self._hooks and not self._inside and not replaying()
        if in_hook or not self._elsewhere(but_in_step=True):
            frame = _reader(sys._getframe(1))
        if frame is None:
            return iterate(*args, **kwargs)
        if not in_hook:
            self._safely(self._open_loop, frame, args[0])
        iterator = iterate(*args, **kwargs)
        if self._scores is not None and not self.in_step:
            known = any(args[0].dataset is d for d in self._validated_on())
            self._about_scores(self._scores.reads, frame, args[0], iterator, known)
        return iterator

    # what is logged of it

    def _sets(self) -> Iterator[tuple[Any, str]]:
        for dataset in self._trained_on():
            yield dataset, "the size of the training set"
        for dataset in self._validated_on():
            yield dataset, "the size of the validation set"

    def _judge_scores(self) -> None:
        if self._scores is not None:
            self._about_scores(self._scores.over)

    def _tell(self, facts: Sequence[Fact]) -> None:
        self._report([_of_score(fact) for fact in facts])

    def _about_scores(self, act: Callable[..., None], *args: Any) -> None:
        """A bug of ours costs one warning and these scores, never the run."""
        inside, self._inside = self._inside, True
        try:
            act(*args)
        except (EvalGuardError, EvalGuardWarning):
            raise
        except Exception as error:  # noqa: BLE001 - see above
            scores, self._scores = self._scores, None
            if scores is not None:
                scores.leave()
            broke(
                self._guard.report,
                "scores of evaluations by hand",
                "the rest of the run",
                error,
            )
        finally:
            self._inside = inside

    def _open_loop(self, frame: FrameType, loader: DataLoader[Any]) -> None:
        evaluates = not any(loader.dataset is d for d in self._trained_on())
        certain = any(loader.dataset is d for d in self._validated_on())
        if self.in_step and not certain:
            return  # a step may train on what it reads for itself
        opened = self._opened
        if opened is None:
            self._open((frame.f_code, frame.f_lasti), None, evaluates, certain)
            assert self._opened is not None
            self._opened.loops = True
            self._opened.in_step = self.in_step
        elif opened.receiver is not None and not opened.loops:
            opened.loops = True
            opened.evaluates = evaluates
            opened.certain = certain

    def _open(
        self, place: Any, receiver: int | None, evaluates: bool, certain: bool = False
    ) -> None:
        times = self._times[place] = self._times.get(place, 0) + 1
        window = Window("by hand", place, None, True)
        checked = times & (times - 1) == 0  # the first, second, fourth, eighth, ...
        opened = self._opened = _Opened(window, receiver, evaluates, certain, checked)
        opened.patches.append(Wrap(nn.Module, "__call__", self._called))
        opened.patches.append(
            Wrap(torch.autograd, "_engine_run_backward", self._ran_backward)
        )

    def _ran_backward(self, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        for window in (self._opened, self._closed):
            if window is not None:
                window.backward = True
        if self._scores is not None:
            self._scores.trains()
        return run(*args, **kwargs)

    def _end(self) -> None:
        opened, self._opened = self._opened, None
        if opened is None:
            return
        self._judge_graphs()
        opened.patches[0].remove()  # a backward pass may still come
        for guard in opened.window.guards.values():
            guard.close(compare=False)  # weights may have been swapped back since
        self._closed = opened

    def _judge_graphs(self) -> None:
        """What the last window recorded for a backward pass that did not come."""
        opened, self._closed = self._closed, None
        if opened is None:
            return
        for patch in opened.patches:
            patch.remove()
        window = opened.window
        if opened.backward or opened.in_step:
            return
        dead = [c for c in window.first if c.graph is not None and not c.graph_lives]
        if dead and not any(c.discarded for c in dead):
            found = rules.evaluated_with_a_graph(window, dead[0])
            # no number is another one
            self._report([replace(f, certain=False) for f in found])

    # what runs in it

    def _called(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._elsewhere() or torch.compiler.is_compiling() or self._opened is None:
            return call(*args, **kwargs)
        self._inside = True
        try:
            begun = self._safely(self._begin, *args, **kwargs)
            if begun is None:
                self._inside = False  # it may call the model
                return call(*args, **kwargs)
            try:
                outputs = call(*args, **kwargs)
            except BaseException:
                self._safely(self._finish, begun, None, True)
                raise
            self._safely(self._finish, begun, outputs, False)
            return outputs
        finally:
            self._inside = False

    def _begin(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        opened = self._opened
        model = self._models.of(module)
        user = user_frame(sys._getframe(3))
        if (
            opened is None
            or user is None
            or not model.computes
            or not self._is_part(module)
        ):
            return None
        grad = torch.is_grad_enabled()
        mode = module.training
        flags = model.flags()
        key = (user.f_code, user.f_lasti, id(model), grad, mode, 0)
        meant = frozenset(c for c in ("modes", "grad") if allowed(c))
        functions = functions_around(user, owner_of)
        call = ModelCall(
            model,
            key,
            site_of(user),
            functions,
            grad,
            mode,
            flags,
            is_discarded(user),
            meant,
        )
        opened.window.add(call)
        count = opened.window.count[key]
        if count == _JUDGED and self._is_evaluated_awake(opened, call):
            found = rules.evaluated_in_train_mode(call)
            self._report(
                [replace(f, certain=f.certain and opened.certain) for f in found]
            )
        guard = self._checked(opened, call)
        if guard is not None:
            guard.begin(args if args else (*args, *kwargs.values()))
        return call, guard, module, args, kwargs

    @staticmethod
    def _is_evaluated_awake(opened: _Opened, call: ModelCall) -> bool:
        """Whether a loop reads evaluation samples without gradients, and keeps what comes out."""
        looped = opened.loops and opened.evaluates
        return looped and not (call.grad or call.discarded)

    def _finish(self, begun: Any, outputs: Any, failed: bool) -> None:
        call, guard, module, args, kwargs = begun
        if call.grad and not failed and call.graph is None:
            call.graph = follow(outputs)
        if guard is not None:
            guard.end(module, outputs, args, kwargs, failed)

    def _checked(self, opened: _Opened, call: ModelCall) -> Watched | None:
        """What a call changes and drops is looked at where the modes are right."""
        module = call.model.module()
        if module is None or not opened.checked or call.model.awake(call.flags):
            return None
        known = opened.window.guards.get(id(call.model))
        if known is None:
            policies = dict.fromkeys(
                ("grad", "batch", "rng", "state", "stochastic"), "ignore"
            )
            policies |= {c.name: p for c, p in self._guard.checks if c.name in _CHECKED}
            held = make_held(
                policies,
                None,
                not call.model.looked_at,
                call.grad,
                self._optimizers,
                self._found,
            )
            call.model.looked_at = True
            known = opened.window.guards[id(call.model)] = Watched(
                module, held, Moment("evaluate")
            )
            known.release()
        return known

    # what is found

    def _found(self, findings: Sequence[tuple[Finding, str]]) -> None:
        # a sampler's draws are meant
        self._report([f for f, _ in findings if f.certain])

    def _report(self, findings: Sequence[Finding]) -> None:
        now = self._now()
        for finding in findings:
            fact = f"{finding.fact} (evaluated by hand inside training)"
            at = replace(
                finding,
                stage="fit",
                fact=fact,
                epoch=now.epoch,
                step=now.step,
                rank=now.rank,
            )
            self._guard.report_findings(finding.check, [at])

    def _safely(self, act: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        inside, self._inside = self._inside, True
        try:
            return act(*args, **kwargs)
        except Exception as error:
            if type(error).__name__ == "EvalGuardError":
                raise
            windows = self._opened, self._closed
            self._opened = self._closed = None
            for window in windows:
                for patch in window.patches if window is not None else ():
                    patch.remove()
            self.close()
            broke(
                self._guard.report, "evaluations by hand", "the rest of the run", error
            )
            return None
        finally:
            self._inside = inside


def _of_score(fact: Fact) -> Finding:
    return Finding(
        check="scores",
        stage="fit",
        fact=fact.fact,
        remedy=fact.remedy,
        subject=fact.subject,
        subject_type=fact.subject_type,
        location=fact.location,
        certain=fact.certain,
    )


def _reader(frame: FrameType | None) -> FrameType | None:
    """The user's frame that reads a loader; None where a loop of Lightning's does."""
    while frame is not None:
        owner = owner_of(frame.f_code.co_filename)
        if owner == "user":
            return frame
        if owner in LOOPS:
            return None
        frame = frame.f_back
    return None


__all__ = ["ByHand"]
