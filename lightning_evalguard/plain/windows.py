"""The evaluations of a plain script: which calls are one, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

from torch import Tensor

from lightning_evalguard.allow import allowed
from lightning_evalguard.checks.check import Moment
from lightning_evalguard.confusion.comparisons import ComparisonTap
from lightning_evalguard.instruments.dispatch import compiles
from lightning_evalguard.instruments.source import owner_of, site_of
from lightning_evalguard.plain import rules, scored
from lightning_evalguard.plain.asked import AskedMetrics
from lightning_evalguard.plain.comparisons import hear_sklearn
from lightning_evalguard.plain.frames import functions_around, is_discarded, path_of
from lightning_evalguard.plain.matrix import PlainScores
from lightning_evalguard.plain.measures import MeasureTap
from lightning_evalguard.plain.models import Model, are_rows
from lightning_evalguard.plain.scored import CodePlace
from lightning_evalguard.plain.surroundings import Surroundings
from lightning_evalguard.plain.tensors import memory_of, reached, size_of
from lightning_evalguard.plain.watched import Watched, make_held
from lightning_evalguard.plain.window import Key, Loop, ModelCall, Window
from lightning_evalguard.report import Finding, hidden

__tracebackhide__ = hidden


class Windows:
    """The window that is open, and the sides on which calls were found to stand.

    Args:
        around: What it asks and tells.

    Attributes:
        now: What may be an evaluation, while it is open.
        sides: ``evaluation`` or ``train``, for each call of which that is known.
        history: The evaluations so far, with their scores.
        ended: Whether a window was closed since this was last set to False.
        runs: Whether one of its calls runs: a loss that is computed then is the model's own.
    """

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self.now: Window | None = None
        self.sides: dict[Key, str] = {}
        self.history: list[dict[str, Any]] = []
        self.ended = self.runs = False
        self._undecided: list[Key] = []
        self._waiting: list[Window] = []
        self._places: set[CodePlace] = set()
        self._by_hand: dict[tuple[CodePlace, ...], tuple[int, bool]] = {}
        self._inputs: set[int] = set()
        self._sklearn: Callable[[], None] | None = None
        self._scores = PlainScores(around.report, self.hear_score, around.sync.quiet)
        self._scores.asks = AskedMetrics(self.tell, lambda: around.training.steps)
        self._tap = ComparisonTap(self._compared, around.is_inside, self._memory)
        self._measures = MeasureTap(self.hear_score)

    def start(self) -> None:
        """Listen from here on."""
        self._measures.start()

    def leave(self) -> None:
        """Leave no trace."""
        for guard in self.now.guards.values() if self.now is not None else ():
            guard.abandon()
        self._tap.close()
        self._measures.stop()
        self._scores.leave()
        if self._sklearn is not None:
            self._sklearn()

    def finish(self) -> None:
        """The script is over: no backward pass follows any more."""
        if self.now is not None:
            self.end(at_exit=True)
        self._decide(at_exit=True)

    # calls

    def begin(
        self,
        call: ModelCall,
        user: FrameType,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[ModelCall, Watched | None]:
        """A call that is no part of training, as far as it is known, begins."""
        window = self._window_for(call, user)
        again = window.count.get(call.key, 0) and not (window.confirmed or call.is_lazy)
        if again and self._is_scored(window):
            self._confirm(window, again=True)
        if window.alone and window.count.get(call.key, 0):
            self._batch_over(window)
        if window.in_batch == 0:
            loop = None
            if not window.alone:
                loop = window.loop
            batch = args
            if loop is not None and loop.batch is not None:
                batch = loop.batch
            self._inputs = set()
            self._scores.before(batch)
            if window.is_followed and loop is not None:
                self._around.chain.batch(loop.batch)
        self._inputs |= memory_of((args, kwargs))
        window.samples = size_of((args, kwargs))
        window.add(call)
        if window.confirmed:
            self._around.chain.begins(window)
        self._places.add(call.path[0])
        if window.confirmed:
            call.model.evaluated = True
        elif call.grad:
            self._around.training.calls(call.model, call)
        rows = (
            len(args) == 1
            and not kwargs
            and are_rows(args[0], call.model, window.loader_size)
        )
        guard = self._guard_of(window, call, rows)
        if guard is not None:
            guard.begin(args if args else (*args, *kwargs.values()))
        self.runs = True
        return call, guard

    def known(self, key: Key, flags: tuple[bool, ...]) -> ModelCall | None:
        """The same call in an earlier batch, where nothing more is asked of each."""
        window = self.now
        if window is None or not window.confirmed or key[3]:
            return None
        call = window.calls.get(key)
        if call is not None and call.flags == flags:
            return call
        return None

    def call_of(
        self, model: Model, key: Key, flags: tuple[bool, ...], user: FrameType
    ) -> ModelCall:
        """What is known of a call of `model`."""
        return ModelCall(
            model,
            key,
            site_of(user),
            functions_around(user, owner_of),
            key[3],
            key[4],
            flags,
            is_discarded(user),
            frozenset(c for c in ("modes", "grad") if allowed(c)),
            path_of(user),
        )

    def trains_at(self, place: CodePlace) -> None:
        """A model is called there: what it returns is no target."""
        self._places.add(place)

    def _guard_of(self, window: Window, call: ModelCall, rows: bool) -> Watched | None:
        """The checks of `evaluating`, where the modes are right: else all follows from them."""
        module = call.model.module()
        if module is None or call.is_lazy or call.model.awake(call.flags):
            return None
        known = window.guards.get(id(call.model))
        if known is None:
            around = self._around
            held = make_held(
                around.policies,
                around.allow,
                not call.model.looked_at,
                call.grad,
                lambda: list(around.training.optimizers),
                around.tell,
                call.site,
                rows,
                call.model.remember,
            )
            known = window.guards[id(call.model)] = Watched(
                module, held, Moment("evaluate")
            )
            if window.confirmed:
                known.release()
        return known

    # a window's life

    def _window_for(self, call: ModelCall, user: FrameType) -> Window:
        loop = self._around.innermost()
        window = self.now
        if window is not None and (
            window.loop is not loop
            or (window.alone and window.where[0] is not user.f_code)
        ):
            self.end()
            window = self.now
        if window is None:
            window = self._open(call, user, loop)
        return window

    def _open(self, call: ModelCall, user: FrameType, loop: Loop | None) -> Window:
        alone = loop is None or loop.ever_trained
        name, where = self._around.names.of(user, None if alone else loop)
        window = self.now = Window(name, where, loop, alone)
        window.confirmed = self.sides.get(call.key) == "evaluation" and not call.is_lazy
        module = call.model.module()
        if module is not None and not (call.is_lazy and compiles(module)):
            loader = None if loop is None or alone else loop.loader()
            self._scores.start(name, [module], user, loader)
            self._tap.open()
            self._measures.open()
        if self._sklearn is None:
            self._sklearn = hear_sklearn(self._asked)
        return window

    def _confirm(self, window: Window, again: bool = False) -> None:
        """It is an evaluation: what is wrong with it is said now.

        Args:
            window: The window.
            again: Whether a call that it has begins once more.
        """
        self._around.names.take(window)
        window.confirmed = True
        findings: list[Finding] = []
        for call in window.calls.values():
            if self.sides.get(call.key) != "evaluation":
                self.sides[call.key] = "evaluation"
                findings += rules.evaluated_in_train_mode(call)
            call.model.evaluated = True
            self._around.training.evaluates(call.model)
        self.tell(findings)
        self._around.chain.begins(window)
        whole = window.alone and not again and max(window.count.values(), default=0) < 2
        for guard in window.guards.values():
            guard.release(whole)

    def _report_graphs(self, window: Window, at_exit: bool = False) -> None:
        """Once a later batch shows whether graphs are kept.

        The graph of one forward over a whole set, after all training, costs nobody anything; nor
        does it tell anything where no `eval()` says that this is an evaluation.
        """
        if window.graph_reported:
            return
        if at_exit and window.alone and (window.batches < 2 or window.is_lazy()):
            return
        window.graph_reported = True
        with_graph = [c for c in window.first if c.graph is not None]
        if with_graph:
            self.tell(rules.evaluated_with_a_graph(window, with_graph[0]))

    def end(self, at_exit: bool = False, compare: bool = False) -> None:
        """The window is over, for what follows is none of it."""
        window = self.now
        if window is None:
            return
        if window.in_batch and window.alone:
            self._batch_over(window)
        if not window.confirmed and self._is_one(window, at_exit):
            self._confirm(window)
        if window.confirmed:
            self._shut(window)
            self._close(window, compare, at_exit)
        elif (
            window.has_graphs() and window.alone and window.is_apart() and self._trained
        ):
            self._put_off(window)
        else:
            self._shut(window)
            if self._trained:  # what a first look shows is not known
                self._undecided += [
                    k for k in window.calls if self.sides.get(k) is None
                ]

    def _is_one(self, window: Window, at_exit: bool) -> bool:
        """Whether what is over was an evaluation."""
        if self._stands_alone(window, at_exit):
            return True
        if at_exit and window.alone and window.has_graphs():
            return not window.is_discarded() and self._is_scored(window)
        if window.loop is None or not (window.batches and window.is_lazy()):
            return False
        if window.batches < 2 and not window.loop.is_exhausted:
            return (
                False  # a first look, or a pass that an error ended before its backward
            )
        return bool(self._is_scored(window) and (at_exit or window.proves()))

    def _stands_alone(self, window: Window, at_exit: bool = False) -> bool:
        """Whether a forward over a whole set is scored, without gradients."""
        if window.has_graphs() or window.is_discarded() or not window.is_apart():
            return False
        # else it is a first look
        return (self._trained or at_exit) and self._is_scored(window)

    @property
    def _trained(self) -> bool:
        return self._around.training.steps > 0

    def _is_scored(self, window: Window) -> bool:
        """Whether what its calls return is compared with targets, by a function or by hand."""
        return window.scores > 0 or any(
            self._reads(c.path) for c in window.calls.values()
        )

    def _reads(self, path: tuple[CodePlace, ...]) -> bool:
        known = self._by_hand.get(path)
        if known is None or known[0] != len(self._places):
            others = [place for place in self._places if place not in path]
            known = self._by_hand[path] = (
                len(self._places),
                scored.scores(path, others),
            )
        return known[1]

    def _shut(self, window: Window) -> None:
        """Nothing runs in it any more."""
        self.now = None
        self.ended = True
        self._tap.close()
        self._measures.close()
        if not window.confirmed:
            self._scores.abort()
            for guard in window.guards.values():
                guard.close(compare=False)

    def _close(self, window: Window, compare: bool, at_exit: bool) -> None:
        self._report_graphs(window, at_exit)
        report = self._around.report
        report.checked["evaluations"] += 1
        report.checked["batches"] += max(1, window.batches)
        is_scored = self._is_scored(window)
        results = self._scores.stop(window.name, is_scored)
        for number, guard in window.guards.items():
            for note in guard.close(compare).notes:
                report.note(note)
            for model in [
                c.model for c in window.calls.values() if id(c.model) == number
            ]:
                model.looked_at = True
        self._around.chain.evaluated(window, is_scored)
        counts = [len(list(m.modules())) for m in self._around.models.living()]
        report.checked["modules"] = max([report.checked["modules"], *counts])
        scores: dict[str, float] = {}
        for name, result in results.items():
            scores |= {f"{name}/{key}": value for key, value in result.scores.items()}
        steps = self._around.training.steps
        self.history.append({"stage": window.name, "step": steps, "scores": scores})

    # batches

    def fetched_again(self, loop: Loop) -> None:
        """What ran since the last fetch was one batch."""
        window = self.now
        if window is None or window.loop is not loop or not window.in_batch:
            return
        if not loop.trained:
            self._batch_over(window)
            if not window.confirmed and window.proves():
                self._confirm(window)
            if window.confirmed and window.batches > 2:
                self._report_graphs(window)
        window.in_batch = 0

    def _batch_over(self, window: Window) -> None:
        self._scores.after()
        window.batches += 1
        window.in_batch = 0

    def loop_over(self, loop: Loop, known: bool) -> bool:
        """A loop ended; whether its window is decided.

        Args:
            loop: The loop.
            known: Whether its end was seen.
        """
        window = self.now
        if window is None or window.loop is not loop:
            return True
        self.fetched_again(loop)
        if not window.confirmed and window.is_lazy():
            # what comes next shows whether gradients are computed after all
            return False
        self.end(compare=known)
        return True

    # training

    def trains(self, roots: list[Any] | None) -> None:
        """Gradients are computed from `roots`, or weights are about to change.

        Args:
            roots: None where no backward pass begins.
        """
        if self._waiting:
            self._decide(roots)
        window = self.now
        if window is not None:
            if not window.confirmed:
                self._take_for_training(window, roots)
            if self.now is not None:
                self.end()
        if self._undecided:
            self.sides.update(dict.fromkeys(self._undecided, "train"))
            self._undecided.clear()

    def _take_for_training(self, window: Window, roots: list[Any] | None) -> None:
        """Training goes on: were the calls before it a part of it?"""
        if self._stands_alone(window):
            return
        marks = window.marks()
        over = window.loop is not None and not self._around.runs(window.loop)
        followed = [c for c in window.first if c.graph]
        if over and followed and not marks:
            # its loop is over and its graphs are gone: this backward is of another
            return
        comes_by = bool(marks) and (roots is None or bool(reached(roots, marks)))
        if (
            followed
            and not comes_by
            and window.alone
            and window.is_apart()
            and self._trained
        ):
            self._put_off(window)
            return
        self._shut(window)
        if comes_by or self._trained:
            self.sides.update(dict.fromkeys(window.calls, "train"))

    def _put_off(self, window: Window) -> None:
        """A backward pass of later may come by its graphs: then it is training."""
        if window.in_batch:
            self._batch_over(window)
        self._shut(window)
        self._waiting.append(window)

    def _decide(self, roots: list[Any] | None = None, at_exit: bool = False) -> None:
        """Of windows that were put off: does a backward pass come by, or can none any more?"""
        waiting, self._waiting = self._waiting, []
        for window in waiting:
            marks = window.marks()
            if marks and roots and reached(roots, marks):
                self.sides.update(dict.fromkeys(window.calls, "train"))
            elif marks and not at_exit:
                self._waiting.append(window)
            elif self._is_scored(window) and not window.is_discarded():
                self._confirm(window)
                self._report_graphs(window, at_exit)
                self._around.report.checked["evaluations"] += 1
                self._around.report.checked["batches"] += max(1, window.batches)

    # scores

    def hear_score(self, *given: Any) -> None:
        """A loss or a metric is computed; one with a graph of others is that of training.

        Args:
            given: Its tensors, or its value.
        """
        window = self.now
        if window is None or not window.in_batch:
            return
        graphs = [t for t in given if isinstance(t, Tensor) and t.requires_grad]
        own = not graphs or window.confirmed or self.runs
        if own or reached(graphs, window.marks()):
            window.scores += 1

    def scripts(self) -> None:
        """TorchScript compiles what it finds in torch: nothing of ours is there."""
        self._around.safely(self._scores.after)
        self._measures.close()

    def _compared(self, preds: Tensor, target: Tensor, text: str, place: str) -> None:
        self._around.safely(self._scores.compared, preds, target, text, place)

    def _asked(self, y_true: Any, y_pred: Any, score: str) -> None:
        self.hear_score()
        if not self._around.is_elsewhere():
            self._around.safely(self._scores.asked, y_true, y_pred, score)

    def _memory(self) -> tuple[set[int], set[int]]:
        loop = self._around.innermost()
        return memory_of(loop.batch) if loop is not None else set(), self._inputs

    def tell(self, findings: Iterable[Finding]) -> None:
        """Report what is found, with the policy of its check."""
        policies = self._around.policies
        judged = [
            (f, policies[f.check]) for f in findings if policies[f.check] != "ignore"
        ]
        if judged:
            self._around.tell(judged)
