"""What a step can change, captured before and restored after: nothing is cloned but what it writes.

Captured are the modules and the plain objects they hold, their attributes, slots and containers,
hooks, gradients and generators, and what the step's code names besides: globals, attributes of
classes, callbacks, data (see `reach`). Files, connections, iterators and what else cannot be put
back is not captured: a step that touches it is not run again.
"""

from __future__ import annotations

import array
import functools
import io
import operator
import sys
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lightning_evalguard.instruments.dispatch import Op, Subscriber, storage_key
from lightning_evalguard.instruments.effects import Abort
from lightning_evalguard.instruments.generators import (
    generator_state,
    is_default,
    is_generator,
    set_generator_state,
)
from lightning_evalguard.instruments.reach import Reach, slots_of

_DEPTH = 6  # containers and plain objects, counted from a module's attribute
_MANY = 10_000  # items of one container that are looked into
# items of one container that are copied; of a longer list its length is kept
_COPIED = 1_000_000
_LARGE = 1 << 26  # bytes of one numpy array that are worth a copy

_LEAVES = (
    str,
    bytes,
    int,
    float,
    complex,
    bool,
    type(None),
    type,
    range,
    slice,
    types.ModuleType,
    types.BuiltinFunctionType,
    types.CodeType,
    types.FrameType,
    torch.dtype,
    torch.device,
    torch.Size,
)
_CONTAINERS = (list, dict, set, deque)
_SIZED = (*_CONTAINERS, tuple, frozenset)
_LEAF_TYPES = frozenset(_LEAVES)
_PLAIN = frozenset({dict, OrderedDict, list, set})
# Objects of these packages are machinery around the step, not state that a step owns.
_MACHINERY = frozenset(
    {
        "lightning",
        "pytorch_lightning",
        "lightning_fabric",
        "lightning_evalguard",
        "logging",
    }
    | {
        "threading",
        "multiprocessing",
        "concurrent",
        "asyncio",
        "weakref",
        "inspect",
        "ctypes",
    }
)


class CannotReplay(Exception):  # noqa: N818 - it says what is so
    """A step cannot be run again, or what it did could not be undone; the message says why."""


# what the step holds


class Snapshot:
    """Everything that `roots` hold and a step can change, as it is now.

    Args:
        roots: Modules, optimizers, a batch: whatever the step can reach.
        reach: What the step's code names besides.
    """

    def __init__(self, roots: Iterable[object], reach: Reach | None = None) -> None:
        self.storages: dict[int, Tensor] = {}
        self._restores: list[Callable[[], None]] = []
        self._generators: list[tuple[Any, Any]] = []
        self._empty: list[Any] = []
        self._seen: list[object] = []  # keeps alive what is known by its id
        for thing in things(roots):
            self._seen.append(thing)
            kind = type(thing)
            if kind in _PLAIN and not thing:
                self._empty.append(thing)
            else:
                self._hold(thing, kind)
        if reach is not None:
            self._hold_named(reach)

    def restore(self) -> None:
        """Put back attributes, containers, identities, flags and gradients; not contents."""
        for container in self._empty:
            if container:
                container.clear()
        for restore in self._restores:
            restore()

    def hold_generator(self, generator: Any) -> None:
        """Have a private generator put back by `restore_generators`."""
        if all(generator is not known for known, _ in self._generators):
            self._generators.append((generator, generator_state(generator)))

    def generators(self) -> list[Any]:
        """The private generators held."""
        return [generator for generator, _ in self._generators]

    def restore_generators(self) -> None:
        """Put back the private generators."""
        for generator, state in self._generators:
            set_generator_state(generator, state)

    def _hold(self, thing: Any, kind: type) -> None:
        numpy = sys.modules.get("numpy")
        if issubclass(kind, Tensor):
            self._hold_tensor(thing)
        elif is_generator(kind):
            self.hold_generator(thing)
        elif issubclass(kind, _CONTAINERS):
            self._restores.append(_container(thing))
        elif numpy is not None and issubclass(kind, numpy.ndarray):
            if thing.flags.writeable and thing.nbytes <= _LARGE:
                self._restores.append(
                    functools.partial(numpy.copyto, thing, thing.copy())
                )
        elif issubclass(kind, types.FunctionType):
            self._restores += [_cell(c) for c in thing.__closure__ or () if _filled(c)]
        elif issubclass(kind, (bytearray, array.array)):
            self._restores.append(
                functools.partial(operator.setitem, thing, slice(None), thing[:])
            )
        elif kind in (io.StringIO, io.BytesIO):
            if not thing.closed:
                self._restores.append(
                    functools.partial(thing.__setstate__, thing.__getstate__())
                )
        else:
            self._restores += [_slot(thing, member) for _, member in slots_of(thing)]
            attributes = attributes_of(thing, kind)
            if attributes is not None:
                self._restores.append(_items(attributes, dict))

    def _hold_named(self, reach: Reach) -> None:
        known = set(map(id, self._seen))
        for thing in reach.things:
            if id(thing) not in known:
                self._seen.append(thing)
                self._hold(thing, type(thing))
        self._restores += [_variables(held, names) for held, names in reach.variables]
        self._restores += [_member(owner, name) for owner, name in reach.members]

    def _hold_tensor(self, tensor: Tensor) -> None:
        if nn.parameter.is_lazy(tensor) or hasattr(tensor, "__tensor_flatten__"):
            return  # not there yet; or a wrapper, whose inner tensors are held
        key = storage_key(tensor)
        if key is not None:
            self.storages.setdefault(key, tensor)
            self._restores.append(
                _tensor(tensor, tensor.grad if tensor.is_leaf else None)
            )


def things(roots: Iterable[object]) -> Iterator[Any]:
    """Everything that `roots` hold, each once: modules, containers, plain objects, tensors."""
    seen: set[int] = set()
    stack: list[tuple[object, int]] = [(root, 0) for root in roots]
    while stack:
        thing, depth = stack.pop()
        if id(thing) in seen or depth > _DEPTH:
            continue
        seen.add(id(thing))
        yield thing
        kind = type(thing)
        below = depth + 1
        if issubclass(kind, nn.Module):
            attributes = vars(thing)
            stack += [
                (m, 0) for m in attributes.get("_modules", {}).values() if m is not None
            ]
            inside: Iterable[object] = attributes.values()
            below = 1
        elif issubclass(kind, Tensor):
            inside = _inside_tensor(thing)  # type: ignore[arg-type]
            below = depth
        else:
            inside = (part for _, part in held_parts(thing))
        for part in inside:
            kind = type(part)
            if kind in _PLAIN and not part:  # most are a module's hooks
                if id(part) not in seen:
                    seen.add(id(part))
                    yield part
            elif kind not in _LEAF_TYPES:
                stack.append((part, below))


def _inside_tensor(tensor: Tensor) -> Iterable[object]:
    if hasattr(tensor, "__tensor_flatten__"):
        return [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
    if nn.parameter.is_lazy(tensor) or not tensor.is_leaf or tensor.grad is None:
        return ()
    return (tensor.grad,)


def held_parts(thing: Any) -> Iterator[tuple[str, object]]:
    """What a container, a plain object or a function holds, each with how it is written.

    Runs no code of the thing's class but its iteration.
    """
    kind = type(thing)
    if issubclass(kind, _LEAVES) or (issubclass(kind, _SIZED) and len(thing) > _MANY):
        return
    if issubclass(kind, dict):
        for key, value in list(thing.items()):
            yield f"[{key!r}]" if isinstance(key, (str, int)) else "[...]", value
    elif issubclass(kind, _SIZED):
        for index, value in enumerate(list(thing)):
            yield f"[{index}]", value
    elif issubclass(kind, functools.partial):
        yield ".func", thing.func
        yield ".args", thing.args
        yield ".keywords", thing.keywords
    elif issubclass(kind, types.MethodType):
        yield ".__self__", thing.__self__
    elif issubclass(kind, types.FunctionType):
        cells = zip(thing.__code__.co_freevars, thing.__closure__ or (), strict=True)
        for name, cell in cells:
            if _filled(cell):
                yield f".<closure {name}>", cell.cell_contents
        yield ".__defaults__", thing.__defaults__
    else:
        for name, value in list((attributes_of(thing, kind) or {}).items()):
            yield f".{name}", value


def attributes_of(thing: object, kind: type) -> dict[str, Any] | None:
    """``vars(thing)`` of a plain object; None for machinery around the step and for C objects."""
    package = kind.__module__.partition(".")[0]
    if issubclass(kind, (*_LEAVES, Tensor, functools.partial, types.MethodType)):
        return None
    if package in _MACHINERY:
        return None
    of_torch = package == "torch" and not issubclass(kind, nn.Module)
    if of_torch and not kind.__module__.startswith("torch.optim"):
        return None
    try:
        attributes = object.__getattribute__(thing, "__dict__")
    except AttributeError:
        return None
    if type(attributes) is not dict:
        return None
    return attributes


class Writes(Subscriber):
    """Copies what `held` holds just before the first write reaches it, and puts it back.

    A write that cannot be undone ends the replay before it happens.
    """

    def __init__(self, held: Snapshot) -> None:
        self._held = held
        self._copies: dict[int, tuple[Any, Tensor]] = {}

    def before(self, op: Op) -> None:
        for tensor in op.written:
            key = storage_key(tensor)
            if key in self._held.storages and key not in self._copies:
                try:
                    storage = tensor.untyped_storage()
                    self._copies[key] = (storage, _as_bytes(storage).clone())
                except Exception as error:  # noqa: BLE001 - nothing may write unsaved
                    raise Abort(
                        f"writes with `{op.name}` what cannot be copied: {error}"
                    ) from None
        generator = op.kwargs.get("generator")
        if generator is not None and not is_default(generator):
            self._held.hold_generator(generator)

    def restore(self) -> None:
        """Put back the contents of all that was written."""
        # inference_mode: a write that no version counter and no graph hears of
        with torch.inference_mode():
            for storage, copy in self._copies.values():
                if storage.nbytes() != copy.numel():
                    storage.resize_(copy.numel())
                _as_bytes(storage).copy_(copy)
        self._copies.clear()


def _as_bytes(storage: Any) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


# one restore a kind of thing; each touches nothing that did not change


def _items(mapping: dict[Any, Any], kind: Any) -> Callable[[], None]:
    # The class's own methods throughout: a subclass may do more in its overrides than hold items,
    # as make an object at each `__getitem__` (transformers' ACT2FN), which `dict(mapping)` asks.
    saved = dict(kind.items(mapping))

    def restore() -> None:
        same = _same_items(kind.values(mapping), saved.values())
        if not (same and _same_items(kind.keys(mapping), saved)):
            kind.clear(mapping)
            for key, value in saved.items():
                kind.__setitem__(mapping, key, value)

    return restore


def _container(container: Any) -> Callable[[], None]:
    if isinstance(container, dict):
        return _items(
            container, OrderedDict if isinstance(container, OrderedDict) else dict
        )
    if isinstance(container, list) and len(container) > _COPIED:
        return functools.partial(_truncate, container, len(container))
    kind: Any = next(k for k in (list, set, deque) if isinstance(container, k))
    fill = "extend"
    if kind is set:
        fill = "update"
    saved = list(container)

    def restore() -> None:
        if not _same_items(container, saved):
            kind.clear(container)
            getattr(kind, fill)(container, saved)

    return restore


def _same_items(a: Any, b: Any) -> bool:
    return len(a) == len(b) and all(map(operator.is_, a, b))


def _slot(thing: Any, member: Any) -> Callable[[], None]:
    saved = _in_slot(thing, member)

    def restore() -> None:
        now = _in_slot(thing, member)
        if now is saved:
            return
        if saved is _NOTHING:
            member.__delete__(thing)
        else:
            member.__set__(thing, saved)

    return restore


_NOTHING = object()


def _in_slot(thing: Any, member: Any) -> Any:
    try:
        return member.__get__(thing)
    except AttributeError:
        return _NOTHING


def _variables(held: dict[str, Any], names: set[str]) -> Callable[[], None]:
    """The globals of a file that the step's code names, also those that are not there yet."""
    saved = {name: held.get(name, _NOTHING) for name in names}

    def restore() -> None:
        for name, value in saved.items():
            if held.get(name, _NOTHING) is value:
                continue
            if value is _NOTHING:
                del held[name]
            else:
                held[name] = value

    return restore


def _member(owner: type, name: str) -> Callable[[], None]:
    saved = vars(owner)[name]

    def restore() -> None:
        if vars(owner).get(name, _NOTHING) is not saved:
            type.__setattr__(owner, name, saved)

    return restore


def _truncate(items: list[Any], length: int) -> None:
    del items[length:]


def _tensor(tensor: Tensor, grad: Tensor | None) -> Callable[[], None]:
    alias = tensor.detach()
    flag = tensor.requires_grad
    leaf = tensor.is_leaf
    counter = _version_counter(tensor)

    def restore() -> None:
        if not _same_memory(tensor, alias):
            tensor.data = alias
        if leaf and tensor.requires_grad != flag and tensor.is_leaf:
            tensor.requires_grad_(flag)
        if leaf and tensor.is_leaf and tensor.grad is not grad:
            tensor.grad = grad
        if counter is not None:
            counter()

    return restore


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return (
        a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()
    )


def _version_counter(tensor: Tensor) -> Callable[[], None] | None:
    keep = getattr(torch.autograd, "_unsafe_preserve_version_counter", None)
    if keep is None or tensor.is_inference():
        return None
    version = tensor._version
    counter = keep(tensor)

    def restore() -> None:
        if tensor._version != version:
            counter.__exit__(None, None, None)

    return restore


def _filled(cell: types.CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _cell(cell: types.CellType) -> Callable[[], None]:
    saved = cell.cell_contents

    def restore() -> None:
        if not _filled(cell) or cell.cell_contents is not saved:
            cell.cell_contents = saved

    return restore


__all__ = ["CannotReplay", "Snapshot", "Writes"]
