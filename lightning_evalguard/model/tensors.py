"""What a model holds: its tensors by name, and whether they moved."""

from __future__ import annotations

import functools
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lightning_evalguard.model.identity import Identity
from lightning_evalguard.model.tree import registrations

Mark = tuple[int, int] | None


# what is there


class Held(NamedTuple):
    """A parameter or buffer.

    Attributes:
        name: Qualified name, as in ``named_parameters()``.
        tensor: The tensor.
        module: The module that registered it.
        owner: Qualified name of `module`.
        kind: ``parameter`` or ``buffer``.
        persistent: Whether it stands in the ``state_dict``.
        lazy: Whether it has no shape yet.
        registered: Whether `module` is one of the model's ``named_modules()``, and not kept in a
            list, a dict or another plain attribute.
    """

    name: str
    tensor: Tensor
    module: nn.Module
    owner: str
    kind: Literal["parameter", "buffer"]
    persistent: bool
    lazy: bool
    registered: bool


def identity(held: Held) -> Identity:
    """By which its tensor is recognised later."""
    return Identity(held.tensor, held.module, held.name.rpartition(".")[2])


def is_metric(module: nn.Module) -> bool:
    """Whether `module` is a torchmetrics metric, whose state is meant to move."""
    return _of_torchmetrics(type(module))  # type: ignore[arg-type]


@functools.cache
def _of_torchmetrics(cls: Any) -> bool:
    return any(c.__module__.startswith("torchmetrics.") for c in cls.__mro__)


class Inventory:
    """Every module, parameter and buffer of a model, by name; what belongs to a metric left out.

    The lists are read once, and again when something was registered anywhere.

    Args:
        root: The model.
    """

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self.modules: dict[str, nn.Module] = {}
        self.unregistered: dict[str, nn.Module] = {}
        self.held: dict[str, Held] = {}
        self.opaque: list[str] = []
        self._seen = -1
        self._names: list[str] = []
        self._tensors: list[Tensor] = []
        self._parameters: list[Tensor] = []
        self._parameter_names: list[str] = []

    def refresh(self, force: bool = False) -> None:
        """Walk the model again if anything was registered since the last walk."""
        if self._seen == registrations.count and not force:
            return
        self._seen = registrations.count
        self.modules = dict(_modules(self.root, "", set()))
        self.unregistered = _unregistered(self.modules)
        self.held, self.opaque = {}, []
        seen: set[int] = set()
        for held in self._walked():
            if id(held.tensor) in seen:
                continue
            seen.add(id(held.tensor))
            self.held[held.name] = held
        readable = []
        for held in self.held.values():
            if held.lazy or _mark(held.tensor) is None:
                if not held.lazy:
                    self.opaque.append(held.name)
            else:
                readable.append(held)
        names = [h.name for h in readable]
        if names != self._names:
            self._names = names
        self._tensors = [h.tensor for h in readable]
        parameters = [h for h in readable if h.kind == "parameter"]
        self._parameters = [h.tensor for h in parameters]
        parameter_names = [h.name for h in parameters]
        if parameter_names != self._parameter_names:
            self._parameter_names = parameter_names

    def _walked(self) -> Iterator[Held]:
        for name, module in self.modules.items():
            yield from _held_by(name, module, True)
        for name, module in self.unregistered.items():
            yield from _held_by(name, module, False)

    def unwritten(self, since: Marks) -> bool:
        """Whether nothing was registered, and no version moved: half a `read`'s cost."""
        self.refresh()
        # A plain comprehension is the cheapest way through a few hundred tensors.
        return self._names is since.names and since.versions == [
            t._version for t in self._tensors
        ]

    def read(self) -> Marks:
        """Version and address of every tensor: no kernel, no sync, microseconds."""
        self.refresh()
        return Marks(
            self._names,
            [t._version for t in self._tensors],
            [t.data_ptr() for t in self._tensors],
        )

    def training(self) -> TrainingTensors:
        """``requires_grad`` and the gradient of every parameter, as cheaply."""
        self.refresh()
        return TrainingTensors(
            self._parameter_names,
            [p.requires_grad for p in self._parameters],
            [
                None if (g := p.grad) is None else (g._version, g.data_ptr())
                for p in self._parameters
            ],
        )


class Marks(NamedTuple):
    """Version and address of all tensors at one moment."""

    names: list[str]
    versions: list[int]
    addresses: list[int]

    def by_name(self) -> dict[str, tuple[int, int]]:
        """(version, address) by tensor."""
        pairs = zip(self.versions, self.addresses, strict=True)
        return dict(zip(self.names, pairs, strict=True))

    def moved(self, since: Marks) -> list[str]:
        """Tensors that stand elsewhere than in `since`, are new, or are gone."""
        if self == since:
            return []
        now = self.by_name()
        before = since.by_name()
        return [
            *(name for name, place in now.items() if before.get(name) != place),
            *(name for name in before if name not in now),
        ]


class TrainingTensors(NamedTuple):
    """What the optimizer sees of all parameters at one moment."""

    names: list[str]
    requires_grad: list[bool]
    gradients: list[Mark]

    def flips(self) -> dict[str, bool]:
        """``requires_grad`` by parameter."""
        return dict(zip(self.names, self.requires_grad, strict=True))

    def grads(self) -> dict[str, Mark]:
        """(version, address) of each gradient, None where there is none."""
        return dict(zip(self.names, self.gradients, strict=True))


def _modules(
    module: nn.Module, name: str, seen: set[int]
) -> Iterator[tuple[str, nn.Module]]:
    if id(module) in seen or is_metric(module):
        return
    seen.add(id(module))
    yield name, module
    for key, child in _own(module, "_modules", nn.Module.named_children):
        if child is not None:
            yield from _modules(child, f"{name}.{key}" if name else key, seen)


def _held_by(owner: str, module: nn.Module, registered: bool) -> Iterator[Held]:
    prefix = ""
    if owner:
        prefix = f"{owner}."
    for key, parameter in _own(module, "_parameters", nn.Module.named_parameters):
        if parameter is not None:
            lazy = type(parameter) in _LAZY
            name = f"{prefix}{key}"
            yield Held(
                name, parameter, module, owner, "parameter", True, lazy, registered
            )
    for key, buffer in _own(module, "_buffers", nn.Module.named_buffers):
        if buffer is not None:
            lazy = type(buffer) in _LAZY
            persistent = key not in module.__dict__.get(
                "_non_persistent_buffers_set", ()
            )
            name = f"{prefix}{key}"
            yield Held(
                name, buffer, module, owner, "buffer", persistent, lazy, registered
            )


_LAZY = (nn.UninitializedParameter, nn.UninitializedBuffer)


def _own(module: nn.Module, registry: str, named: Any) -> Iterable[tuple[str, Any]]:
    items = module.__dict__.get(registry)
    if isinstance(items, dict):
        return items.items()
    # a ScriptModule keeps its registries elsewhere
    if named is nn.Module.named_children:
        return list(module.named_children())
    return list(named(module, recurse=False))


def _mark(tensor: Tensor) -> Mark:
    """Version and address, or None for a tensor that has not both: inference, fake, wrapped."""
    try:
        return tensor._version, tensor.data_ptr()
    except (RuntimeError, NotImplementedError, TypeError):
        return None


# plain attributes


class Kept(NamedTuple):
    """A tensor in an attribute of a module that is neither parameter nor buffer.

    Attributes:
        ref: The tensor, not kept alive.
        version: Its ``_version``, -1 where it has none.
        graph: Whether it has a ``grad_fn``.
        sized: Whether it has a dimension.
    """

    ref: weakref.ref[Tensor]
    version: int
    graph: bool
    sized: bool

    @classmethod
    def of(cls, tensor: Tensor) -> Kept:
        """What is known of one of them."""
        has_graph = tensor.grad_fn is not None
        return cls(weakref.ref(tensor), version(tensor), has_graph, tensor.dim() > 0)


_DEPTH = 3  # of containers and plain objects below an attribute
_ITEMS = 512  # of one container, the last ones
_STEPS = 4096  # of one walk: what a model keeps beyond that is not looked at
_INTERNAL = frozenset(nn.Module().__dict__) | {
    "_trainer",
    "trainer",
    "_fabric",
    "_fabric_optimizers",
    "_jit_module",
    "_metric_attributes",
    "_example_input_array",
    "_hparams",
    "_hparams_initial",
    "_compiled_call_impl",
    "_compiler_ctx",
    "_flat_weights",
}
_SETTLED = frozenset(
    {
        bool,
        int,
        float,
        complex,
        str,
        bytes,
        type(None),
        torch.dtype,
        torch.device,
        torch.Size,
    }
)
_LIBRARIES = (
    "torch.",
    "torchmetrics.",
    "lightning.",
    "pytorch_lightning.",
    "lightning_fabric.",
    "logging.",
    "threading.",
    "builtins.",
    "numpy.",
)


def kept(inventory: Inventory) -> dict[str, dict[str, Kept]]:
    """Tensors in plain attributes, and in the containers and plain objects that they hold.

    Args:
        inventory: The model's modules. What it holds already is left out.

    Returns:
        Qualified name of the attribute -> path within it -> tensor. Containers without a tensor
        are there, empty.
    """
    walk = _Walk(inventory.modules)
    walk.seen.update(map(id, inventory.unregistered.values()))
    walk.seen.update(id(h.tensor) for h in inventory.held.values())
    found: dict[str, dict[str, Kept]] = {}
    for name, value in _plain_attributes(inventory.modules):
        parts = walk.within(value, "", _DEPTH)
        tensors = {path: Kept.of(t) for path, t in parts if isinstance(t, Tensor)}
        if tensors or isinstance(value, (list, dict, deque)):
            found[name] = tensors
    return found


def _plain_attributes(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, Any]]:
    for name, module in modules.items():
        own = module.__dict__
        for key in own.keys() - _INTERNAL:
            value = own[key]
            if type(value) not in _SETTLED:
                yield f"{name}.{key}" if name else key, value


def _unregistered(modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Modules in plain attributes, which ``eval()``, ``to()`` and checkpoints do not reach."""
    walk = _Walk(modules)
    found: dict[str, nn.Module] = {}
    for name, value in _plain_attributes(modules):
        for path, module in walk.within(value, "", _DEPTH):
            if isinstance(module, nn.Module) and not is_metric(module):
                found.update(_modules(module, name + path, walk.seen))
    return found


class _Walk:
    """Tensors and modules in containers and plain objects, the given modules left out."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.seen = set(map(id, modules.values()))
        self._left = _STEPS

    def within(self, value: Any, path: str, depth: int) -> Iterator[tuple[str, Any]]:
        kind = type(value)
        if kind in _SETTLED or depth < 0 or self._left <= 0 or id(value) in self.seen:
            return
        self._left -= 1
        if isinstance(value, (Tensor, nn.Module)):
            yield path, value
            return
        self.seen.add(id(value))
        if isinstance(value, dict):
            for key, item in list(value.items())[-_ITEMS:]:
                yield from self.within(item, f"{path}[{key!r}]", depth - 1)
        elif isinstance(value, (list, tuple, deque)):
            for i, item in enumerate(list(value)[-_ITEMS:]):
                yield from self.within(item, f"{path}[{i}]", depth - 1)
        elif not f"{kind.__module__}.".startswith(_LIBRARIES):
            inside = own_dict(value)
            if inside is not None:
                for key, item in list(inside.items())[:_ITEMS]:
                    yield from self.within(item, f"{path}.{key}", depth - 1)


def own_dict(value: object) -> dict[str, Any] | None:
    """``vars(value)``, without running what its class may do for an attribute; None without."""
    try:
        inside = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return None
    if not isinstance(inside, dict):
        return None
    return inside


def version(tensor: Tensor) -> int:
    """``_version``, or -1 for an inference tensor, which has none."""
    try:
        return tensor._version
    except RuntimeError:
        return -1
