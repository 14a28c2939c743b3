"""One evaluation of a plain script, found and not declared: what ran in it, and what is checked."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lightning_evalguard.instruments.source import Site
from lightning_evalguard.plain.models import Model
from lightning_evalguard.plain.scored import CodePlace
from lightning_evalguard.plain.tensors import GraphMark
from lightning_evalguard.plain.watched import Watched

Key = tuple[Any, ...]
_FOLLOWED = 4  # calls of a window whose graphs are followed


@dataclass
class ModelCall:
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
        path: The user's running code, innermost first.
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
    path: tuple[CodePlace, ...] = ()
    graph: weakref.ref[GraphMark] | None = None

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
        is_exhausted: Whether it ran to its end; else it was left, or an error ended it.
    """

    number: int
    loader: Callable[[], Any]
    batch: Any = None
    size: int | None = None
    count: int = 0
    trained: bool = False
    ever_trained: bool = False
    is_exhausted: bool = False


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
        is_followed: Whether its samples are looked at.
    """

    name: str
    where: tuple[Any, int]
    loop: Loop | None
    alone: bool
    calls: dict[Key, ModelCall] = field(default_factory=dict)
    first: list[ModelCall] = field(default_factory=list)
    count: dict[Key, int] = field(default_factory=dict)
    guards: dict[int, Watched] = field(default_factory=dict)
    confirmed: bool = False
    batches: int = 0
    in_batch: int = 0
    scores: int = 0
    graph_reported: bool = False
    is_followed: bool = False
    samples: int | None = None

    def add(self, call: ModelCall) -> None:
        """A call belongs to it."""
        self.calls.setdefault(call.key, call)
        self.count[call.key] = self.count.get(call.key, 0) + 1
        self.in_batch += 1
        if call.grad and len(self.first) < _FOLLOWED:
            self.first.append(call)

    @property
    def loader_size(self) -> int | None:
        """How many samples a loader gave for the running batch; None where there is no loader."""
        if self.loop is not None and not self.alone:
            return self.loop.size
        return None

    def proves(self) -> bool:
        """Whether batches that were not trained on show that it is an evaluation.

        Outputs that are thrown away are none: a calibration, a warm-up. Where neither `eval()` nor
        `no_grad` tells, the graph of an earlier batch is gone, so no backward pass can reach it.
        """
        if self.is_discarded():
            return False
        if self.is_lazy():
            return any(
                call.graph is not None and not call.graph_lives for call in self.first
            )
        return True

    def has_graphs(self) -> bool:
        """Whether gradients are on in any of its calls."""
        return any(call.grad for call in self.calls.values())

    def is_lazy(self) -> bool:
        """Whether any of its calls can only be told from training by what does not follow."""
        return any(call.is_lazy for call in self.calls.values())

    def is_discarded(self) -> bool:
        """Whether the script throws away all that its calls return."""
        return all(call.discarded for call in self.calls.values())

    def is_apart(self) -> bool:
        """Whether its samples are none that the running loop trains on."""
        # a forward on the batch that is trained on is a part of training
        return self.loop is None or (self.alone and self.samples != self.loop.size)

    def marks(self) -> list[GraphMark]:
        """Of the graphs of its first calls that still live."""
        graphs = [call.graph() for call in self.first if call.graph is not None]
        return [mark for mark in graphs if mark is not None]

    def kept_graphs(self) -> int:
        """How many batches before the last still hold their graphs."""
        return sum(call.graph_lives for call in self.first[:-1])
