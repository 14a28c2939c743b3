"""What a step can touch, by the names that its code writes: kept for a rollback, or out of reach.

An attribute, a global or a class that no code of the step names is not touched by it. What is named
is followed from the module, through its parts, callbacks and data, to whatever it holds. Among that
may be what runs on and cannot be put back: then the step must not be run again.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import os
import sys
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_evalguard.instruments.generators import is_generator
from lightning_evalguard.instruments.handles import (
    LIGHTNING,
    handle_of,
    is_buffer,
    owner_of_class,
)
from lightning_evalguard.instruments.source import LIBRARIES, owner_of

# objects and items that are followed; a step that names more is not run again
_MOST = 100_000
_LEAVES = frozenset(
    {str, bytes, int, float, complex, bool, type(None), range, slice, type(Ellipsis)}
    | {types.CodeType, types.FrameType}
    | {
        types.WrapperDescriptorType,
        types.MethodDescriptorType,
        types.GetSetDescriptorType,
    }
    | {types.MemberDescriptorType, types.ClassMethodDescriptorType}
    | {torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format}
)
_ITEMS = (list, tuple, set, frozenset, deque)
_IMPLICIT_NOT = frozenset(
    {"__init__", "__new__", "__post_init__", "__del__", "__init_subclass__"}
)
_MAKES = ("__init__", "__new__", "__post_init__")
_DYNAMIC = frozenset(
    {"getattr", "setattr", "delattr", "vars", "__dict__", "__getattribute__"}
)
_HOOKS = (
    "_forward_pre_hooks",
    "_forward_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)
_STREAMS = frozenset({"__stdout__", "__stderr__"})
_TORCH = ("torch.utils.data", "torch.quasirandom", "torch.distributions", "torch.optim")
# the loop's, not the step's
_ITS_OWN = frozenset({"_iterator", "iterators", "_data_fetcher"})
_MACHINERY = frozenset({
    "lightning_evalguard", "logging", "inspect", "ctypes", "importlib", "weakref", "warnings",
    "tqdm",
})  # fmt: skip
# whose code is not read: it does what the user's code asks, and names no state of it
_UNREAD = LIBRARIES | _MACHINERY


class Reach:
    """What the code of a step can touch, by name.

    Args:
        step: The step.
        roots: What it is run on and what it can change: the module, optimizers, the batch.
        code: Code that is known to run in it, with its globals.

    Attributes:
        why: What cannot be put back if the step ran again, in words, or None.
        things: What it can touch, each once: containers, objects, tensors, generators.
        variables: Globals that are named, by the dict that holds them.
        members: Attributes of classes that are named.
    """

    def __init__(
        self,
        step: Callable[..., Any],
        roots: Iterable[object],
        code: Mapping[types.CodeType, dict[str, Any]] | None = None,
    ) -> None:
        self.why: str | None = None
        self.things: list[Any] = []
        self.variables: list[tuple[dict[str, Any], set[str]]] = []
        self.members: list[tuple[type, str]] = []
        self._names = {getattr(step, "__name__", "forward"), "forward"}
        self._code: set[types.CodeType] = set()
        self._globals: dict[int, tuple[dict[str, Any], set[str]]] = {}
        self._seen: set[int] = set()
        self._keep: list[object] = []
        self._named: list[_Named] = []
        self._stack: list[tuple[object, str]] = []
        self._left = _MOST
        self._dynamic = False
        for root in roots:
            self._stack.append((root, ""))
        self._stack.append((step, ""))
        for ran, variables in (code or {}).items():
            self._read(ran, variables)
        self._follow()
        self.variables = list(self._globals.values())

    # the walk

    def _follow(self) -> None:
        """Visit what is named until no new name comes up."""
        while self.why is None:
            while self._stack and self.why is None:
                self._visit(*self._stack.pop())
            fresh = [
                pair for named in self._named for pair in named.take(self._names, self)
            ]
            if not fresh:
                return
            self._stack += fresh

    def _refuse(self, path: str, what: str) -> None:
        if self.why is None:
            self.why = f"`{path}` is {what}" if path else f"its argument is {what}"

    def _visit(self, value: object, path: str) -> None:
        kind = type(value)
        if kind in _LEAVES or id(value) in self._seen:
            return
        self._seen.add(id(value))
        self._keep.append(value)
        self._left -= 1
        if self._left < 0:
            self._refuse(path, "too large to be put back")
        elif issubclass(kind, Tensor) or is_generator(kind) or is_buffer(kind):
            self.things.append(value)
        elif issubclass(kind, dict):
            self._visit_mapping(value, path)
        elif issubclass(kind, _ITEMS):
            self._visit_items(value, path)
        elif not self._visit_code(value, kind, path):
            self._visit_object(value, kind, path)

    def _visit_mapping(self, mapping: Any, path: str) -> None:
        self.things.append(mapping)
        self._left -= len(mapping) // 10
        for key, value in list(dict.items(mapping)):
            if type(value) not in _LEAVES:
                self._stack.append(
                    (value, f"{path}[{key!r}]" if isinstance(key, str) else path)
                )
        self._of_class(mapping, type(mapping), path)

    def _visit_items(self, items: Any, path: str) -> None:
        if not isinstance(items, (tuple, frozenset)):
            self.things.append(items)
        self._left -= len(items) // 10
        for index, item in enumerate(list(items)):
            if type(item) not in _LEAVES:
                self._stack.append((item, f"{path}[{index}]"))
        self._of_class(items, type(items), path)

    def _visit_code(self, value: Any, kind: type, path: str) -> bool:
        """Functions, methods, classes and modules, and what they are wrapped in."""
        inside: list[tuple[object, str]] = []
        if issubclass(kind, types.FunctionType):
            self._function(value, path)
        elif issubclass(kind, types.MethodType):
            inside = [(value.__self__, path.rpartition(".")[0]), (value.__func__, path)]
        elif issubclass(kind, (types.BuiltinFunctionType, types.MethodWrapperType)):
            owner = value.__self__
            inside = [] if isinstance(owner, types.ModuleType) else [(owner, path)]
        elif issubclass(kind, functools.partial):
            inside = [(value.func, path), (value.args, path), (value.keywords, path)]
        elif issubclass(kind, (staticmethod, classmethod)):
            inside = [(value.__func__, path)]
        elif issubclass(kind, property):
            inside = [
                (f, path) for f in (value.fget, value.fset, value.fdel) if f is not None
            ]
        elif issubclass(kind, functools.cached_property):
            inside = [(value.func, path)]
        elif issubclass(kind, types.CellType):
            if _filled(value):
                inside = [(value.cell_contents, path)]
        elif issubclass(kind, type):
            self._class(value, path, makes=True)
        elif issubclass(kind, types.ModuleType):
            if _is_users(value):
                self._named.append(
                    _Named(vars(value), path or value.__name__, all_of=False)
                )
                self._globals.setdefault(id(vars(value)), (vars(value), set()))
        elif hasattr(kind, "__wrapped__") or kind.__name__ == "_lru_cache_wrapper":
            inside = [(getattr(value, "__wrapped__", None), path)]
        else:
            return False
        self._stack += inside
        return True

    def _visit_object(self, value: Any, kind: type, path: str) -> None:
        what = handle_of(kind, value)
        if what is not None:
            self._refuse(path, f"{what}, which cannot be put back")
            return
        if issubclass(kind, weakref.ProxyTypes) or kind is weakref.ref:
            self._stack.append((_referent(value, kind), path))
            return
        package = kind.__module__.partition(".")[0]
        if package in _MACHINERY or (
            _in_mro(kind, "Logger") and not issubclass(kind, nn.Module)
        ):
            return
        attributes = _dict_of(value)
        is_module = issubclass(kind, nn.Module)
        if (
            not is_module
            and package == "torch"
            and not kind.__module__.startswith(_TORCH)
        ):
            return
        if attributes is not None:
            self.things.append(value if is_module else attributes)
        slots = dict(_slots(value, kind))
        if slots:
            self.things.append(value)
        if is_module:
            for name, child in (attributes or {}).get("_modules", {}).items():
                self._stack.append((child, f"{path}.{name}" if path else name))
            for registry in _HOOKS:
                for hook in (attributes or {}).get(registry, {}).values():
                    self._stack.append((hook, path))
        the_loops = package in LIGHTNING
        pruned = is_module or the_loops or owner_of_class(kind) == "user"
        held = {**(attributes or {}), **slots}
        self._named.append(_Named(held, path, not pruned, by_name=the_loops))
        self._of_class(value, kind, path)

    # code

    def _read(self, code: types.CodeType, variables: dict[str, Any]) -> None:
        """Take up the names of a function's code, and the globals among them."""
        if code in self._code:
            return
        self._code.add(code)
        names = set(code.co_names)
        self._names |= names
        self._names |= {
            c for c in code.co_consts if isinstance(c, str) and c.isidentifier()
        }
        # Packages make up names of their own things, the user's code of any.
        if names & _DYNAMIC and owner_of(code.co_filename) == "user":
            self._dynamic = True
        if names & _STREAMS:
            self._refuse("sys.__stdout__", "an open file, which cannot be put back")
        held = self._globals.setdefault(id(variables), (variables, set()))
        held[1].update(names)
        for name in names:
            if name in variables:
                self._stack.append((variables[name], name))
        if any(name in sys.modules for name in names):
            self._stack += [(sys.modules[name], name) for name in _imported(code)]
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._read(constant, variables)

    def _function(self, function: types.FunctionType, path: str) -> None:
        code = function.__code__
        library = owner_of(code.co_filename) in _UNREAD
        self.things.append(function)
        if function.__dict__:
            self.things.append(function.__dict__)
        inside = [
            function.__defaults__,
            function.__kwdefaults__,
            *function.__dict__.values(),
        ]
        if not library:
            self._read(code, function.__globals__)
        for name, cell in zip(
            code.co_freevars, function.__closure__ or (), strict=True
        ):
            if not _filled(cell):
                continue
            if name == "self" and isinstance(
                cell.cell_contents, contextlib.ContextDecorator
            ):
                self._stack.append((_made_anew(cell.cell_contents), name))
            elif name == "__class__":
                # which every `super()` holds, and makes nothing of it
                self._class(cell.cell_contents, path, makes=False)
            else:
                self._stack.append((cell.cell_contents, name))
        self._stack += [(part, path) for part in inside if part is not None]

    def _class(self, kind: type, path: str, makes: bool) -> None:
        for base in kind.__mro__:
            if owner_of_class(base) in _UNREAD:
                continue
            self._members(base, base.__name__)
            if makes:
                self._stack += [
                    (vars(base)[n], base.__name__) for n in _MAKES if n in vars(base)
                ]

    def _of_class(self, value: object, kind: type, path: str) -> None:
        """The class of what is touched: its attributes by name, and the methods python calls."""
        for base in kind.__mro__:
            owner = owner_of_class(base)
            if owner in _UNREAD:
                if owner in ("lightning", "pytorch_lightning"):
                    self._named.append(
                        _Named(_properties(base), path, all_of=False, code=True)
                    )
                continue
            self._members(base, path or base.__name__)

    def _members(self, base: type, path: str) -> None:
        if id(base) in self._seen and base in self._bases:
            return
        self._bases.add(base)
        self._keep.append(base)
        self._named.append(_Named(vars(base), path, all_of=False, owner=base))
        for name, member in list(vars(base).items()):
            implicit = (
                name.startswith("__")
                and name.endswith("__")
                and name not in _IMPLICIT_NOT
            )
            if implicit and isinstance(member, types.FunctionType):
                self._stack.append((member, f"{path}.{name}"))

    @functools.cached_property
    def _bases(self) -> set[type]:
        return set()

    def wants_all(self) -> bool:
        """Whether the code asks for attributes by names that it makes up."""
        return self._dynamic

    def read_property(self, member: property) -> None:
        """Take up the names that a property of a library reads."""
        for function in (member.fget, member.fset):
            if (
                isinstance(function, types.FunctionType)
                and function.__code__ not in self._code
            ):
                self._code.add(function.__code__)
                self._names |= set(function.__code__.co_names) - _ITS_OWN


def _made_anew(manager: contextlib.ContextDecorator) -> object:
    """What a decorator is made of: one of a generator makes another one for each call."""
    if isinstance(manager, contextlib._GeneratorContextManager):
        return (manager.func, manager.args, manager.kwds)
    return manager


class _Named:
    """Attributes of one object, class or module, of which those that are named are taken.

    Args:
        attributes: By name.
        path: How the owner is written.
        all_of: Take all of them, named or not.
        owner: The class whose attributes they are.
        code: They are properties of a library, of which the names count alone.
        by_name: Take them by name only, also where the code makes up names.
    """

    def __init__(
        self,
        attributes: Mapping[str, Any],
        path: str,
        all_of: bool,
        owner: type | None = None,
        code: bool = False,
        by_name: bool = False,
    ) -> None:
        self._attributes = attributes
        self._path = path
        self._all = all_of
        self._owner = owner
        self._code = code
        self._by_name = by_name or owner is not None or code
        self._taken: set[str] = set()

    def take(self, names: set[str], reach: Reach) -> Iterator[tuple[object, str]]:
        """What is named and was not taken before, each with how it is written."""
        everything = self._all or (reach.wants_all() and not self._by_name)
        wanted = (
            self._attributes.keys() if everything else self._attributes.keys() & names
        )
        for name in sorted(wanted - self._taken):
            self._taken.add(name)
            value = self._attributes[name]
            if self._code:
                reach.read_property(value)
                continue
            if self._owner is not None and not isinstance(value, types.FunctionType):
                reach.members.append((self._owner, name))
            if type(value) not in _LEAVES:
                yield value, f"{self._path}.{name}" if self._path else name


# what things are


def _referent(value: Any, kind: type) -> object:
    if kind is weakref.ref:
        return value()
    try:
        return value.__repr__.__self__  # of what a proxy stands for
    except (AttributeError, ReferenceError):
        return None


def _dict_of(thing: object) -> dict[str, Any] | None:
    try:
        attributes = object.__getattribute__(thing, "__dict__")
    except AttributeError:
        return None
    if type(attributes) is not dict:
        return None
    return attributes


def _slots(thing: object, kind: type) -> Iterator[tuple[str, Any]]:
    for name, member in slots_of(thing):
        with contextlib.suppress(AttributeError):
            yield name, member.__get__(thing)


def slots_of(thing: object) -> tuple[tuple[str, Any], ...]:
    """The ``__slots__`` of a thing's class and its bases, each with its descriptor."""
    kind: Any = type(thing)
    return _slots_of(kind)


@functools.lru_cache(maxsize=4096)
def _slots_of(kind: Any) -> tuple[tuple[str, Any], ...]:
    slots: list[tuple[str, Any]] = []
    for base in kind.__mro__:
        if "__slots__" in vars(base):
            members = vars(base).items()
            slots += [
                m for m in members if isinstance(m[1], types.MemberDescriptorType)
            ]
    return tuple(slots)


def _is_users(module: types.ModuleType) -> bool:
    path = vars(module).get("__file__")
    return isinstance(path, str) and owner_of(os.path.abspath(path)) == "user"


def _in_mro(kind: type, name: str) -> bool:
    return any(
        base.__name__ == name and base.__module__.partition(".")[0] in LIGHTNING
        for base in kind.__mro__
    )


def _properties(base: type) -> dict[str, property]:
    return {name: m for name, m in vars(base).items() if isinstance(m, property)}


@functools.lru_cache(maxsize=4096)
def _imports(code: types.CodeType) -> tuple[str, ...]:
    """The modules that a function imports itself."""
    return tuple(
        i.argval for i in dis.get_instructions(code) if i.opname == "IMPORT_NAME"
    )


def _imported(code: types.CodeType) -> Iterator[str]:
    """Of the modules that a function imports itself, those that are there."""
    return (name for name in _imports(code) if name in sys.modules)


def _filled(cell: types.CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


__all__ = ["Reach", "slots_of"]
