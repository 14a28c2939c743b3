"""One evaluation of a plain script, found and not declared: what ran in it, and what is checked."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_evalguard.audit import Replays, Showing, why_not_again
from lightning_evalguard.checks.batch.check import BatchCheck
from lightning_evalguard.checks.check import Check, Moment
from lightning_evalguard.checks.grad import GradCheck
from lightning_evalguard.checks.rng import RngCheck
from lightning_evalguard.checks.state.check import StateCheck
from lightning_evalguard.checks.stochastic.check import StochasticCheck
from lightning_evalguard.guard import Guard
from lightning_evalguard.instruments.source import Site
from lightning_evalguard.plain.models import Model
from lightning_evalguard.report import Finding, Report

Key = tuple[Any, ...]
_FOLLOWED = 4  # calls of a window whose graphs are followed


@dataclass
class Call:
    """One call of a root module by the script.

    Attributes:
        model: The module.
        key: Its place in the source, the module, grad mode, its mode and the loader.
        site: The place.
        functions: Names of the user's functions around it, innermost first.
        grad: Whether grad mode is on.
        flags: The modes of its submodules that a mode changes.
        discarded: Whether the script throws away what it returns.
        allowed: The checks that the running code allows.
        graph: Gone when the graph of its outputs is; None where there is none.
    """

    model: Model
    key: Key
    site: Site
    functions: tuple[str, ...]
    grad: bool
    mode: bool
    flags: tuple[bool, ...]
    discarded: bool
    allowed: frozenset[str] = frozenset()
    graph: weakref.ref[Any] | None = None

    @property
    def is_lazy(self) -> bool:
        """Whether it can only be told from training by what does not follow: no backward pass."""
        return self.grad and self.mode

    @property
    def graph_lives(self) -> bool:
        """Whether something still holds the graph of its outputs."""
        return self.graph is not None and self.graph() is not None


@dataclass
class Loop:
    """One pass over a loader that is under way.

    Attributes:
        number: Of the loader, so that passes over one loader are known as such.
        loader: The loader.
        batch: The batch that was fetched last, until training takes it or the next one comes.
        size: How many samples it holds.
        count: How many batches were fetched.
        trained: Whether gradients were computed or weights changed since the last fetch.
        ever_trained: Whether that happened in any batch of this pass.
    """

    number: int
    loader: Callable[[], Any]
    batch: Any = None
    size: int | None = None
    count: int = 0
    trained: bool = False
    ever_trained: bool = False


class Mark:
    """Lives as long as an autograd graph does, for it stands in the graph's metadata."""

    __slots__ = ("__weakref__",)


def follow(outputs: Any) -> weakref.ref[Any] | None:
    """A reference that ends with the graph of `outputs`; None where there is none."""
    for tensor in tensors_in(outputs):
        if tensor.grad_fn is not None:
            mark = Mark()
            metadata: Any = tensor.grad_fn.metadata
            metadata["evalguard"] = mark
            return weakref.ref(mark)
    return None


def tensors_in(value: Any, depth: int = 4) -> Iterator[Tensor]:
    """The tensors of a batch, a tuple of arguments, or what a model returned."""
    if isinstance(value, Tensor):
        yield value
        return
    inner: Sequence[Any] = ()
    if isinstance(value, dict):
        inner = list(value.values())
    elif isinstance(value, (list, tuple)):
        inner = value
    for item in inner if depth else ():
        yield from tensors_in(item, depth - 1)


class Held(Guard):
    """A guard whose findings wait until its window is known to be an evaluation."""

    def __init__(self, *args: Any, look: bool, tell: Callable[[Any], None], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._look = look
        self._tell = tell
        self._waiting: list[tuple[Finding, str]] | None = []
        self.stepped: Site | None = None

    def release(self) -> None:
        """It is an evaluation: what waits, and what comes, is said."""
        waiting, self._waiting = self._waiting, None
        if waiting:
            self._tell(waiting)

    def _judge(self, found: Sequence[tuple[Finding, str]], quiet: bool) -> None:
        # a loop may enter autocast for each batch: the window begins within and ends outside
        found = [(self._placed(f), p) for f, p in found if "autocast" not in (f.subject or "")]
        if self._waiting is None:
            self._tell(found)
        else:
            self._waiting += found

    def _placed(self, finding: Finding) -> Finding:
        """What changed unseen, where an optimizer was stepped, was changed there."""
        site = self.stepped
        if site is None or finding.check != "state" or finding.location is not None:
            return finding
        where = {k: getattr(site, k) for k in ("location", "expression", "function")}
        return replace(finding, remedy="Step the optimizer in training only.", **where)

    def shown(self, now: Moment) -> AbstractContextManager[Showing]:
        """Show this step, where the window is one of those that are looked at."""
        return super().shown(now) if self._look else nullcontext(Showing())


class Watched:
    """The checks around the calls of one model in one window, as `evaluating` has them.

    Args:
        module: The model.
        make: Makes the guard.
        window: Whose now is asked for.
    """

    def __init__(self, module: nn.Module, guard: Held, now: Moment) -> None:
        self._guard, self._now = guard, now
        self._inside: ExitStack | None = None
        self._showing: Showing | None = None
        guard.open(module, now)
        guard.start(now)

    def release(self) -> None:
        """What it found is said from now on."""
        self._guard.release()

    def stepped_at(self, site: Site) -> None:
        """An optimizer was stepped there, in the middle of the evaluation."""
        self._guard.stepped = site

    def begin(self, args: tuple[Any, ...]) -> None:
        """A call begins."""
        self._now.batch += 1
        self._guard.before(self._now, args)
        with ExitStack() as stack:
            self._showing = stack.enter_context(self._guard.shown(self._now))
            self._inside = stack.pop_all()

    def end(
        self, module: nn.Module, outputs: Any, args: tuple[Any, ...], kwargs: dict[str, Any],
        failed: bool,
    ) -> None:  # fmt: skip
        """It returned `outputs`, or failed."""
        inside, self._inside = self._inside, None
        if inside is not None:
            inside.close()
        if not failed and self._showing is not None:
            forward = module.forward
            self._guard.after(self._now, outputs, self._showing, forward, args, kwargs)

    def abandon(self) -> None:
        """Leave a call that is under way."""
        if self._inside is not None:
            self._inside.close()
            self._inside = None

    def close(self, compare: bool) -> Report:
        """The window is over; what it holds is compared with its beginning where that is sure.

        Where a loop's end was not seen, weights may have been swapped back since: that is the
        script's own business, and no finding.
        """
        error = None if compare else _LooseEndError()
        self._guard.stop(self._now, error)
        self._guard.close(self._now)
        return self._guard.report


class _LooseEndError(Exception):
    """Stands for an end that was not seen."""


@dataclass
class Window:
    """What may be an evaluation: root calls without training between them.

    Attributes:
        name: Under which its matrix stands.
        where: The code of the function that it stands in, and the number of its set.
        loop: The pass over a loader in which it runs, where there is one.
        alone: Whether its batches come from no loader of its own.
        calls: The first call of each kind.
        confirmed: Whether it is an evaluation.
        batches: Batches, each without training.
        scores: Losses, metrics and comparisons that were computed in it.
    """

    name: str
    where: tuple[Any, int]
    loop: Loop | None
    alone: bool
    calls: dict[Key, Call] = field(default_factory=dict)
    first: list[Call] = field(default_factory=list)
    count: dict[Key, int] = field(default_factory=dict)
    guards: dict[int, Watched] = field(default_factory=dict)
    confirmed: bool = False
    batches: int = 0
    in_batch: int = 0
    scores: int = 0
    graph_told: bool = False
    samples: int | None = None

    def add(self, call: Call) -> None:
        """A call belongs to it."""
        self.calls.setdefault(call.key, call)
        self.count[call.key] = self.count.get(call.key, 0) + 1
        self.in_batch += 1
        if call.grad and len(self.first) < _FOLLOWED:
            self.first.append(call)

    def proves(self) -> bool:
        """Whether batches that were not trained on show that it is an evaluation.

        Outputs that are thrown away are none: a calibration, a warm-up. Where neither `eval()` nor
        `no_grad` tells, the graph of an earlier batch is gone, so no backward pass can reach it.
        """
        if all(call.discarded for call in self.calls.values()):
            return False
        if any(call.is_lazy for call in self.calls.values()):
            return any(call.graph is not None and not call.graph_lives for call in self.first)
        return True

    def repeats(self, call: Call) -> bool:
        """Whether a call without a loader is one of several, each of which is scored."""
        return self.count.get(call.key, 0) > 0 and self.scores > 0 and not call.is_lazy

    def stands_alone(self, trained: bool) -> bool:
        """Whether one forward over a whole set is scored, without gradients.

        Args:
            trained: Whether any model was trained so far: before that it is a first look.
        """
        if not (trained and self.scores) or any(c.grad for c in self.calls.values()):
            return False
        if all(call.discarded for call in self.calls.values()):
            return False
        # a forward on the batch that is trained on is a part of training
        return self.loop is None or (self.alone and self.samples != self.loop.size)

    def kept_graphs(self) -> int:
        """How many batches before the last still hold their graphs."""
        return sum(call.graph_lives for call in self.first[:-1])


def make_held(
    policies: dict[str, str], allow: Any, look: bool, grad: bool,
    optimizers: Callable[[], list[Any]], tell: Callable[[Any], None],
) -> Held:  # fmt: skip
    """The guard of one model in one window.

    Args:
        policies: Of every check.
        allow: Patterns of what is meant.
        look: Whether the first call is watched as it runs.
        grad: Whether gradients are on: then nothing is watched nor run again.
        optimizers: Gives those of the script.
        tell: Takes what is found.
    """
    checks: list[Check] = [StateCheck(optimizers), StochasticCheck(), BatchCheck()]
    checks.append(RngCheck(restore=False))
    if not grad:
        checks.insert(0, GradCheck())
    wanted = [(check, policies[check.name]) for check in checks]
    wanted = [(check, policy) for check, policy in wanted if policy != "ignore"]
    replays = Replays("off" if grad else "auto", beside=optimizers, why_not=why_not_again)
    return Held(wanted, allow, Report(), replays, host="watch", look=look, tell=tell)


def memory_of(batch: Any) -> set[int]:
    """Where the tensors of a batch lie."""
    return {t.untyped_storage().data_ptr() for t in tensors_in(batch) if t.layout == torch.strided}


def size_of(batch: Any) -> int | None:
    """How many samples a batch holds, by its first tensor."""
    first = next(tensors_in(batch), None)
    return len(first) if first is not None and first.ndim else None
