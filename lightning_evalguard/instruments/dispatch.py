"""One `TorchDispatchMode`, many subscribers: each operator as it runs, with where it stands.

A subscriber is told of every operator twice, before and after its kernel. It reads what it needs
and raises nothing that matters: a subscriber that fails is dropped, and the operator runs on.
A dispatch mode leaves results bit-identical and keeps ``nn.TransformerEncoder``'s fast path; it
sees neither what a compiled frame fuses nor what reaches memory without an operator.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
    _pop_mode,
    _push_mode,
)

from lightning_evalguard.instruments.source import Site, owner_of, user_site
from lightning_evalguard.instruments.variables import variable

# nn.Module.__call__, in every version
_CALLS = frozenset({"_call_impl", "_wrapped_call_impl"})
_MODULE_FILE = nn.modules.module.__file__
# Their schemas do not say that they write the running statistics (BatchNorm, and InstanceNorm
# with track_running_stats); `_version` does not say it either.
_NORMS = frozenset(
    {
        "batch_norm",
        "native_batch_norm",
        "cudnn_batch_norm",
        "miopen_batch_norm",
        "_batch_norm_impl_index",
        "instance_norm",
    }
)


class Op:
    """One call of one operator.

    `site`, `module` and `stack()` read the frames of the call: use them inside `before` or
    `after`, not later. Nothing here keeps the tensors alive longer than the subscriber does.

    Attributes:
        func: The overload, e.g. ``torch.ops.aten.bernoulli_.float``.
        args: Positional arguments, as dispatched.
        kwargs: Keyword arguments, as dispatched.
        out: What it returned; ``None`` in `before`.
        index: 0 for the first operator under this mode, 1 for the next, ...
    """

    def __init__(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], index: int = 0
    ) -> None:
        self.func = func
        self.args = args
        self.kwargs = kwargs
        self.out: Any = None
        self.index = index

    @cached_property
    def name(self) -> str:
        """The operator without namespace and overload: ``"bernoulli_"``."""
        return str(self.func.__name__).partition(".")[0]

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """Every argument by its name in the schema, defaults filled in."""
        names, defaults = _signature(self.func)
        return {**defaults, **dict(zip(names, self.args, strict=False)), **self.kwargs}

    @cached_property
    def written(self) -> tuple[Tensor, ...]:
        """The tensors among the arguments that the kernel writes to."""
        found: list[Tensor] = []
        for index, argument in _written_arguments(self.func):
            value = (
                self.args[index]
                if index < len(self.args)
                else self.kwargs.get(argument)
            )
            found += tensors_in(value)
        if self.name in _NORMS:
            values = self.arguments
            if values.get("training") or values.get("use_input_stats"):
                found += tensors_in(
                    [values.get("running_mean"), values.get("running_var")]
                )
        return tuple(found)

    @cached_property
    def draws(self) -> bool:
        """Whether this call draws random numbers: by its arguments, defaults filled in.

        SDPA's kernels carry the tag of a random operator with ``dropout_p=0`` too, and under
        inference mode ``dropout`` itself arrives with ``train=False``.
        """
        if not _may_draw(self.func):
            return False
        out = next(iter(tensors_in(self.out)), None)
        if out is not None and (out.numel() == 0 or out.is_meta):
            return False
        values = self.arguments
        if "dropout_p" in values:
            return bool(values["dropout_p"] > 0)
        if "dropout" in values:  # recurrent layers drop between layers only
            drops = bool(values.get("train") and values["dropout"] > 0)
            return drops and values.get("num_layers", 2) > 1
        if "train" in values:
            return values["train"] is not False and values.get("p") != 0
        return bool(values.get("training", True))

    @cached_property
    def site(self) -> Site | None:
        """The nearest place outside torch, Lightning, torchmetrics and the standard library."""
        return user_site()

    @cached_property
    def module(self) -> nn.Module | None:
        """The innermost module whose ``__call__`` is running."""
        return next(self.modules(), None)

    def modules(self) -> Iterator[nn.Module]:
        """The modules whose ``__call__`` is running, innermost first, each once."""
        return modules_around(sys._getframe(1))

    def stack(self) -> Iterator[FrameType]:
        """The frames below this call, innermost first, without the guard's own."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if owner_of(frame.f_code.co_filename) != "self":
                yield frame
            frame = frame.f_back


def modules_around(frame: FrameType | None) -> Iterator[nn.Module]:
    """The modules whose ``__call__`` runs around `frame`, innermost first, each once.

    They are read from the frames, not kept by hooks: hooks switch off fast paths.
    """
    last = None
    while frame is not None:
        code = frame.f_code
        if code.co_name in _CALLS and code.co_filename == _MODULE_FILE:
            module = variable(frame, "self")
            if module is not last and isinstance(module, nn.Module):
                last = module
                yield module
        frame = frame.f_back


class _Aside(threading.local):
    """``with aside:`` operators inside are hidden from every enclosing `Watch`, in this thread.

    For what the guard computes for itself: with two guards on one trainer, the one works within
    what the other watches. A class of its own, for it is entered many times a step.
    """

    depth = 0

    def __enter__(self) -> None:
        self.depth += 1

    def __exit__(self, *_: object) -> None:
        self.depth -= 1


aside = _Aside()


@contextlib.contextmanager
def unseen() -> Iterator[None]:
    """What runs inside passes no dispatch mode: neither ours nor the user's.

    What the guard computes for itself is nobody's business, and a mode makes ten times of it.
    """
    modes = [_pop_mode() for _ in range(torch._C._len_torch_dispatch_stack())]
    try:
        yield
    finally:
        for mode in reversed(modes):
            _push_mode(mode)


def is_watched() -> bool:
    """Whether operators pass a dispatch mode now."""
    return bool(torch._C._len_torch_dispatch_stack())


class Subscriber:
    """Told of every operator; override what is needed."""

    def before(self, op: Op) -> None:
        """The kernel is about to run."""

    def after(self, op: Op) -> None:
        """The kernel returned `op.out`."""


def real_tensors() -> AbstractContextManager[Any]:
    """Within it tensors have values, also where the user's step computes shapes alone."""
    fake = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)
    if fake is not None:
        return _disable_current_modes()
    return nullcontext()


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Tell each of `subscribers` of every operator while this mode is entered.

    Enter it tightly around the step: leaving pops the top of the stack of modes.

    Attributes:
        failures: The subscribers that raised and were dropped, with what they raised.
    """

    supports_higher_order_operators = True

    def __init__(self, *subscribers: Subscriber) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.failures: list[tuple[Subscriber, Exception]] = []
        self._before = [
            s for s in subscribers if type(s).before is not Subscriber.before
        ]
        self._after = [s for s in subscribers if type(s).after is not Subscriber.after]
        self._index = 0
        self._depth = aside.depth

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Let Dynamo compile as usual; else it skips the frame for good (torch >= 2.10)."""
        return True

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if aside.depth != self._depth:
            return below(func, args, kwargs or {})
        op = Op(func, args, kwargs or {}, self._index)
        self._index += 1
        for subscriber in tuple(self._before):
            try:
                subscriber.before(op)
            except Exception as error:  # noqa: BLE001, PERF203 - the user's step must not see ours
                self._drop(subscriber, error)
        op.out = below(func, args, op.kwargs)
        for subscriber in tuple(self._after):
            try:
                subscriber.after(op)
            except Exception as error:  # noqa: BLE001, PERF203 - the user's step must not see ours
                self._drop(subscriber, error)
        return op.out

    def _drop(self, subscriber: Subscriber, error: Exception) -> None:
        self.failures.append((subscriber, error.with_traceback(None)))
        self._before = [s for s in self._before if s is not subscriber]
        self._after = [s for s in self._after if s is not subscriber]


_MODES = torch._C.DispatchKeySet(torch._C.DispatchKey.Python) | torch._C.DispatchKeySet(
    torch._C.DispatchKey.PythonTLSSnapshot
)
_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)
_CONJUGATED = torch._C.DispatchKeySet(
    torch._C.DispatchKey.Conjugate
) | torch._C.DispatchKeySet(torch._C.DispatchKey.Negative)
# Kernels that call what autocast casts or what views a tensor as its conjugate: by a sweep over
# torch's own list of operators.
_CALLS_BACK = frozenset(
    {"_trilinear", "linalg_pinv", "linalg_lstsq", "_transformer_encoder_layer_fwd"}
)


_READS = torch.ops.aten._local_scalar_dense.default


def below(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operator inside ``__torch_dispatch__`` to the bit as it runs without a mode.

    Below a mode torch excludes the keys above it. Under inference mode an operator arrives whole
    there, and what it calls inside then misses those keys: a view of a weight no longer asks for a
    gradient, and ``matmul`` folds other than it would. So the keys of the call are restored.
    Without inference mode only a few kernels miss some, which are given those back. A number that
    a graph saved comes to a mode as a Python number, which no operator reads.
    """
    if func is _READS and not isinstance(args[0], Tensor):
        return args[0]
    if torch.is_inference_mode_enabled() and not _keeps_views(func):
        with torch._C._RestorePythonTLSSnapshot():  # type: ignore[attr-defined]
            # the next mode restores them for itself
            if torch._C._len_torch_dispatch_stack():
                return func(*args, **kwargs)
            with torch._C._ExcludeDispatchKeyGuard(_MODES):
                return func(*args, **kwargs)
    if getattr(func, "_opname", "") not in _CALLS_BACK:
        return func(*args, **kwargs)
    with torch._C._RestorePythonTLSSnapshot():  # type: ignore[attr-defined]
        casts = torch.is_autocast_enabled("cpu")
    missed = _CONJUGATED
    if casts:
        missed = _CONJUGATED | _AUTOCAST
    include = torch._C._dispatch_tls_local_include_set()
    exclude = torch._C._dispatch_tls_local_exclude_set() - missed
    with torch._C._ForceDispatchKeyGuard(include, exclude):
        return func(*args, **kwargs)


@functools.cache
def _keeps_views(func: Any) -> bool:
    """Whether an operator has been at the keys above a mode before it arrives there."""
    if not isinstance(func, torch._ops.OpOverload):
        return True
    return bool(
        torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "ADInplaceOrView")  # type: ignore[no-untyped-call]
    )


def _schema(func: Any) -> Any:
    # Higher-order operators (cond, flex_attention) have none.
    return getattr(getattr(func, "_schema", None), "arguments", ())


@functools.cache
def _signature(func: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The names of an operator's arguments, and the defaults of those that have one."""
    schema = _schema(func)
    defaults = {a.name: a.default_value for a in schema if a.has_default_value()}
    return tuple(a.name for a in schema), defaults


# tagged as seeded, and draws nothing
_DRAWS_NOTHING = frozenset({"_fused_sdp_choice", "_nested_tensor_softmax_with_shape"})


@functools.cache
def _may_draw(func: Any) -> bool:
    name = func.__name__.partition(".")[0]
    seeded = torch.Tag.nondeterministic_seeded in getattr(func, "tags", ())
    return seeded and name not in _DRAWS_NOTHING and not name.endswith("_backward")


@functools.cache
def _written_arguments(func: Any) -> tuple[tuple[int, str], ...]:
    written = []
    for place, argument in enumerate(_schema(func)):
        alias = argument.alias_info
        if alias is not None and alias.is_write:
            written.append((place, argument.name))
    return tuple(written)


def tensors_in(value: Any) -> Iterable[Tensor]:
    """The tensors in an argument or a result of an operator: itself, or in lists of it."""
    if isinstance(value, Tensor):
        return (value,)
    if isinstance(value, (list, tuple)):
        return [t for item in value for t in tensors_in(item)]
    return ()


def storage_key(tensor: Tensor) -> int | None:
    """What two tensors share iff they share memory, or None where that is unknown."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (RuntimeError, NotImplementedError):
        # sparse, quantized by MKL-DNN, some subclasses
        return None


class ModuleNames:
    """Qualified names of the modules of `root`, as in ``named_modules()``."""

    def __init__(self, root: nn.Module) -> None:
        self._root = root
        self._names = {id(m): name for name, m in root.named_modules()}

    def __contains__(self, module: nn.Module) -> bool:
        return id(module) in self._names

    def of(self, module: nn.Module | None) -> str | None:
        """Its name, ``""`` for the root, None for a module that the root has not registered."""
        if module is None:
            return None
        return self._names.get(id(module))

    def nearest(self, modules: Iterable[nn.Module]) -> tuple[str, nn.Module]:
        """Name and module of the first of `modules` that is registered, else the root."""
        for module in modules:
            if id(module) in self._names:
                return self._names[id(module)], module
        return "", self._root


def holds(thing: object, name: str) -> bool:
    """Whether a thing has an attribute or a submodule of its own, without running its code."""
    try:
        own = object.__getattribute__(thing, "__dict__")
    except AttributeError:
        return False
    return name in own or (
        isinstance(thing, nn.Module) and name in own.get("_modules", ())
    )


def blinds_compiled(root: nn.Module) -> bool:
    """Whether a dispatch mode would make Dynamo give up compiled parts of `root` for good.

    Before torch 2.10 a mode could not ask to be ignored by it.
    """
    ignorable = hasattr(TorchDispatchMode, "ignore_compile_internals")
    return not ignorable and compiles(root)


# of which no attribute can be asked
_NO_OBJECTS = frozenset(
    {
        bool,
        int,
        float,
        str,
        bytes,
        complex,
        type(None),
        list,
        tuple,
        set,
        dict,
        OrderedDict,
    }
)


def compiles(root: nn.Module) -> bool:
    """Whether a part of `root` is compiled: its code compiles once more where a tracer follows."""
    for module in root.modules():
        own = vars(module)
        if own.get("_compiled_call_impl") is not None or _is_compiled(module):
            return True
        if _NO_OBJECTS.issuperset(map(type, own.values())):
            continue
        if any(_is_compiled(v) for v in own.values() if type(v) not in _NO_OBJECTS):
            return True
    return False


def _is_compiled(thing: object) -> bool:
    return holds(thing, "_orig_mod") or holds(thing, "_torchdynamo_orig_callable")


__all__ = [
    "ModuleNames",
    "Op",
    "Subscriber",
    "Watch",
    "aside",
    "below",
    "blinds_compiled",
    "compiles",
    "holds",
    "is_watched",
    "modules_around",
    "storage_key",
    "tensors_in",
    "unseen",
]
