"""Run a step that has just run once more under instruments, and undo everything it did."""

from __future__ import annotations

import contextlib
import contextvars
import gc
import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from types import CodeType
from typing import Any

import torch
from torch import nn

from lightning_evalguard.instruments.dispatch import Subscriber, Watch
from lightning_evalguard.instruments.effects import Abort, Effects
from lightning_evalguard.instruments.generators import Generators
from lightning_evalguard.instruments.reach import Reach
from lightning_evalguard.instruments.rollback import CannotReplay, Snapshot, Writes
from lightning_evalguard.instruments.settings import unchanged_world

# Compiled modules can run their Python code, so that nothing is compiled anew: torch >= 2.6.
RUNS_EAGERLY = hasattr(torch.compiler, "set_stance")

# under way; a replay may contain another run's evaluation, never the reverse
_replays = 0


def replaying() -> bool:
    """Whether a step is being run again: what counts, taps or records must then look away."""
    return _replays > 0


@dataclass
class Outcome:
    """What one replay gave.

    Attributes:
        outputs: What the step returned.
        error: Why it could not be run to its end; its effects are undone all the same.
        watch: The mode it ran under, with the subscribers that failed.
    """

    watch: Watch
    outputs: Any = None
    error: Exception | None = None


class Look:
    """A step that has just run, and can be run again with every effect undone.

    What it writes is copied just before the first write reaches a storage that the module, its
    attributes, the batch or `beside` hold; the module is never cloned. See `rollback` for what is
    put back. A step whose code names what cannot be put back is not run again (see `reach`), and
    one that is about to write a file, start a process or send something ends before it does.

    Use it as a context manager: private generators run on from one replay to the next, so that
    their draws differ, and are put back at the end.

    Args:
        root: The module whose step it is.
        step: The step itself, as the loop calls it.
        args: Its positional arguments; ``args[0]`` is the batch.
        kwargs: Its keyword arguments.
        before: The generators as they stood before the step ran.
        beside: Other objects that the step can reach and change: optimizers, schedulers.
        isolate: Keeps a replay out of the loop's books and the loggers.
        code: What is known to run in the step, each with its globals.

    Raises:
        CannotReplay: The step cannot be run again on these arguments; the message says why.
    """

    def __init__(
        self,
        root: nn.Module,
        step: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None = None,
        *,
        before: Generators,
        beside: Iterable[object] = (),
        isolate: Callable[[], AbstractContextManager[Any]] | None = None,
        code: Mapping[CodeType, dict[str, Any]] | None = None,
    ) -> None:
        self.root = root
        self.args = args
        self.kwargs = kwargs or {}
        self._step = step
        self._before = before
        self._isolate = isolate
        for value in (*self.args, *self.kwargs.values()):
            if isinstance(value, Iterator):
                raise CannotReplay(
                    f"its argument is a {type(value).__name__}, which runs on"
                )
        roots = [root, *beside, self.args, self.kwargs]
        reach = Reach(step, roots, code)
        if reach.why is not None:
            raise CannotReplay(reach.why)
        self._held = Snapshot(roots, reach)
        self._silence = ExitStack()

    def __enter__(self) -> Look:
        self._silence.enter_context(_silence())
        return self

    def __exit__(self, *_: object) -> None:
        self._silence.close()
        self._held.restore_generators()

    def again(
        self,
        *subscribers: Subscriber,
        args: tuple[Any, ...] | None = None,
        seed: int | None = None,
        strict: bool = True,
    ) -> Outcome:
        """Run the step again, each operator told to `subscribers`, and undo what it did.

        Args:
            subscribers: See `dispatch.Subscriber`.
            args: Other arguments than the step had: a part of the batch.
            seed: Seed every shared generator with it; by default each starts where it stood
                before the step.
            strict: Raise what a subscriber raised, after everything is undone; else it stands in
                the outcome.
        """
        writes = Writes(self._held)
        watch = Watch(writes, *subscribers)
        outcome = Outcome(watch)
        with ExitStack() as undo:
            undo.enter_context(counted())
            undo.enter_context(unchanged_world())
            undo.callback(self._held.restore)
            undo.callback(writes.restore)
            undo.enter_context(quietly())
            undo.enter_context(_eagerly())
            if self._isolate is not None:
                undo.enter_context(self._isolate())
            if seed is None:
                self._before.restore()
            else:
                Generators.seed(seed)
            effects = Effects(forbid=True)
            given = self.args
            if args is not None:
                given = args
            try:
                with watch, effects:
                    # in a context of its own, whose variables nobody else sees
                    context = contextvars.copy_context()
                    outcome.outputs = context.run(self._step, *given, **self.kwargs)
            except Abort as error:
                outcome.error = CannotReplay(f"it {error}")
            except Exception as error:  # noqa: BLE001 - the step ran before: this is the replay's
                outcome.error = error.with_traceback(None)
        # the user's code caught it
        if effects.why is not None and outcome.error is None:
            outcome.error = CannotReplay(f"it {effects.why}")
        if strict and watch.failures:
            raise watch.failures[0][1]
        return outcome


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """The garbage collector waits: what a look makes is gone when it is over."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextlib.contextmanager
def counted() -> Iterator[None]:
    """What runs inside is a replay."""
    global _replays
    _replays += 1
    try:
        yield
    finally:
        _replays -= 1


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Nothing is printed, warned of or logged twice."""
    nowhere = io.StringIO()
    with (
        _silence(),
        warnings.catch_warnings(),
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Nothing is logged; what is silent already is left so, for each change empties all caches."""
    before = logging.root.manager.disable
    if before < logging.CRITICAL:
        logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        if logging.root.manager.disable != before:
            logging.disable(before)


def _eagerly() -> AbstractContextManager[Any]:
    """Compiled modules run their Python code: all is seen, nothing recompiles."""
    if "torch._dynamo" in sys.modules and RUNS_EAGERLY:
        eager: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
        return eager
    return contextlib.nullcontext()


__all__ = [
    "RUNS_EAGERLY",
    "CannotReplay",
    "Look",
    "Outcome",
    "counted",
    "quietly",
    "replaying",
    "uncollected",
]
