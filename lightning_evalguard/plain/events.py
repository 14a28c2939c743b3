"""What a plain script does that tells evaluation from training: calls, batches, backward, steps.

A few entries of torch are replaced for the process and put back at the end: the call of a module,
the engine's backward pass and the fetch of a loader's batch. No module gets a hook and nothing that
computes is touched. Only the thread that started it is listened to.
"""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter

from lightning_evalguard.checks.sync.overrides import crossing
from lightning_evalguard.instruments.tracebacks import cut
from lightning_evalguard.report import EvalGuardError, EvalGuardWarning, hidden

__tracebackhide__ = hidden


class Listener(Protocol):
    """What is told of each event. Nothing that it raises but an `EvalGuardError` comes out."""

    def begin(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A module that no other module called is called; what is returned comes back in `end`."""

    def end(self, call: Any, outputs: Any, failed: bool) -> None:
        """It returned `outputs`, or raised."""

    def fetched(self, iterator: Any, batch: Any) -> None:
        """A loader gave a batch."""

    def exhausted(self, iterator: Any) -> None:
        """A loader has no batch left."""

    def dropped(self, number: int, now: bool) -> None:
        """The iterator of a loop that was left early is gone; `number` is its ``id``.

        It may go in the middle of something: then this is no moment to look at anything.
        """

    def backward(self, roots: Any) -> None:
        """Gradients are computed, from `roots` on."""

    def optimizes(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer is made."""

    def stepped(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer is about to change weights."""

    def scripts(self) -> None:
        """TorchScript is about to compile: it takes no Python where torch has C++."""


class Events:
    """Listens from `start` to `stop`; one at a time in a process.

    Args:
        listener: Is told of each event.

    Attributes:
        inside: Whether a root module's call, a fetch, or what the listener does is under way: what
            happens then is a part of it and no event of its own.
    """

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._thread = threading.get_ident()
        self._process = self._home = os.getpid()
        self._undo: list[Callable[[], None]] = []
        self._loops: dict[int, weakref.ref[Any]] = {}
        self._loaders: weakref.WeakKeyDictionary[Any, Callable[[], Any]]
        self._loaders = weakref.WeakKeyDictionary()
        self.inside = False

    def start(self) -> None:
        """Listen from here on."""
        self._patch(nn.Module, "__call__", self._calls(nn.Module.__call__))
        self._patch(
            _BaseDataLoaderIter, "__init__", self._makes(_BaseDataLoaderIter.__init__)
        )
        self._patch(
            _BaseDataLoaderIter, "__next__", self._fetches(_BaseDataLoaderIter.__next__)
        )
        made = torch.optim.Optimizer.__init__
        self._patch(torch.optim.Optimizer, "__init__", self._optimizing(made))
        engine = vars(torch.autograd)["_engine_run_backward"]
        self._patch(torch.autograd, "_engine_run_backward", self._backwards(engine))
        for name in ("__enter__", "__exit__"):
            change = vars(torch.inference_mode)[name]
            self._patch(torch.inference_mode, name, self._crossings(change))
        self._patch(torch.jit, "script", self._scripting(torch.jit.script))
        self._undo.append(register_optimizer_step_pre_hook(self._steps()).remove)

    def stop(self) -> None:
        """Put everything back; what was replaced again since then only calls through."""
        self._process = -1
        while self._undo:
            self._undo.pop()()

    def loader_of(self, iterator: Any) -> DataLoader[Any] | None:
        """The loader that made an iterator, while it lives."""
        refer = self._loaders.get(iterator)
        if refer is None:
            return None
        loader: DataLoader[Any] | None = refer()
        return loader

    def elsewhere(self) -> bool:
        """Whether this is another thread, a forked process, or after the end."""
        return threading.get_ident() != self._thread or os.getpid() != self._process

    def is_forked(self) -> bool:
        """Whether this is another process than the one that started to listen."""
        return os.getpid() != self._home

    def _patch(self, owner: Any, name: str, replacement: Any) -> None:
        original = vars(owner)[name]
        setattr(owner, name, replacement)

        def undo() -> None:
            if vars(owner).get(name) is replacement:
                setattr(owner, name, original)

        self._undo.append(undo)

    def _calls(self, original: Callable[..., Any]) -> Callable[..., Any]:
        is_compiling = torch.compiler.is_compiling
        tracing = torch._C._get_tracing_state

        @functools.wraps(original)
        def called(module: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
            # what `torch.jit.trace` runs is recorded: nothing of ours may stand in it
            if (
                self.inside
                or is_compiling()
                or self.elsewhere()
                or tracing() is not None
            ):
                return original(module, *args, **kwargs)
            self.inside = True
            try:
                call = self._listener.begin(module, args, kwargs)
                if call is None:
                    return original(module, *args, **kwargs)
                try:
                    outputs = original(module, *args, **kwargs)
                except BaseException:
                    self._listener.end(call, None, True)
                    raise
                self._listener.end(call, outputs, False)
                return outputs
            except BaseException as error:
                cut(error)
                raise
            finally:
                self.inside = False

        _let_dynamo_pass(called)
        return called

    def _makes(self, original: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(original)
        def made(iterator: Any, loader: Any, *args: Any, **kwargs: Any) -> None:
            original(iterator, loader, *args, **kwargs)
            if not self.elsewhere():
                self._loaders[iterator] = _kept(loader)

        return made

    def _fetches(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def fetched(iterator: Any) -> Any:
            if self.inside or self.elsewhere():
                return original(iterator)
            self.inside = True
            try:
                # a loader makes tensors on the host
                batch = crossing(lambda: original(iterator))
                self._follow(iterator)
                self._listener.fetched(iterator, batch)
            except StopIteration:
                self._loops.pop(id(iterator), None)
                self._listener.exhausted(iterator)
                raise
            except BaseException as error:
                cut(error)
                raise
            finally:
                self.inside = False
            return batch

        return fetched

    def _follow(self, iterator: Any) -> None:
        """Hear of the end of a loop that is left early: its iterator goes at once."""
        number = id(iterator)
        if number in self._loops:
            return

        def gone(_: weakref.ref[Any]) -> None:
            if self._loops.pop(number, None) is not None and not self.elsewhere():
                if self.inside:
                    self._listener.dropped(number, False)
                else:
                    self._aside(self._listener.dropped, number, True)

        self._loops[number] = weakref.ref(iterator, gone)

    def _backwards(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def ran(*args: Any, **kwargs: Any) -> Any:
            try:
                if not (self.inside or self.elsewhere()):
                    self._aside(self._listener.backward, args[0] if args else ())
                return original(*args, **kwargs)
            except BaseException as error:
                cut(error)
                raise

        return ran

    def _crossings(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def crossed(context: Any, *args: Any) -> Any:
            if self.inside or self.elsewhere():
                return original(context, *args)
            return crossing(lambda: original(context, *args))

        return crossed

    def _scripting(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def scripted(*args: Any, **kwargs: Any) -> Any:
            if not self.elsewhere():
                self._listener.scripts()
            # where it looks up names: as many frames up as without us
            if len(args) < 3:
                kwargs["_frames_up"] = kwargs.get("_frames_up", 0) + 1
            try:
                return original(*args, **kwargs)
            except BaseException as error:
                cut(error)
                raise

        return scripted

    def _optimizing(self, original: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(original)
        def made(
            optimizer: torch.optim.Optimizer, /, *args: Any, **kwargs: Any
        ) -> None:
            try:
                original(optimizer, *args, **kwargs)
            except BaseException as error:
                cut(error)
                raise
            if not self.elsewhere():
                self._listener.optimizes(optimizer)

        return made

    def _steps(self) -> Callable[..., None]:
        is_compiling = torch.compiler.is_compiling

        def steps(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
            if is_compiling() or self.inside or self.elsewhere():
                return
            try:
                self._aside(self._listener.stepped, optimizer)
            except BaseException as error:
                cut(error)
                raise

        return steps

    def _aside(self, hear: Callable[..., None], *args: Any) -> None:
        self.inside = True
        try:
            hear(*args)
        except (EvalGuardError, EvalGuardWarning) as verdict:
            cut(verdict)
            raise
        finally:
            self.inside = False


def _kept(loader: DataLoader[Any]) -> Callable[[], Any]:
    """Gives a loader, which may have no other home than its loop."""
    if loader.persistent_workers:  # it holds its iterator
        return weakref.ref(loader)
    return lambda: loader


def _let_dynamo_pass(function: Callable[..., Any]) -> None:
    """Keep Dynamo from compiling `function`'s own frame, and let it compile what that calls.

    It compiles the forward of a module as the first frame that the module's call leads to.
    """
    from torch._C._dynamo import eval_frame as frames

    action = vars(frames).get("_FrameAction")
    if action is None:  # torch < 2.6: the frame and what it calls are one
        return
    strategy = frames._FrameExecStrategy(action.SKIP, action.DEFAULT)
    frames.set_code_exec_strategy(function.__code__, strategy)
