"""Which parts of a model learn: an optimizer holds them, and a gradient reaches them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_evalguard.data.batches import tensors
from lightning_evalguard.model.tree import Modes, parent


@dataclass
class _Count:
    """Elements of parameters: how many there are, and how many of them learn."""

    total: int = 0
    learning: int = 0

    @property
    def learns(self) -> bool:
        """Whether all of it learns: what is part frozen holds an adapter, and is no part itself."""
        return 0 < self.total == self.learning


class Learning:
    """What is set up to learn at one moment, by module.

    A module with parameters of its own learns if one of them does. Of one without, the nearest
    module around it decides that has parameters, by its own and by those of its children: a
    dropout beside a frozen layer that holds a small adapter stands in a frozen part.

    Args:
        modes: The module tree.
        held: ``id()`` of the parameters that optimizers hold; None where that is not known.
    """

    def __init__(self, modes: Modes, held: set[int] | None) -> None:
        self._held = held
        self._modules = dict(zip(modes.names, modes.modules, strict=True))
        self._own: dict[str, _Count] = {}
        self._below: dict[str, _Count] = {}
        self._children: dict[str, list[str]] = {}
        for name, module in self._modules.items():
            up = parent(name)
            if up is not None:
                self._children.setdefault(up, []).append(name)
            self._count(name, module)

    def _count(self, name: str, module: nn.Module) -> None:
        own = self._own[name] = _Count()
        for parameter in _parameters_of(module):
            size = _size(parameter)
            own.total += size
            if self._is_learning(parameter):
                own.learning += size
        if not own.total:
            return
        at: str | None = name
        while at is not None:
            below = self._below.setdefault(at, _Count())
            below.total += own.total
            below.learning += own.learning
            at = parent(at)

    def _is_learning(self, parameter: Tensor) -> bool:
        held = self._held
        return parameter.requires_grad and (held is None or id(parameter) in held)

    def is_held(self, name: str) -> bool:
        """Whether an optimizer holds a parameter at or below a module, learning or not."""
        held = self._held or set()
        return any(id(p) in held for p in self._modules[name].parameters())

    def is_all(self) -> bool:
        """Whether every parameter is set up to learn."""
        return all(own.learning == own.total for own in self._own.values())

    def idle_part(self, name: str) -> str | None:
        """The largest part around a module in which nothing learns, where it has parameters.

        Returns:
            None where it has none, and where nothing learns in the whole model.
        """
        top = name
        up = parent(name)
        if self._learning_below(name):
            return None
        while up is not None and up in self._modules and not self._learning_below(up):
            top, up = up, parent(up)
        if top and top in self._below:
            return top
        return None

    def _learning_below(self, name: str) -> int:
        if name not in self._below:
            return 0
        return self._below[name].learning

    def learns(self, name: str) -> bool:
        """Whether the part learns in which the module called `name` stands."""
        return bool(self._decide(name))

    def parameters(self, name: str) -> list[Tensor]:
        """The learning parameters of the part in which a module stands."""
        own, children = self._decide(name) or ("", [])
        held = list(_parameters_of(self._modules[own])) if own is not None else []
        for child in children:
            held += self._modules[child].parameters()
        return [p for p in held if self._is_learning(p)]

    def _decide(self, name: str) -> tuple[str | None, list[str]] | None:
        """The module whose own parameters make the part learn, and the children that do."""
        if self._own[name].learning:
            return name, []
        at: str | None = name
        while at is not None and (at not in self._below or at not in self._modules):
            at = parent(at)
        if at is None:
            return None
        children = [
            c for c in self._children.get(at, ()) if self._below.get(c, _Count()).learns
        ]
        own = None
        if self._own[at].learns:
            own = at
        if own is not None or children:
            return (own, children)
        return None

    def elsewhere(self, parts: Iterable[str]) -> bool:
        """Whether something learns in train mode that does not lie at or below one of `parts`."""
        tops = list(parts)
        for name, own in self._own.items():
            if not own.learning or not self._modules[name].training:
                continue
            if not any(is_at_or_below(name, top) for top in tops):
                return True
        return False


def is_at_or_below(name: str, top: str) -> bool:
    """Whether the module called `name` is the one called `top`, or lies in it."""
    return not top or name == top or name.startswith(f"{top}.")


def _parameters_of(module: nn.Module) -> Iterator[Tensor]:
    own = module.__dict__.get("_parameters")
    held = (
        own.values()
        if isinstance(own, dict)
        else list(module.parameters(recurse=False))
    )
    return (p for p in held if p is not None)


def _size(parameter: Tensor) -> int:
    try:
        return max(parameter.numel(), 1)
    except (RuntimeError, ValueError):  # a lazy one has no shape yet
        return 1


def trains(modes: Modes) -> dict[str, bool]:
    """Whether each module stands in a part of which a parameter requires a gradient, by name.

    A module with parameters trains if any of them does; one without, if the nearest module around
    it that has parameters does.
    """
    modes.refresh()
    known = set(modes.names)
    some: dict[str, bool] = {}
    for name, module in zip(modes.names, modes.modules, strict=True):
        flags = [p.requires_grad for p in module._parameters.values() if p is not None]
        if not flags:
            continue
        at: str | None = name
        while at is not None:
            if at in known:
                some[at] = some.get(at, False) or any(flags)
            at = parent(at)
    of_part = {}
    for name in modes.names:
        at = name
        while at not in some and (up := parent(at)) is not None:
            at = up
        of_part[name] = some.get(at, False)
    return of_part


def held_by(optimizers: Iterable[Any], root: nn.Module) -> set[int] | None:
    """``id()`` of the parameters in any optimizer, given or kept as an attribute of `root`.

    Returns:
        None where it cannot be known: no optimizer is there, or those that are hold copies.
    """
    held: set[int] = set()
    for optimizer in (*optimizers, *_kept_optimizers(root)):
        for group in getattr(optimizer, "param_groups", ()):
            held.update(map(id, group["params"]))
    if not any(id(p) in held for p in root.parameters()):
        return None
    return held


def _kept_optimizers(root: nn.Module) -> Iterator[torch.optim.Optimizer]:
    for value in vars(root).values():
        several = isinstance(value, (list, tuple, dict))
        values = (
            value.values()
            if isinstance(value, dict)
            else value
            if several
            else (value,)
        )
        yield from (v for v in values if isinstance(v, torch.optim.Optimizer))


def reached_from(outputs: Any) -> set[int]:
    """``id()`` of the parameters that a backward pass from a training step's loss would reach.

    Args:
        outputs: What the step returned.
    """
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
    waiting = [t.grad_fn for t in tensors(loss) if t.grad_fn is not None]
    known = set(waiting)
    reached = set()
    while waiting:
        node = waiting.pop()
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            reached.add(id(leaf))
        following = [
            n for n, _ in node.next_functions if n is not None and n not in known
        ]
        known.update(following)
        waiting += following
    return reached


class Gradients:
    """Which of some parameters a backward pass reached since they were added."""

    def __init__(self) -> None:
        self._arrived: set[int] = set()
        self._handles: dict[int, Any] = {}
        self._watched: dict[int, tuple[Tensor, bool]] = {}

    def watch(self, parameters: Iterable[Tensor]) -> None:
        """Watch these too."""
        for parameter in parameters:
            key = id(parameter)
            if key in self._watched:
                continue
            self._watched[key] = parameter, parameter.grad is not None
            hook: Any = parameter.register_post_accumulate_grad_hook
            self._handles[key] = hook(_Arrival(self, key))

    def note(self, key: int) -> None:
        """A gradient has arrived at the parameter with this ``id()``."""
        self._arrived.add(key)

    def arrived(self) -> set[int]:
        """``id()`` of those that a gradient reached, or whose `.grad` was set."""
        for key, (parameter, had_one) in self._watched.items():
            if parameter.grad is not None and not had_one:
                self._arrived.add(key)
        return self._arrived

    def stop(self) -> None:
        """Forget all of them."""
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()
        self._watched.clear()
        self._arrived.clear()


class _Arrival:
    """The hook on one parameter; it stays behind when that is copied."""

    def __init__(self, gradients: Gradients, key: int) -> None:
        self._note: Callable[[int], None] = gradients.note
        self._key = key

    def __call__(self, parameter: Tensor) -> None:
        self._note(self._key)
