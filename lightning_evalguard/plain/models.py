"""The root modules of a script and the modes of their submodules, without holding any of them."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.loss import _Loss

from lightning_evalguard.checks.modes.effect import Effect, effect_of
from lightning_evalguard.model.tensors import is_metric
from lightning_evalguard.model.tree import inside, registrations


class Model:
    """One root module, by a weak reference.

    Attributes:
        computes: Whether it has something to learn, or something that a mode changes: a loss
            without parameters and a metric are no models.
        is_loss: Whether it is a loss: what it is given is scored.
        trained: Optimizer steps that it took part in.
        accepted: The flags with which it trained last.
        evaluated: Whether it was evaluated since.
        judged: The flags in training that were judged already.
        looked_at: Whether the operators of a step of it were shown once.
        reads: The memory that such a step of an evaluation reads; None where that is not known.
    """

    def __init__(self, module: nn.Module) -> None:
        self._ref = weakref.ref(module)
        self.kind = type(inside(module)[1]).__name__
        self._dicts: list[dict[str, Any]] = []
        self._computed: list[weakref.ref[nn.Module]] = []
        self.names: list[str] = []
        self.effects: list[Effect] = []
        self.kinds: list[str] = []
        self._order: list[tuple[bool, int]] = []
        self._read_at = -1
        self.is_loss = isinstance(module, _Loss) or self.kind.endswith(
            ("Loss", "Criterion")
        )
        self.trained = 0
        self.accepted: tuple[bool, ...] | None = None
        self.evaluated = False
        self.judged: set[tuple[bool, ...]] = set()
        self.looked_at = False
        self.reads: set[int | None] | None = None
        self.computes = not is_metric(module) and self._counts(module)

    def module(self) -> nn.Module | None:
        """The module, while somebody else holds it."""
        return self._ref()

    def inner(self) -> nn.Module | None:
        """The user's own module, by which names read, where it is wrapped."""
        module = self._ref()
        if module is None:
            return None
        return inside(module)[1]

    def remember(self, read: set[int | None]) -> None:
        """What a step of an evaluation reads."""
        self.reads = (self.reads or set()) | read

    def flags(self) -> tuple[bool, ...]:
        """Whether each submodule that a mode changes is in train mode, in the order of `names`."""
        module = self._ref()
        if module is not None and self._read_at != registrations.count:
            self._read(module)
        if not self._computed:
            return tuple([d["training"] for d in self._dicts])
        return self._all()

    def asleep(self, flags: Sequence[bool]) -> list[int]:
        """The places of those in eval mode."""
        return [i for i, flag in enumerate(flags) if not flag]

    def awake(self, flags: Sequence[bool]) -> list[int]:
        """The places of those in train mode."""
        return [i for i, flag in enumerate(flags) if flag]

    def listed(self, places: Sequence[int]) -> str:
        """What stands at `places`, in words: ``2 Dropout, 1 BatchNorm1d``."""
        kinds = Counter(self.kinds[i] for i in places)
        said = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common(3))
        if len(kinds) > 3:
            return f"{said}, ..."
        return said

    def _counts(self, module: nn.Module) -> bool:
        self._read(module)
        return bool(self.names) or next(module.parameters(), None) is not None

    def _all(self) -> tuple[bool, ...]:
        plain = [d["training"] for d in self._dicts]
        living = [r() for r in self._computed]
        asked = [m is not None and m.training for m in living]
        of_kind = plain, asked
        return tuple([of_kind[computed][i] for computed, i in self._order])

    def _read(self, module: nn.Module) -> None:
        """Walk the tree; a flag is read from a module's ``__dict__``, which does not hold it."""
        self._read_at = registrations.count
        self._dicts = []
        self._computed = []
        self._order = []
        self.names = []
        self.effects = []
        self.kinds = []
        for name, part in inside(module)[1].named_modules():
            effect = None
            if not is_metric(part):
                effect = effect_of(part)
            if effect is None:
                continue
            self.names.append(name)
            self.effects.append(effect)
            self.kinds.append(type(part).__name__)
            plain = "training" in part.__dict__ and not isinstance(
                part, torch.jit.ScriptModule
            )
            if plain:
                self._order.append((False, len(self._dicts)))
                self._dicts.append(part.__dict__)
            else:
                self._order.append((True, len(self._computed)))
                self._computed.append(weakref.ref(part))


def are_rows(batch: Any, model: Model, size: int | None) -> bool:
    """Whether each row of what a model is called with is a sample.

    Args:
        batch: Its one argument.
        model: The model.
        size: How many samples the loader gave; None where a script cuts its batches itself. Then
            tables and images are taken for samples, and nothing where time may come first.
    """
    if not isinstance(batch, torch.Tensor) or batch.ndim < 2:
        return False
    root = model.inner()
    of_time = root is not None and any(
        isinstance(part, _OF_TIME) for part in root.modules()
    )
    if size is not None:
        return len(batch) == size and not (of_time and batch.shape[1] == size)
    return batch.is_floating_point() and batch.ndim in (2, 4) and not of_time


_OF_TIME = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)


class Models:
    """The root modules that were called, each met once.

    Attributes:
        met: How many there were.
    """

    def __init__(self) -> None:
        self._known: dict[int, Model] = {}
        self.met = 0

    def __iter__(self) -> Iterator[Model]:
        return iter([model for model in self._known.values() if model.computes])

    def of(self, module: nn.Module) -> Model:
        """What is known of `module`."""
        known = self._known.get(id(module))
        if known is None or known.module() is not module:
            known = self._known[id(module)] = Model(module)
            self.met += 1
            weakref.finalize(module, self._forget, id(module), known).atexit = False
        return known

    def living(self) -> list[nn.Module]:
        """All that still exist and compute something."""
        modules = [m.module() for m in list(self._known.values()) if m.computes]
        return [m for m in modules if m is not None]

    def described(self) -> str:
        """The class of the model that was met first and still lives."""
        kind = type(next(iter(self.living()), None))
        return f"{kind.__module__}.{kind.__qualname__}"

    def device(self) -> str:
        """Where its parameters live."""
        for module in self.living():
            for parameter in module.parameters():
                return str(parameter.device)
        return "cpu"

    def _forget(self, number: int, known: Model) -> None:
        if self._known.get(number) is known:
            del self._known[number]
